"""Options of fairseq's commands and of OFA's scripts, checked before anything is read."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

import torch
from fairseq import utils

from ofa_exit.plugin.command_ranges import SEEDS, check_numbers_of
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.outputs import check_log, inputs_of
from ofa_exit.plugin.saved_arguments import parse_overrides, resolved
from ofa_exit.plugin.trained_options import OFFICIAL_KINDS
from ofa_exit.ranges import check_ranges
from ofa_exit.regular_files import check_output
from ofa_exit.spelling import nearest

# Options of OFA's scripts that do not exist here, and what to give instead.
OFFICIAL_OPTIONS = {
    "--eval-cider-cached-tokens": "CIDEr counts the words of the validation file: leave it out",
    "--scst-cider-cached-tokens": "give --cider-frequencies FILE.npz, which ofa-exit "
    "document-frequencies makes of the training file",
    "--valid-batch-size": "all candidates of an answer are scored in one pass: leave it out",
    "--unconstrained-training": "leave --ans2label-file out: any words are learned then",
    "--zero-shot": "a checkpoint that was not fine-tuned needs no flag: leave it out",
    "--train_mue": "give --split-modalities --criterion mue_loss",
    "--img_thres": "give --exit-policy similarity --exit-image-threshold THRESHOLD",
    "--txt_thres": "give --exit-policy similarity --exit-text-threshold THRESHOLD",
    "--decoder_thres": "give --exit-policy similarity --exit-decoder-threshold THRESHOLD",
}
# Names in OFA's scripts of what has another name here.
OFFICIAL_NAMES = {
    "--task": {name: f"mue_{kind}" for name, kind in OFFICIAL_KINDS.items()},
    "--criterion": {
        "scst_reward_criterion": "--criterion mue_scst --scst-baseline mean",
        "MuE_Task_Loss": "mue_loss",
    },
}
# What OFA's evaluate_*.sh say of the data in --model-overrides.
_OVERRIDES_OF_DATA = ("bpe_dir", "selected_cols", "ans2label_file")


class _OfficialOption(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        remedy = OFFICIAL_OPTIONS[option_string]
        raise UsageError(f"OFA's option {option_string} is unsupported: {remedy}")


def add_official_options(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` reject options of OFA's scripts with what to give instead."""
    for option in OFFICIAL_OPTIONS:
        parser.add_argument(
            option,
            action=_OfficialOption,
            nargs="?",
            dest=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def reject_names(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Reject an unknown task or criterion on one line, and fairseq-interactive without a task.

    argparse would print all options and all names. fairseq-interactive has a default task, which
    looks for a language pair.

    Raises:
        UsageError: which names what to use.
    """
    names = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--user-dir", *OFFICIAL_NAMES):
        names.add_argument(option)
    given, _ = names.parse_known_args(arguments)
    utils.import_user_module(given)  # as fairseq does next: it may register names
    if given.task is None:  # a task of ours rejects it itself
        reject_interactive(parser)
    for option, official in OFFICIAL_NAMES.items():
        name = getattr(given, option.removeprefix("--"))
        action = parser._option_string_actions.get(option)
        if name is None or action is None or name in (action.choices or ()):
            continue
        known = sorted(action.choices or ())
        instead = official.get(name) or nearest(name, known)
        hint = f"use {instead}" if instead else "add --help for a list"
        if option == "--task" and not instead:
            hint = f"the tasks are {', '.join(one for one in known if one.startswith('mue_'))}"
        raise UsageError(f"{option} {name} is unknown: {hint}")


def reject_interactive(parser: argparse.ArgumentParser) -> None:
    """Raise UsageError if ``parser`` is that of fairseq-interactive."""
    options = parser._option_string_actions
    if "--buffer-size" in options and "--input" in options:
        raise UsageError(
            "fairseq-interactive reads lines of text, and OFA needs images: use "
            "ofa-exit predict TASK IMAGE … --checkpoint CHECKPOINT"
        )


def check_command(command: Any) -> None:
    """Raise ValueError for options of fairseq's command that no task can work with."""
    check_numbers_of(command)
    shards, shard = command.dataset.num_shards, command.dataset.shard_id
    if shard >= shards:
        some = "give 0, or the number of shards by --num-shards"
        remedy = some if shards == 1 else f"give 0 to {shards - 1} of {shards} shards"
        raise ValueError(f"--shard-id {shard}: {remedy}")


def check_early_options(args: Any) -> None:
    """Raise ValueError for options that fairseq's commands act on before they set up the task.

    They seed numpy. fairseq-generate stops at an assertion for ``--sampling`` with other than
    ``--beam`` hypotheses, and empties the file of ``--results-path``, which may be an input or no
    regular file.
    """
    check_ranges(args, SEEDS)
    if getattr(args, "sampling", False) and args.nbest != args.beam:
        raise ValueError(
            f"--sampling draws --beam {args.beam} hypotheses, and --nbest is {args.nbest}: give "
            f"--nbest {args.beam}"
        )
    folder = getattr(args, "results_path", None)
    if folder is not None:
        written = os.path.join(folder, f"generate-{getattr(args, 'gen_subset', 'test')}.txt")
        trace = getattr(args, "exit_trace", None)
        if trace is not None and os.path.realpath(trace) == os.path.realpath(written):
            raise ValueError(
                f"--exit-trace and --results-path both write {written}. Name another trace"
            )
        check_output("--results-path:", written, [inputs_of(args), trace])
    check_log(args)


def check_precision(common: Any) -> None:
    """Raise ValueError for a training with ``--fp16`` on a CPU.

    fairseq would end in torch's error of a missing device: it keeps the float32 weights as one
    tensor for each CUDA device, unless ``--fp16-no-flatten-grads`` is given.
    """
    is_on_cuda = torch.cuda.is_available() and not common.cpu
    is_flat = not (common.memory_efficient_fp16 or common.fp16_no_flatten_grads)
    if common.fp16 and is_flat and not is_on_cuda:
        raise ValueError(
            "--fp16 trains on CUDA only. On a CPU give --memory-efficient-fp16 or --amp, or leave "
            "it out"
        )


def take_overrides(cfg: Any) -> None:
    """Set options of the data that are given only in ``--model-overrides``, as by OFA's scripts.

    Raises:
        ValueError: ``--model-overrides`` is not a dictionary.
    """
    text = resolved(cfg.model_overrides)
    overrides = parse_overrides(text) if text else {}
    for name in _OVERRIDES_OF_DATA:
        if name in overrides and getattr(cfg, name, "") is None:
            setattr(cfg, name, overrides[name])
