"""Quality after each decoder layer: overthinking, mid-crisis, and where to put exits."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofa_exit.evaluation.figures.csv_rows import number, read_rows
from ofa_exit.evaluation.figures.plots import new_figure, save_figure

# The two curves of a CSV, in its column `run`.
LAYERS, EXITS = "decoder stopped after the layer", "exit after the layer"
# Their names in CSV files of the previous release.
OLD_NAMES = {"decoder stopped behind the layer": LAYERS, "exit behind the layer": EXITS}
RISING, MID_CRISIS, OVERTHINKING = "rising", "mid-crisis", "overthinking"
Curve = dict[int, float]
"""Decoder layer, from 1, -> quality."""


def read_curves(path: str | os.PathLike[str], quality: str) -> dict[str, Curve]:
    """Return the curves of the CSV by their `run`, layers in order; LAYERS has every layer.

    Raises ValueError with file, line, column and remedy.
    """
    curves: dict[str, Curve] = {}
    remedy = "Name the quality column with --quality, and measure the CSV with ofa-exit layers"
    for where, row in read_rows(path, ["run", "layer", quality], remedy):
        layer = number(row["layer"], "layer", where)
        curve = curves.setdefault(OLD_NAMES.get(row["run"], row["run"]), {})
        if layer != int(layer) or layer < 1 or int(layer) in curve:
            raise ValueError(
                f"{where}, column layer: {row['layer']!r} is not a layer, or it comes twice"
            )
        curve[int(layer)] = number(row[quality], quality, where)
    curve = curves.get(LAYERS, {})
    if len(curve) < 2 or sorted(curve) != list(range(1, len(curve) + 1)):
        raise ValueError(
            f"{path}: the run {LAYERS!r} should have every layer from 1 and has "
            f"{sorted(curve) or 'none'}. Measure it again"
        )
    return {run: dict(sorted(curve.items())) for run, curve in curves.items()}


def check_share(share: float) -> float:
    """Return ``share``. Raises ValueError if it is not above 0 and at most 1."""
    if not 0 < share <= 1:
        raise ValueError(f"the share is {share}. Give a number above 0, at most 1")
    return share


def judge(curve: Mapping[int, float], share: float = 1.0) -> dict[int, str]:
    """Return what each layer does to Q, the quality of exits after it (BLIPEE Sections 1 and 3.1).

    Layer k falls if Q(k) < share · M(k), where M(k) = max over j ≤ k of Q(j). It is in *mid-crisis*
    if a later layer recovers, that is if Q(l) ≥ share · M(k) for some l > k. It is *overthinking*
    if none does (Kaya et al. 2019). Any other layer is *rising*.

    Differs from the paper: Figure 2 shows both phenomena, but no numbers define them.

    Args:
        share: above 0, at most 1. Below 1 it forgives small drops, which a small test set has by
            chance. Raises ValueError for others.
    """
    check_share(share)
    verdicts, best = {}, -float("inf")
    for layer, quality in sorted(curve.items()):
        best = max(best, quality)
        # A share of a negative quality would be above it.
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
    """Return the layers to place exits after: the rising ones (see `judge`) before the last.

    Args:
        count: number of exits, spread evenly over the candidates; None takes all. Raises ValueError
            if there are fewer candidates, or none.
    """
    verdicts = judge(curve, share)
    candidates = [layer for layer in sorted(curve)[:-1] if verdicts[layer] == RISING]
    if count is None:
        count = len(candidates)
    if not 1 <= count <= len(candidates):
        raise ValueError(
            f"{count} exits are asked for, and {len(candidates)} layers before the last reach "
            f"{share:g} of the best before them. Ask for 1 to that many, or lower the share"
        )
    return [candidates[(2 * i + 1) * len(candidates) // (2 * count)] for i in range(count)]


def describe(curves: Mapping[str, Curve], quality: str, share: float, count: int | None) -> str:
    """Return a table of the layers with their verdicts, and the option to train the exits with."""
    curve = curves[LAYERS]
    verdicts, exits = judge(curve, share), curves.get(EXITS, {})
    lines = [f"layer {quality:>10}" + f" {'its exit':>10}" * bool(exits)]
    for layer, value in curve.items():
        own_exit = f" {exits[layer]:10.2f}" if layer in exits else " " * 11 * bool(exits)
        remark = "" if verdicts[layer] == RISING else verdicts[layer]
        lines.append(f"{layer:5} {value:10.2f}{own_exit}  {remark}".rstrip())
    best, last = max(curve, key=curve.__getitem__), max(curve)
    if curve[best] > curve[last]:
        lines.append(
            f"best after layer {best}: the layers after it cost {curve[best] - curve[last]:.2f} "
            f"{quality} (overthinking)"
        )
    chosen = ",".join(map(str, choose_exits(curve, share, count)))
    return "\n".join([*lines, f"--exit-layers {chosen}"])


def plot_layers(
    curves: Mapping[str, Curve], quality: str, out: str | os.PathLike[str], share: float = 1.0
) -> list[Path]:
    """Draw the curves to OUT.png and OUT.svg (BLIPEE Figure 2), and mark layers that fall.

    Return these paths. Raises ImportError if matplotlib is missing.
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
