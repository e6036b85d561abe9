"""Cases as a figure, for papers: images with the words of every method in the layers' colours."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ofa_exit.evaluation.figures.cases import Answer, Case, layer_colours
from ofa_exit.evaluation.figures.families import HEADLINES
from ofa_exit.evaluation.figures.plots import new_figure, save_figure

WIDTH, IMAGE_INCHES, GAP_INCHES = 9.0, 1.5, 0.2
CHARACTERS_PER_LINE = 78
METHODS = 6
"""As many as are drawn; the page has all."""
Piece = tuple[str, dict[str, Any]]
"""A text and matplotlib's properties of it."""


def plot_cases(cases: Sequence[Case], depth: int, out: str | os.PathLike[str]) -> list[Path]:
    """Draw OUT.png and OUT.svg with at most ``METHODS`` methods; return the paths.

    Of more methods those of ``HEADLINES`` are drawn first.

    Args:
        depth: decoder layers, for the colours.

    Raises:
        ImportError: matplotlib is missing.
    """
    return save_figure(_figure(cases, depth), out)


def _figure(cases: Sequence[Case], depth: int) -> Any:
    figure = new_figure(WIDTH, 1)  # whose height follows from its texts
    legend = [_coloured(f"layer {layer}", layer, depth) for layer in range(1, depth + 1)]
    texts = [_packed(lines) for lines in ([legend], *(_lines(case, depth) for case in cases))]
    images = [None, *(case.image for case in cases)]
    heights = [
        GAP_INCHES + max(IMAGE_INCHES * (image is not None), _inches(text, figure))
        for text, image in zip(texts, images, strict=True)
    ]
    figure.set_figheight(sum(heights))
    grid = figure.add_gridspec(
        len(texts), 2, width_ratios=[IMAGE_INCHES, WIDTH - IMAGE_INCHES], height_ratios=heights
    )
    for row, (text, image) in enumerate(zip(texts, images, strict=True)):
        left, right = (figure.add_subplot(grid[row, column]) for column in (0, 1))
        for axis in (left, right):
            axis.set_axis_off()
        if image is not None:
            _show_image(left, image)
        _show_text(right, text)
    return figure


def _lines(case: Case, depth: int) -> list[list[Piece]]:
    """Return the lines beside an image: source, references, and the answers' words, wrapped."""
    grey = {"color": "#555555"}
    texts = [case.source, *case.references]
    lines: list[list[Piece]] = []
    for text in filter(None, texts):
        lines += _wrapped([(word, grey) for word in text.split()])
    for answer in _drawn(case.answers):
        lines += _wrapped([(f"{answer.method}:", {"weight": "bold"}), *_words(answer, depth)])
    return lines


def _drawn(answers: Sequence[Answer]) -> list[Answer]:
    """Return at most ``METHODS`` of the answers, in their order."""
    chosen = sorted(answers, key=lambda answer: answer.method not in HEADLINES)[:METHODS]
    return [answer for answer in answers if answer in chosen]


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


def _packed(lines: Sequence[Sequence[Piece]]) -> Any:
    """Return a box with the lines below each other."""
    from matplotlib.offsetbox import HPacker, TextArea, VPacker  # new_figure reports a missing one

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
    return VPacker(children=rows, pad=0, sep=5, align="left")


def _inches(text: Any, figure: Any) -> float:
    """Return the height of a box as it is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    text.set_figure(figure)
    height: float = text.get_bbox(FigureCanvasAgg(figure).get_renderer()).height
    return height / figure.dpi


def _show_image(axis: Any, image: bytes) -> None:
    from matplotlib.image import imread

    axis.imshow(imread(io.BytesIO(image), format="png"), cmap="gray")
    axis.set_anchor("N")


def _show_text(axis: Any, text: Any) -> None:
    from matplotlib.offsetbox import AnchoredOffsetbox

    box = AnchoredOffsetbox("upper left", child=text, pad=0, borderpad=0, frameon=False)
    box.set_in_layout(False)
    axis.add_artist(box)
