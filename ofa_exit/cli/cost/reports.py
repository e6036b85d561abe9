"""The reports of ``ofa-exit cost``: one training in detail, and seconds per sample."""

import argparse

import torch
from tabulate import tabulate

from ofa_exit.cli.cost.counted import Answer, Lengths, answer_flops, build, hours, sample_cost
from ofa_exit.cli.cost.datasets import GIB, as_text
from ofa_exit.cli.cost.measured import measure

GIGA = 1e9
# Bytes per parameter in training: weight, gradient and Adam's two moments, in float32.
STATE_BYTES = 16
# Bytes per parameter in a checkpoint: weight and the moments.
SAVED_BYTES = 12


def sample_lengths(args: argparse.Namespace) -> Lengths:
    return Lengths(args.patch_image_size, args.source_length, args.target_length)


def report(args: argparse.Namespace) -> str:
    """Return the counts of one training and what follows from them."""
    lengths = sample_lengths(args)
    model = build(args.arch, checkpoint_activations=args.checkpoint_activations)
    sample = sample_cost(model, lengths, args.layer_weights)
    answer = answer_flops(model, lengths, Answer(args.beam, args.steps))
    tokens = model.encoder.image_tokens(lengths.size, lengths.size)
    stem = model.encoder.image_flops(lengths.size, lengths.size)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    memory = (parameters * STATE_BYTES + args.batch * sample.kept) / GIB
    rows = [
        ("parameters", f"{parameters / 1e6:.1f} million"),
        ("image", f"{tokens} tokens, stem {stem / GIGA:.1f} GFLOPs"),
        ("forward, per sample", f"{sample.forward / GIGA:.1f} GFLOPs"),
        ("training step, per sample", f"{sample.training / GIGA:.1f} GFLOPs"),
        ("training step / forward", f"{sample.training / sample.forward:.2f}"),
        (f"answer, beam {args.beam}, {args.steps} steps", f"{answer / GIGA:.1f} GFLOPs"),
        ("kept for backward, per sample", f"{sample.kept / GIB:.2f} GiB in float32"),
        (f"memory per GPU, batch {args.batch}", f"{memory:.1f} GiB in float32, estimated"),
        ("checkpoint", f"{parameters * SAVED_BYTES / GIB:.1f} GiB, estimated"),
        ("data file", f"{args.rows * args.row_bytes / GIB:.0f} GiB, estimated"),
    ]
    for rate in args.tflops:
        time = hours(sample.training, args.rows, args.epochs, rate, args.gpus)
        rows.append((f"training at {rate:g} TFLOP/s", f"{time:.1f} hours, estimated"))
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def measured_report(args: argparse.Namespace) -> str:
    """Return the seconds per sample on this machine and the rate they amount to."""
    lengths, answer = sample_lengths(args), Answer(args.beam, args.steps)
    counted = build(args.arch)
    operations = {
        "training": sample_cost(counted, lengths, args.layer_weights).training,
        "beam": answer_flops(counted, lengths, answer),
    }
    model = build(args.arch, device=args.device)
    times = measure(model, lengths, answer, args.repeats, args.layer_weights)
    table = [["", "seconds", "GFLOP/s"]]
    for name, seconds in times.items():
        count = operations.get(name.split()[0].rstrip(","))
        rate = f"{count / seconds / GIGA:.0f}" if count else ""
        table.append([name, f"{seconds:.3g}", rate])
    device = args.device
    if torch.device(device).type == "cpu":
        device += f" (threads: {torch.get_num_threads()})"
    return f"{args.arch} on {device}, batch size 1\n{as_text(table)}"
