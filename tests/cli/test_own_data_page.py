"""The commands of docs/own_data.md run as they are written."""

import os
import re
import subprocess
import sys

import pytest
from helpers.paths import ROOT
from PIL import Image, ImageDraw

PAGE = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
COLOURS = ("red", "blue", "green", "white")


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def claims(images: list[str]) -> str:
    """Rows as those of the page, for images of its folder."""
    header, *pattern = blocks(section("Entailment, from CSV to a score"), "")[0].splitlines()
    assert header == "image,hypothesis,label" and len(pattern) == 3
    rows = []
    for number, colour in enumerate(images):
        other = COLOURS[(number + 1) % len(COLOURS)]
        yes, no, maybe = (row.replace("red.png", f"{colour}.png") for row in pattern)
        rows += [yes.replace("is red", f"is {colour}"), no.replace("is blue", f"is {other}"), maybe]
    return "\n".join([header, *rows]) + "\n"


@pytest.mark.slow
def test_entailment_from_csv_to_a_score(tmp_path):
    for name in ("user_dir", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    photos = tmp_path / "photos"
    photos.mkdir()
    for colour in COLOURS:
        image = Image.new("RGB", (80, 60), "black")
        ImageDraw.Draw(image).ellipse((10, 10, 70, 50), fill=colour)
        image.save(photos / f"{colour}.png")
    (photos / "claims.csv").write_text(claims(list(COLOURS)))
    (photos / "claims_valid.csv").write_text(claims(["red", "blue"]))
    (commands,) = blocks(section("Entailment, from CSV to a score"), "bash")
    environment = {
        **os.environ,
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"Generate .*accuracy = \d+\.\d+ \(\d of 6\)", done.stdout)
    answers = re.findall(r"^D-\d+\t\S+\t(\w+)$", done.stdout, re.MULTILINE)
    assert len(answers) == 6 and set(answers) <= {"yes", "maybe", "no"}
    assert "Exit summary: " in done.stdout
    assert re.search(r"^photos/red\.png\t(yes|maybe|no)\t", done.stdout, re.MULTILINE)
