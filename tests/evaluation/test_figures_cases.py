"""Cases: traces, the choice of rows, colours, the page and the figure."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from ofa_exit.evaluation.figures.case_figure import GAP_INCHES, _drawn, _wrapped, plot_cases
from ofa_exit.evaluation.figures.case_page import case_page
from ofa_exit.evaluation.figures.cases import (
    Answer,
    Case,
    Word,
    choose_rows,
    depth_of,
    layer_colours,
    read_trace,
)
from ofa_exit.evaluation.figures.families import HEADLINES, ORDER
from ofa_exit.evaluation.figures.plots import DOTS_PER_INCH


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def cases() -> list[Case]:
    words = [Word("a", 1, 0.987, 0.5), Word(" <b>snow", 3, 0.5, 0.97123), Word("flake", 6)]
    words.append(Word("", 2, 0.9, 0.8))
    answers = [Answer('"MuE" & co', words, 6, 2), Answer("plain", [Word("no", 6)], 0, 6)]
    return [
        Case("c1", png(), "", ["a <script>alert(1)</script> hill", "costs $5 or $6"], answers),
        Case("c2", None, "does it snow?", ["yes"], [Answer("MuE", [Word("yes", 1)], 0, 3)]),
    ]


class Page(HTMLParser):
    """Words with their attributes, images, tags, and everything that a page may fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[tuple[str, dict]] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if attributes.get("class") == "word":
            self.words.append(("", attributes))

    def handle_data(self, data):
        self.text += data
        if self.words and not self.words[-1][0]:
            self.words[-1] = data, self.words[-1][1]


def test_words_colours_and_titles():
    page = Page(case_page(cases(), depth=6))
    legend, words = page.words[:6], page.words[6:]
    assert [text for text, _ in legend] == [f"layer {n}" for n in range(1, 7)]
    assert [text for text, _ in words] == ["a", "<b>snow", "flake", "■", "no", "yes"]
    titles = [attributes["title"] for _, attributes in words]
    assert titles[0] == "exit after layer 1, confidence 0.99, cosine 0.500"
    assert titles[1] == "exit after layer 3, confidence 0.50, cosine 0.971"
    assert titles[2] == "exit after layer 6"
    assert titles[3] == "end of sentence, exit after layer 2, confidence 0.90, cosine 0.800"
    # A word has the colour of its layer in the legend.
    for (_, word), layer in zip(words, (1, 3, 6, 2, 6, 1)):
        assert word["style"] == legend[layer - 1][1]["style"]


def test_the_page_needs_nothing_else_and_escapes_all_text():
    text = case_page(cases(), depth=6)
    page = Page(text)
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    assert "url(" not in text and "@import" not in text
    for shown in ("a <script>alert(1)</script> hill", '"MuE" & co', "does it snow?"):
        assert shown in page.text
    assert "layers: image 6, text 2, decoder 3.0" in page.text
    assert "layers: text 6, decoder 6.0" in page.text
    # A token that continues a word follows it without a space.
    assert "</span><span" in text.partition("&lt;b&gt;snow")[2][:20]


def test_colours_darken_with_the_layer():
    def lightness(colour):
        return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5))

    for depth in (1, 2, 6, 24):
        colours = [layer_colours(layer, depth) for layer in range(1, depth + 1)]
        assert len(set(colours)) == depth
        lights = [lightness(background) for background, _ in colours]
        assert lights == sorted(lights, reverse=True)
        assert all(abs(lightness(a) - lightness(b)) > 250 for a, b in colours)  # legible
    assert layer_colours(0, 6)[0] == "#ffffff"


def test_the_figure(tmp_path):
    written = plot_cases(cases(), 6, tmp_path / "cases")
    assert [path.name for path in written] == ["cases.png", "cases.svg"]
    assert Image.open(written[0]).width > 500
    pieces = [("word", {})] * 40
    lines = _wrapped(pieces)
    assert [piece for line in lines for piece in line] == pieces and 1 < len(lines) < 5


# ------------------------------------------------------------------ traces


def test_no_blank_space_below_many_lines(tmp_path):
    """Of 24 lines of text: what is white at the end is the gap to the next case."""
    words = [Word(word, 1) for word in ["a", "b", "c"]]
    references = ["a red square"] * 23
    case = Case("c", None, "", references, [Answer("plain", words, 6, 2)])
    png_file, _ = plot_cases([case], 6, tmp_path / "cases")
    image = Image.open(png_file).convert("L")
    below = image.height - ImageOps.invert(image).getbbox()[3]
    assert 0 < below / DOTS_PER_INCH < GAP_INCHES + 0.1


def test_a_figure_has_six_methods():
    """First those of the papers' main tables; the order stays."""
    answers = [Answer(name, [Word("no", 6)], 0, 6) for name in (*ORDER, "own")]
    assert [answer.method for answer in _drawn(answers)] == list(HEADLINES)
    some = [Answer(name, [], 0, 6) for name in (*"abcde", "blipee", "mue", "f")]
    assert [answer.method for answer in _drawn(some)] == [*"abcd", "blipee", "mue"]


def record(name, layers=(3, 2), image=6, text=2):
    best = {"tokens": list(range(4, 4 + len(layers))), "layers": list(layers)}
    return {"id": name, "image_layers": image, "text_layers": text, "hypotheses": [best]}


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_rows_of_all_traces(tmp_path):
    plain = read_trace(write(tmp_path / "p", record("a"), record("b"), record("c", (6, 6))))
    mue = read_trace(write(tmp_path / "m", record("c", (1, 1)), record("b", (5, 5)), record("d")))
    traces = {"plain": plain, "MuE": mue}
    assert depth_of(traces) == (6, 6)
    assert choose_rows(traces) == ["b", "c"]
    assert choose_rows(traces, count=1) == ["b"]
    assert choose_rows({"MuE": mue}, largest_saving=True) == ["c", "d", "b"]
    assert choose_rows(traces, ["c", "b"], count=1) == ["c", "b"]
    with pytest.raises(ValueError, match="trace of MuE has no row a"):
        choose_rows(traces, ["a"])
    with pytest.raises(ValueError, match="no row is in all traces, of plain, other"):
        choose_rows({"plain": plain, "other": {"z": record("z")}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trace is empty"),
        ("{", r"trace, line 1: no record of --exit-trace"),
        ('{"id": "a"}', r"line 1: no record"),
        (json.dumps({**record("a"), "hypotheses": []}), "line 1: no record"),
        (json.dumps(record("a")) + "\n" + json.dumps(record("a")), "line 2: the row a comes twice"),
    ],
)
def test_files_that_are_no_traces(text, message, tmp_path):
    (tmp_path / "trace").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_trace(tmp_path / "trace")


# ------------------------------------------------------------------ in a browser


def find_browser() -> str | None:
    """The path of a chromium or firefox, or of the chromium that playwright has installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "firefox")
    for path in map(shutil.which, names):
        if path:
            return path
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


@pytest.mark.slow
def test_a_browser_shows_the_page(tmp_path):
    browser = find_browser()
    if browser is None:
        pytest.skip("no chromium, firefox or playwright is installed")
    (tmp_path / "cases.html").write_text(case_page(cases(), depth=6))
    shot, page = tmp_path / "shot.png", (tmp_path / "cases.html").as_uri()
    if "firefox" in browser:
        options = ["--headless", "--profile", str(tmp_path), "--screenshot", str(shot)]
    else:
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        quiet.append(f"--user-data-dir={tmp_path / 'profile'}")
        options = [*quiet, f"--screenshot={shot}"]
        dumped = [browser, *quiet, "--dump-dom", page]
        found = subprocess.run(dumped, check=True, capture_output=True, text=True, timeout=120)
        assert re.search(r'title="exit after layer \d, confidence [\d.]+', found.stdout)
    subprocess.run([browser, *options, page], check=True, capture_output=True, timeout=120)
    shown = Image.open(shot).convert("RGB").getcolors(1 << 24)
    colours = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in shown}
    assert {layer_colours(layer, 6)[0] for layer in range(1, 7)} <= colours  # the legend
    assert "#ff0000" in colours  # the image
