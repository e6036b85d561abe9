"""What a run found: table, verdict on the targets, CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch

from benchmarks.parts import PARTS
from benchmarks.setting import Setting
from benchmarks.timing import quartiles, ratio

MEBI = 2**20
# The targets, as (what, limit): at batch 1 and from batch 8 on.
FASTER_ALONE, FASTER_IN_BATCHES, LARGE_BATCH = 2.0, 3.0, 8
ABOVE_FLOOR, SHARE_SAVED, GATE_COST, MEMORY = 1.25, 0.95, 0.02, 0.7


@dataclass
class Result:
    """One variant in one setting.

    seconds: one number a round; flop_reduction: of a pattern of depths; peak_bytes: memory above
    that of the loaded model; parts: seconds of each part, medians of separate rounds.
    """

    variant: str
    setting: Setting
    seconds: list[float]
    flop_reduction: Optional[float] = None
    peak_bytes: Optional[int] = None
    parts: dict[str, float] = field(default_factory=dict)

    def saved(self, full: Optional[Result]) -> Optional[float]:
        """Share of full depth's time that this variant does without."""
        return None if full is None else 1 - ratio(self.seconds, full.seconds)

    def share(self, full: Optional[Result]) -> Optional[float]:
        """Share of flop_reduction that the clock saw."""
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
    """The result of another variant in the same setting."""
    found = (r for r in results if r.variant == variant and r.setting == one.setting)
    return next(found, None)


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The CSV's lines: medians with quartiles, and what is derived from them."""
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
    """Writes the lines whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows(results):
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    os.replace(partial, path)


def heading(setting: Setting, rounds: int, warm_up: int) -> str:
    """Under which conditions the numbers were taken."""
    encoder = "joint" if setting.joint else "split"
    return (
        f"{setting.arch}, {encoder} encoder, {setting.image_size} px, {setting.text_length} source "
        f"tokens, {setting.steps} steps, {setting.vocabulary} words, {setting.dtype} on "
        f"{setting.device}, seed {setting.seed}; {setting.clock} clock, {setting.threads} threads, "
        f"torch {torch.__version__}, medians of {rounds} rounds after {warm_up} to warm up"
    )


def table(results: Sequence[Result]) -> str:
    """Times, memory and savings for people; a block a setting."""
    header = (
        "variant", "seconds", "quartiles", "× full", "FLOPs saved", "time saved", "share",
        "peak MiB",
    )  # fmt: skip
    blocks = []
    for setting in dict.fromkeys(result.setting for result in results):
        own = [result for result in results if result.setting == setting]
        lines = [
            header,
            *(
                (
                    row["variant"],
                    f"{row['seconds']:.4g}",
                    f"{row['seconds_low']:.4g}–{row['seconds_high']:.4g}",
                    _shown(row["relative_to_full"], "{:.3f}"),
                    _shown(row["flop_reduction"], "{:.1%}"),
                    _shown(row["measured_time_reduction"], "{:.1%}"),
                    _shown(row["share_of_flop_reduction"], "{:.2f}"),
                    _shown(row["peak_mib"], "{:.0f}"),
                )
                for row in rows(own)
            ),
        ]
        blocks.append(f"{setting}\n{aligned(lines)}")
    return "\n\n".join(blocks)


def parts_table(results: Sequence[Result]) -> str:
    """Milliseconds of each part, from the rounds that carried timers."""
    blocks = []
    for setting in dict.fromkeys(result.setting for result in results if result.parts):
        own = [r for r in results if r.setting == setting and r.parts]
        lines = [("milliseconds", *(result.variant for result in own))]
        lines += [(part, *(f"{1000 * r.parts[part]:.1f}" for r in own)) for part in PARTS]
        lines.append(("total", *(f"{1000 * sum(r.parts.values()):.1f}" for r in own)))
        blocks.append(f"{setting}\n{aligned(lines)}")
    return "\n\n".join(blocks)


def verdict(results: Sequence[Result]) -> list[tuple[str, str, str, str]]:
    """(what, measured, target, met or not) of every target that this run can judge."""
    lines = []

    def judge(what: str, measured: float, shown: str, sign: str, limit: float) -> None:
        met = measured >= limit if sign == "≥" else measured <= limit
        target = shown.format(limit)
        lines.append((what, shown.format(measured), f"{sign} {target}", "met" if met else "MISSED"))

    for full in (result for result in results if result.variant == "full"):
        batch, where = full.setting.batch_size, str(full.setting)
        reference, floor = (sibling(results, full, name) for name in ("reference", "floor"))
        gated = sibling(results, full, "gated")
        if reference and (batch == 1 or batch >= LARGE_BATCH):
            limit = FASTER_ALONE if batch == 1 else FASTER_IN_BATCHES
            faster = ratio(reference.seconds, full.seconds)
            judge(f"{where}: full faster than the reference", faster, "{:.2f} ×", "≥", limit)
        if floor:
            above = ratio(full.seconds, floor.seconds)
            judge(f"{where}: full above the floor", above, "{:.2f} ×", "≤", ABOVE_FLOOR)
        for result in results:
            share = result.share(full) if result.setting == full.setting else None
            if share is not None:
                what = f"{where}: {result.variant}, share of its FLOPs saved"
                judge(what, share, "{:.0%}", "≥", SHARE_SAVED)
        if gated:
            cost = ratio(gated.seconds, full.seconds) - 1
            judge(f"{where}: cost of gates that stay shut", cost, "{:.1%}", "≤", GATE_COST)
        if reference and batch >= LARGE_BATCH and reference.peak_bytes and full.peak_bytes:
            memory = full.peak_bytes / reference.peak_bytes
            judge(f"{where}: peak memory of the reference's", memory, "{:.2f} ×", "≤", MEMORY)
    return lines


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns under each other, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if number == 0 else text.rjust(width)
            for number, (text, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def _shown(value: Optional[float], form: str) -> str:
    return "" if value is None else form.format(value)
