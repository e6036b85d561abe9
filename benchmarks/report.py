"""Results of a run: tables, verdict on the targets, CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from tabulate import tabulate

from benchmarks.parts import PARTS
from benchmarks.setting import Setting
from benchmarks.timing import quartiles, ratio

MEBI = 2**20
TARGETS = "target (for ofa_base, 480 px, two cores)"
# Speed relative to the reference at batch 1 and from LARGE_BATCH on; the others hold always.
MIN_SPEEDUP_SINGLE, MIN_SPEEDUP_LARGE, LARGE_BATCH = 2.0, 3.0, 8
MAX_TIME_OVER_FLOOR, MIN_SHARE_OF_FLOPS_SAVED, MAX_GATE_COST, MAX_MEMORY = 1.25, 0.95, 0.02, 0.7


@dataclass
class Result:
    """One variant in one setting.

    Args:
        seconds: one number per timed round.
        flop_reduction: share of full depth's FLOPs that the variant saves.
        peak_bytes: memory above the loaded model.
        parts: seconds of each part, medians over extra rounds.
    """

    variant: str
    setting: Setting
    seconds: list[float]
    flop_reduction: Optional[float] = None
    peak_bytes: Optional[int] = None
    parts: dict[str, float] = field(default_factory=dict)

    def saved(self, full: Optional[Result]) -> Optional[float]:
        """Return the share of full depth's time that this variant saves."""
        return None if full is None else 1 - ratio(self.seconds, full.seconds)

    def share(self, full: Optional[Result]) -> Optional[float]:
        """Return the measured saving relative to ``flop_reduction``."""
        saved = self.saved(full)
        if saved is None or not self.flop_reduction:
            return None
        return saved / self.flop_reduction


COLUMNS = (
    *Setting.__dataclass_fields__, "torch", "rounds", "variant", "seconds", "seconds_low",
    "seconds_high", "relative_to_full", "flop_reduction", "measured_time_reduction",
    "share_of_flop_reduction", "peak_mib", *(f"seconds_{part}" for part in PARTS),
)  # fmt: skip


def sibling(results: Sequence[Result], one: Result, variant: str) -> Optional[Result]:
    """Return the result of another variant in the same setting."""
    return next((r for r in results if r.variant == variant and r.setting == one.setting), None)


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the lines of the CSV: medians, quartiles, and numbers derived from them."""
    lines = []
    for result in results:
        full = sibling(results, result, "full")
        low, middle, high = quartiles(result.seconds)
        lines.append(
            {
                **asdict(result.setting),
                "torch": torch.__version__,
                "rounds": len(result.seconds),
                "variant": result.variant,
                "seconds": middle,
                "seconds_low": low,
                "seconds_high": high,
                "relative_to_full": ratio(result.seconds, full.seconds) if full else None,
                "flop_reduction": result.flop_reduction,
                "measured_time_reduction": result.saved(full) if result.flop_reduction else None,
                "share_of_flop_reduction": result.share(full),
                "peak_mib": None if result.peak_bytes is None else result.peak_bytes / MEBI,
                **{f"seconds_{part}": seconds for part, seconds in result.parts.items()},
            }
        )
    return lines


def write_csv(results: Sequence[Result], path: Path) -> None:
    """Write the CSV atomically."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows(results):
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    os.replace(partial, path)


def heading(setting: Setting, rounds: int, warm_up: int) -> str:
    """Describe the conditions of the measurement."""
    encoder = "joint" if setting.joint else "split"
    return (
        f"{setting.arch}, {encoder} encoder, {setting.image_size} px, {setting.text_length} source "
        f"tokens, {setting.steps} steps, {setting.vocabulary} words, {setting.dtype} on "
        f"{setting.device}, seed {setting.seed}; {setting.clock} clock, {setting.threads} threads, "
        f"torch {torch.__version__}, medians of {rounds} rounds after {warm_up} warm-up rounds"
    )


def table(results: Sequence[Result]) -> str:
    """Format times, memory and savings, one block per setting."""
    headers = (
        "variant", "seconds", "quartiles", "× full", "FLOPs saved", "time saved", "share",
        "peak MiB",
    )  # fmt: skip
    blocks = []
    for setting in dict.fromkeys(result.setting for result in results):
        own = [result for result in results if result.setting == setting]
        lines = [
            (
                row["variant"],
                f"{row['seconds']:.4g}",
                f"{row['seconds_low']:.4g}–{row['seconds_high']:.4g}",
                _format(row["relative_to_full"], "{:.3f}"),
                _format(row["flop_reduction"], "{:.1%}"),
                _format(row["measured_time_reduction"], "{:.1%}"),
                _format(row["share_of_flop_reduction"], "{:.2f}"),
                _format(row["peak_mib"], "{:.0f}"),
            )
            for row in rows(own)
        ]
        blocks.append(f"{setting}\n{_align(headers, lines)}")
    return "\n\n".join(blocks)


def parts_table(results: Sequence[Result]) -> str:
    """Format the milliseconds of each part, from the rounds with timers."""
    blocks = []
    for setting in dict.fromkeys(result.setting for result in results if result.parts):
        own = [r for r in results if r.setting == setting and r.parts]
        headers = ("milliseconds", *(result.variant for result in own))
        lines = [(part, *(f"{1000 * r.parts[part]:.1f}" for r in own)) for part in PARTS]
        lines.append(("total", *(f"{1000 * sum(r.parts.values()):.1f}" for r in own)))
        blocks.append(f"{setting}\n{_align(headers, lines)}")
    return "\n\n".join(blocks)


def verdict(results: Sequence[Result]) -> list[tuple[str, str, str, str]]:
    """Return (target, measured, limit, met or MISSED) for every target that this run covers."""
    lines = []

    def judge(what: str, measured: float, form: str, sign: str, limit: float) -> None:
        met = measured >= limit if sign == "≥" else measured <= limit
        limit_text = f"{sign} {form.format(limit)}"
        lines.append((what, form.format(measured), limit_text, "met" if met else "MISSED"))

    for full in (result for result in results if result.variant == "full"):
        batch, where = full.setting.batch_size, str(full.setting)
        reference, floor = (sibling(results, full, name) for name in ("reference", "floor"))
        gated = sibling(results, full, "gated")
        if reference and (batch == 1 or batch >= LARGE_BATCH):
            limit = MIN_SPEEDUP_SINGLE if batch == 1 else MIN_SPEEDUP_LARGE
            speedup = ratio(reference.seconds, full.seconds)
            judge(f"{where}: speedup of full over the reference", speedup, "{:.2f} ×", "≥", limit)
        if floor:
            above = ratio(full.seconds, floor.seconds)
            what = f"{where}: time of full over the floor"
            judge(what, above, "{:.2f} ×", "≤", MAX_TIME_OVER_FLOOR)
        for result in results:
            share = result.share(full) if result.setting == full.setting else None
            if share is not None:
                what = f"{where}: {result.variant}, measured share of its FLOPs saved"
                judge(what, share, "{:.0%}", "≥", MIN_SHARE_OF_FLOPS_SAVED)
        if gated:
            cost = ratio(gated.seconds, full.seconds) - 1
            judge(f"{where}: cost of gates that never exit", cost, "{:.1%}", "≤", MAX_GATE_COST)
        if reference and batch >= LARGE_BATCH and reference.peak_bytes and full.peak_bytes:
            memory = full.peak_bytes / reference.peak_bytes
            judge(f"{where}: peak memory over the reference", memory, "{:.2f} ×", "≤", MAX_MEMORY)
    return lines


def verdict_table(results: Sequence[Result]) -> str:
    """Format the verdict; empty if the run covers no target."""
    lines = verdict(results)
    return _align((TARGETS, "measured", "limit", ""), lines) if lines else ""


def _align(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return tabulate(
        lines,
        headers,
        tablefmt="plain",
        disable_numparse=True,
        colalign=("left", *["right"] * (len(headers) - 1)),
    )


def _format(value: Optional[float], form: str) -> str:
    return "" if value is None else form.format(value)
