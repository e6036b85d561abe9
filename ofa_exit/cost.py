"""``python -m ofa_exit.cost --rows N``: what training a model once costs, before it is run.

Counted, nothing is computed or allocated: a training step of ``mue_loss`` on tensors without values
gives the operations (a multiply-add is 2) and the bytes that the backward pass keeps, for batches
of 1 and 2, whose difference is the cost of a sample. Derived from them, for the rates that are
given: hours, memory and disk.

    hours = operations of a sample · rows · epochs / (TFLOP/s · 10¹² · 3600 · GPUs)
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ofa_exit.evaluation.flops import stem_cost
from ofa_exit.models.archs import ARCHS
from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.criterions import MuELoss
from ofa_exit.verify import dictionary_of

GIB, GIGA = 2**30, 1e9
VOCABULARY = 59_457  # OFA's: words, 8,192 image codes, 1,000 position bins
# Bytes of a parameter in training: weight, gradient and Adam's two moments, in float32.
STATE_BYTES = 16
# Bytes of a parameter in a checkpoint: weight and the moments.
SAVED_BYTES = 12


@dataclass(frozen=True)
class StepCost:
    """One step over a batch."""

    forward: int  # operations
    training: int  # operations, forward and backward
    kept: int  # bytes kept for the backward pass, parameters left out


@dataclass(frozen=True)
class Lengths:
    """What a sample is made of: pixels of a picture's side, words of source and target."""

    size: int
    source: int
    target: int


def build(arch: str, **options: Any) -> OFAModel:
    """The model, split and without weights, with OFA's vocabulary."""
    task = Namespace(target_dictionary=dictionary_of(VOCABULARY))
    arguments = {**ARCHS[arch], "split_modalities": True, **options}
    with torch.device("meta"):
        return OFAModel.build_model(Namespace(**arguments), task)


def step_cost(model: OFAModel, rows: int, lengths: Lengths, layer_weights: str) -> StepCost:
    """Counts one training step over ``rows`` samples, on the model's device."""
    device = next(model.parameters()).device
    words = torch.full((rows, lengths.target), 5, device=device)
    net_input = {
        "src_tokens": torch.full((rows, lengths.source), 5, device=device),
        "src_lengths": torch.full((rows,), lengths.source, device=device),
        "patch_images": torch.zeros(rows, 3, lengths.size, lengths.size, device=device),
        "patch_masks": torch.ones(rows, dtype=torch.bool, device=device),
        "prev_output_tokens": words,
    }
    sample = {"net_input": net_input, "target": words, "ntokens": words.numel(), "nsentences": rows}
    task = Namespace(target_dictionary=model.decoder.dictionary)
    criterion = MuELoss(task, 0.1, layer_weights, 0.0, 0, False, False)
    weights = {_storage(tensor) for tensor in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor  # alive, so that no other takes its address
        return tensor

    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _, _ = criterion(model, sample)
        forward = counter.get_total_flops()
        held = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        loss.backward()
    model.zero_grad()
    return StepCost(forward, counter.get_total_flops(), held)


def sample_cost(model: OFAModel, lengths: Lengths, layer_weights: str = "uniform") -> StepCost:
    """What one more sample adds to a batch, without the position biases, which a batch shares."""
    one, two = (step_cost(model.train(), rows, lengths, layer_weights) for rows in (1, 2))
    return StepCost(two.forward - one.forward, two.training - one.training, two.kept - one.kept)


def hours(operations: float, rows: int, epochs: float, tflops: float, gpus: int) -> float:
    """Time of ``rows`` samples ``epochs`` times, at ``tflops`` sustained by each of ``gpus``."""
    return operations * rows * epochs / (tflops * 1e12 * 3600 * gpus)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ofa_exit.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    real: dict[str, Any] = {"type": float, "metavar": "X"}
    parser.add_argument("--rows", required=True, **number, help="rows of the training file")
    parser.add_argument("--epochs", default=5, **real, help="default: %(default)s, as in MuE")
    parser.add_argument("--arch", default="ofa_base", choices=ARCHS, help="default: %(default)s")
    for flag, default, what in (
        ("--patch-image-size", 480, "side of the pictures in pixels"),
        ("--source-length", 8, "words of the source, start and end included"),
        ("--target-length", 12, "words of the target, end included"),
        ("--batch", 8, "samples that a GPU holds at a time"),
        ("--gpus", 1, "GPUs"),
    ):
        parser.add_argument(flag, default=default, **number, help=f"{what} (default: %(default)s)")
    parser.add_argument("--layer-weights", default="uniform", help="as in training")
    parser.add_argument(
        "--tflops",
        default=[20, 50, 100],
        nargs="+",
        **real,
        help="TFLOP/s that a GPU sustains, a number for each hypothesis (default: 20 50 100)",
    )
    parser.add_argument(
        "--row-bytes", default=220_000, **number, help="of the data file (default: %(default)s)"
    )
    parser.add_argument("--checkpoint-activations", action="store_true", help="as in training")
    return parser


def report(given: argparse.Namespace) -> str:
    """The counts, and what follows from them."""
    lengths = Lengths(given.patch_image_size, given.source_length, given.target_length)
    model = build(given.arch, checkpoint_activations=given.checkpoint_activations)
    one = sample_cost(model, lengths, given.layer_weights)
    stem = stem_cost(model.encoder.embed_images, (lengths.size, lengths.size))
    parameters = sum(tensor.numel() for tensor in model.parameters())
    memory = (parameters * STATE_BYTES + given.batch * one.kept) / GIB
    rows = [
        ("parameters", f"{parameters / 1e6:.1f} million"),
        ("picture", f"{stem.tokens} tokens, stem {stem.flops / GIGA:.1f} GFLOPs"),
        ("forward, a sample", f"{one.forward / GIGA:.1f} GFLOPs"),
        ("training step, a sample", f"{one.training / GIGA:.1f} GFLOPs"),
        ("  of the forward pass", f"{one.training / one.forward:.2f} times"),
        ("kept for backward, a sample", f"{one.kept / GIB:.2f} GiB in float32"),
        (f"memory of a GPU, batch {given.batch}", f"{memory:.1f} GiB in float32, estimated"),
        ("checkpoint", f"{parameters * SAVED_BYTES / GIB:.1f} GiB, estimated"),
        ("data file", f"{given.rows * given.row_bytes / GIB:.0f} GiB, estimated"),
    ]
    for rate in given.tflops:
        time = hours(one.training, given.rows, given.epochs, rate, given.gpus)
        rows.append((f"training at {rate:g} TFLOP/s", f"{time:.1f} hours, estimated"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    given = parser.parse_args(arguments)
    numbers = [given.rows, given.epochs, given.batch, given.gpus, given.row_bytes, *given.tflops]
    numbers += [given.patch_image_size, given.source_length, given.target_length]
    if min(numbers) <= 0:
        parser.error("numbers of rows, pixels, words, GPUs and operations are above 0")
    try:
        print(report(given))
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
