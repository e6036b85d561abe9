"""Cases as one HTML file that needs nothing else (MuE Figure 5, BLIPEE Figure 3)."""

import base64
from collections.abc import Sequence
from html import escape

from ofa_exit.evaluation.figures.cases import Answer, Case, Word, layer_colours

STYLE = """
body { font: 15px/1.7 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em;
  color: #111; background: #fff; }
h1 { font-size: 1.3em; }
h2 { font-size: 1em; margin: 0; }
section { display: flex; gap: 1.2em; border-top: 1px solid #ccc; padding: 1em 0; }
img { width: 12em; height: 12em; object-fit: contain; flex: none; background: #f4f4f4; }
th { text-align: left; vertical-align: top; padding-right: 1em; white-space: nowrap; }
p { margin: 0.2em 0; }
.word { padding: 0.1em 0.25em; border-radius: 0.2em; border: 1px solid #ccc; }
.layers, .references { color: #555; }
"""

# Only what is in the file itself may be shown, and no script may run.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def case_page(cases: Sequence[Case], depth: int, choice: str = "") -> str:
    """Return the page.

    Args:
        depth: decoder layers, for the colours.
        choice: a sentence on which rows these are.
    """
    words = [word for case in cases for answer in case.answers for word in answer.words]
    measured = ""
    if any(word.confidence is not None for word in words):
        measured = (
            ", its confidence (the largest probability) and the cosine of the states before and "
            "after its last layer"
        )
    legend = " ".join(_span(f"layer {n}", n, depth, "") for n in range(1, depth + 1))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>Words by exit layer</title><style>{STYLE}</style></head><body>",
            "<h1>Words by exit layer</h1>",
            f'<p class="legend">{legend}</p>',
            f"<p>Point at a word for its layer{measured}. ■ ends the sentence. "
            f"{escape(choice)}</p>",
            *(_section(case, depth) for case in cases),
            "</body></html>\n",
        ]
    )


def _section(case: Case, depth: int) -> str:
    image = ""
    if case.image is not None:
        data = base64.b64encode(case.image).decode()
        image = f'<img alt="image of {escape(case.name)}" src="data:image/png;base64,{data}">'
    source = f'<p class="source">{escape(case.source)}</p>' if case.source else ""
    references = "".join(f"<p>{escape(reference)}</p>" for reference in case.references)
    answers = "\n".join(_answer(answer, depth) for answer in case.answers)
    return (
        f"<section>{image}<div><h2>{escape(case.name)}</h2>{source}"
        f'<div class="references">{references}</div>\n<table>\n{answers}\n</table></div></section>'
    )


def _answer(answer: Answer, depth: int) -> str:
    words = "".join(_word(word, depth) for word in answer.words)
    return (
        f"<tr><th>{escape(answer.method)}</th><td>{words}"
        f'<p class="layers">layers: {escape(answer.layers)}</p></td></tr>'
    )


def _word(word: Word, depth: int) -> str:
    space = " " if word.text.startswith(" ") or not word.text else ""
    return space + _span(word.text.strip() or "■", word.layer, depth, word.hover)


def _span(text: str, layer: int, depth: int, hover: str) -> str:
    background, colour = layer_colours(layer, depth)
    title = f' title="{escape(hover)}"' if hover else ""
    style = f"background:{background};color:{colour}"
    return f'<span class="word" style="{style}"{title}>{escape(text)}</span>'
