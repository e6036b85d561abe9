"""Cases as a figure, for papers: images with the words of every method in the layers' colours."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ofa_exit.evaluation.figures.cases import Answer, Case, layer_colours
from ofa_exit.evaluation.figures.plots import new_figure, save_figure

WIDTH, IMAGE_INCHES, LINE_INCHES = 9.0, 1.5, 0.24
CHARACTERS_PER_LINE = 78
Piece = tuple[str, dict[str, Any]]
"""A text and matplotlib's properties of it."""


def plot_cases(cases: Sequence[Case], depth: int, out: str | os.PathLike[str]) -> list[Path]:
    """Draw OUT.png and OUT.svg; return the paths. ``depth``: decoder layers, for the colours.

    Raises ImportError if matplotlib is missing.
    """
    return save_figure(_figure(cases, depth), out)


def _figure(cases: Sequence[Case], depth: int) -> Any:
    legend = [_coloured(f"layer {layer}", layer, depth) for layer in range(1, depth + 1)]
    blocks = [[legend], *(_lines(case, depth) for case in cases)]
    heights = [max(IMAGE_INCHES * bool(n), LINE_INCHES * len(b)) for n, b in enumerate(blocks)]
    figure = new_figure(WIDTH, sum(heights) + 0.15 * len(blocks))
    grid = figure.add_gridspec(
        len(blocks), 2, width_ratios=[IMAGE_INCHES, WIDTH - IMAGE_INCHES], height_ratios=heights
    )
    for number, lines in enumerate(blocks):
        left, right = (figure.add_subplot(grid[number, column]) for column in (0, 1))
        for axis in (left, right):
            axis.set_axis_off()
        image = cases[number - 1].image if number else None
        if image is not None:
            _show_image(left, image)
        _show_lines(right, lines)
    return figure


def _lines(case: Case, depth: int) -> list[list[Piece]]:
    """Return the lines beside an image: source, references, and the answers' words, wrapped."""
    grey = {"color": "#555555"}
    texts = [case.source, *case.references]
    lines: list[list[Piece]] = []
    for text in filter(None, texts):
        lines += _wrapped([(word, grey) for word in text.split()])
    for answer in case.answers:
        lines += _wrapped([(f"{answer.method}:", {"weight": "bold"}), *_words(answer, depth)])
    return lines


def _words(answer: Answer, depth: int) -> list[Piece]:
    words = answer.words
    return [_coloured(w.text.strip(), w.layer, depth) for w in words if w.text.strip()]


def _coloured(text: str, layer: int, depth: int) -> Piece:
    background, colour = layer_colours(layer, depth)
    box = {"facecolor": background, "edgecolor": "#cccccc", "linewidth": 0.5, "pad": 1.8}
    return text, {"color": colour, "bbox": box}


def _wrapped(pieces: Sequence[Piece]) -> list[list[Piece]]:
    lines: list[list[Piece]] = [[]]
    for piece in pieces:
        used = sum(len(text) + 1 for text, _ in lines[-1])
        if lines[-1] and used + len(piece[0]) > CHARACTERS_PER_LINE:
            lines.append([])
        lines[-1].append(piece)
    return lines


def _show_image(axis: Any, image: bytes) -> None:
    from matplotlib.image import imread  # new_figure has reported a missing matplotlib

    axis.imshow(imread(io.BytesIO(image), format="png"), cmap="gray")


def _show_lines(axis: Any, lines: Sequence[Sequence[Piece]]) -> None:
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea, VPacker

    rows: list[Any] = [
        HPacker(
            # A dollar sign would begin a formula.
            children=[
                TextArea(text.replace("$", r"\$"), textprops={"size": 9, **properties})
                for text, properties in line
            ],
            pad=0,
            sep=5,
            align="baseline",
        )
        for line in lines
    ]
    packed = VPacker(children=rows, pad=0, sep=5, align="left")
    box = AnchoredOffsetbox("upper left", child=packed, pad=0, borderpad=0, frameon=False)
    box.set_in_layout(False)
    axis.add_artist(box)
