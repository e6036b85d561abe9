"""Quality after each decoder layer: overthinking, mid-crisis, and where to put exits."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofa_exit.evaluation.figures.plots import new_figure, number, save_figure

# The two curves of a CSV, in its column `run`.
LAYERS, EXITS = "decoder stopped behind the layer", "exit behind the layer"
RISING, MID_CRISIS, OVERTHINKING = "rising", "mid-crisis", "overthinking"
Curve = dict[int, float]
"""Decoder layer, from 1, -> quality."""


def read_curves(path: str | os.PathLike[str], quality: str) -> dict[str, Curve]:
    """The curves of the CSV by their `run`, layers in order; LAYERS is there and complete.

    Raises ValueError with file, line, column and remedy.
    """
    curves: dict[str, Curve] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [
            name for name in ("run", "layer", quality) if name not in (reader.fieldnames or [])
        ]
        if missing:
            raise ValueError(
                f"{path}, line 1: no column {', '.join(missing)} among "
                f"{', '.join(reader.fieldnames or ['nothing'])}: name the quality column by "
                "--quality, and measure the CSV by ofa-exit layers"
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            layer = number(row["layer"], "layer", where)
            curve = curves.setdefault(row["run"], {})
            if layer != int(layer) or layer < 1 or int(layer) in curve:
                raise ValueError(
                    f"{where}, column layer: {row['layer']!r} is no layer, or comes twice"
                )
            curve[int(layer)] = number(row[quality], quality, where)
    curve = curves.get(LAYERS, {})
    if len(curve) < 2 or sorted(curve) != list(range(1, len(curve) + 1)):
        raise ValueError(
            f"{path}: the run {LAYERS!r} should have every layer from 1 and has "
            f"{sorted(curve) or 'none'}: measure it again"
        )
    return {run: dict(sorted(curve.items())) for run, curve in curves.items()}


def check_share(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"the share is {share}: give a number above 0, at most 1")
    return share


def judge(curve: Mapping[int, float], share: float = 1.0) -> dict[int, str]:
    """What each layer does to the quality Q of stopping behind it (BLIPEE Sections 1 and 3.1).

    Layer k falls if Q(k) < share · M(k), M(k) = max over j ≤ k of Q(j): what an earlier layer knew
    is lost. It is in *mid-crisis* if a later layer finds it again, that is if Q(l) ≥ share · M(k)
    for an l > k, and *overthinking* if none does (Kaya et al. 2019). Any other layer is *rising*.
    share: above 0, at most 1; below 1 forgives small drops, which a small test set makes by chance.

    The paper shows both phenomena in Figure 2 and defines neither in numbers: this is ours.
    Raises ValueError on another share.
    """
    check_share(share)
    verdicts, best = {}, -float("inf")
    for layer, quality in sorted(curve.items()):
        best = max(best, quality)
        # A quality may be below zero; a share of it would be above it.
        wanted = share * best if best > 0 else best
        later = [q for number, q in curve.items() if number > layer]
        if quality >= wanted:
            verdicts[layer] = RISING
        else:
            verdicts[layer] = (
                MID_CRISIS if max(later, default=-float("inf")) >= wanted else OVERTHINKING
            )
    return verdicts


def choose_exits(
    curve: Mapping[int, float], share: float = 1.0, count: int | None = None
) -> list[int]:
    """Layers to put exits behind: those that rise (see ``judge``), but for the last of the model.

    count: how many, spread evenly over the candidates; None takes all. Raises ValueError where
    there are fewer, or none.
    """
    verdicts = judge(curve, share)
    candidates = [layer for layer in sorted(curve)[:-1] if verdicts[layer] == RISING]
    if count is None:
        count = len(candidates)
    if not 1 <= count <= len(candidates):
        raise ValueError(
            f"{count} exits are asked for, and {len(candidates)} layers before the last are at "
            f"{share:g} or more of the best before them: ask for at least 1 and at most that, or "
            "lower the share"
        )
    return [candidates[(2 * i + 1) * len(candidates) // (2 * count)] for i in range(count)]


def describe(curves: Mapping[str, Curve], quality: str, share: float, count: int | None) -> str:
    """A table of the layers with their verdicts, and the option to train the exits with."""
    curve = curves[LAYERS]
    verdicts, exits = judge(curve, share), curves.get(EXITS, {})
    lines = [f"layer {quality:>10}" + f" {'its exit':>10}" * bool(exits)]
    for layer, value in curve.items():
        beside = f" {exits[layer]:10.2f}" if layer in exits else " " * 11 * bool(exits)
        remark = "" if verdicts[layer] == RISING else verdicts[layer]
        lines.append(f"{layer:5} {value:10.2f}{beside}  {remark}".rstrip())
    best, last = max(curve, key=curve.__getitem__), max(curve)
    if curve[best] > curve[last]:
        lines.append(
            f"best behind layer {best}: the layers after it cost {curve[best] - curve[last]:.2f} "
            f"{quality} (overthinking)"
        )
    chosen = ",".join(map(str, choose_exits(curve, share, count)))
    return "\n".join([*lines, f"--exit-layers {chosen}"])


def plot_layers(
    curves: Mapping[str, Curve], quality: str, out: str | os.PathLike[str], share: float = 1.0
) -> list[Path]:
    """Draws the curves to OUT.png and OUT.svg (BLIPEE Figure 2); layers that fall are marked.

    ImportError where matplotlib is absent.
    """
    figure = new_figure(5.2, 3.6)
    axis: Any = figure.subplots()
    for run, curve in curves.items():
        axis.plot(list(curve), list(curve.values()), marker="o", label=run)
    curve = curves[LAYERS]
    verdicts = judge(curve, share)
    for verdict, marker in ((MID_CRISIS, "x"), (OVERTHINKING, "s")):
        fallen = [layer for layer in curve if verdicts[layer] == verdict]
        if fallen:
            heights = [curve[layer] for layer in fallen]
            axis.plot(
                fallen, heights, marker, label=verdict,
                color="black", markersize=11, markerfacecolor="none",
            )  # fmt: skip
    axis.axhline(curve[max(curve)], color="grey", linestyle=":", label="full depth")
    axis.set_xticks(list(curve)[:: 1 + len(curve) // 16])
    axis.set_xlabel("decoder layer")
    axis.set_ylabel(quality)
    axis.grid(True, alpha=0.3)
    axis.legend()
    return save_figure(figure, out)
