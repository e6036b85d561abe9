"""Ranges of fairseq's numbers by option, but for those of generation: see ``search.options``."""

import argparse
import ast
from collections.abc import Mapping
from typing import Any

from ofa_exit.ranges import Range, check_ranges, whole
from ofa_exit.spelling import flag

SEEDS = {"seed": whole(0, 2**32 - 1)}  # numpy's
SHARE = Range(0, 1)
# Options of one name have one range, whichever part of a command they belong to.
RANGES = {
    **SEEDS,
    # batches and shards
    **dict.fromkeys(("batch_size", "batch_size_valid", "max_tokens", "max_tokens_valid"), whole(1)),
    **dict.fromkeys(("required_batch_size_multiple", "required_seq_len_multiple"), whole(1)),
    **dict.fromkeys(("num_workers", "data_buffer_size", "shard_id", "curriculum"), whole(0)),
    "num_shards": whole(1),
    # lengths and intervals
    **dict.fromkeys(("max_epoch", "max_update", "save_interval_updates"), whole(0)),
    **dict.fromkeys(("validate_interval_updates", "validate_after_updates"), whole(0)),
    **dict.fromkeys(("validate_interval", "max_valid_steps", "save_interval"), whole(1)),
    **dict.fromkeys(("log_interval", "checkpoint_shard_count"), whole(1)),
    **dict.fromkeys(("keep_interval_updates", "keep_last_epochs"), whole(-1)),
    **dict.fromkeys(("keep_best_checkpoints", "patience"), whole(-1)),
    **dict.fromkeys(("empty_cache_freq", "ema_start_update", "ema_update_freq"), whole(0)),
    "stop_time_hours": Range(0),
    # rates and optimizers
    "stop_min_lr": Range(-1),
    "clip_norm": Range(0),
    "min_loss_scale": Range(0),
    "fp16_init_scale": whole(1),
    **dict.fromkeys(("fp16_scale_window", "amp_init_scale", "amp_scale_window"), whole(1)),
    **dict.fromkeys(("weight_decay", "adam_eps", "adamax_eps", "lr_threshold"), Range(0)),
    **dict.fromkeys(("momentum", "ema_decay", "fp16_scale_tolerance"), SHARE),
    # schedules
    **dict.fromkeys(("warmup_updates", "total_num_update", "end_learning_rate"), Range(0)),
    **dict.fromkeys(("power", "lr_shrink", "lr_decay"), Range(above=0)),
    **dict.fromkeys(("warmup_init_lr", "force_anneal"), Range()),
}
# Parts of a command, and their options that are pairs of numbers.
PARTS = ("common", "dataset", "optimization", "checkpoint", "ema", "optimizer", "lr_scheduler")
_BETAS = ("adam_betas", "adamax_betas")
_BETA = Range(0, below=1)


def check_numbers_of(command: Mapping[str, Any]) -> None:
    """Raise ValueError for numbers of a command's parts that nothing can be done with."""
    for name in PARTS:
        part = command.get(name)
        check_ranges(part, RANGES)
        for option in _BETAS:
            betas = getattr(part, option, None)
            if betas is not None:
                _check_betas(option, betas)
    optimization = command["optimization"]
    for rate in optimization.lr:
        remedy = Range(above=0).remedy(rate)
        if remedy:
            raise ValueError(f"--lr is {rate}: {remedy}, as in 3e-5")
    for steps in optimization.update_freq:
        if steps < 1:
            raise ValueError(f"--update-freq is {steps}: give at least 1")


def _check_betas(option: str, betas: Any) -> None:
    """Check a pair of numbers, or the text of one, which fairseq would run as code."""
    try:
        pair = ast.literal_eval(betas) if isinstance(betas, str) else tuple(betas)
        first, second = pair
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        first = second = None
    if _BETA.remedy(first) or _BETA.remedy(second):
        raise ValueError(
            f"{flag(option)} is {betas!r:.80}: give two numbers of at least 0, less than 1, as in "
            '"(0.9, 0.999)"'
        )


def read_ascii_numbers(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read numbers of plain digits only: Python's take those of every script."""
    parser.register("type", int, _ascii_int)
    parser.register("type", float, _ascii_float)


def _ascii_int(text: str) -> int:
    return int(_plain(text))


def _ascii_float(text: str) -> float:
    return float(_plain(text))


def _plain(text: str) -> str:
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return text
