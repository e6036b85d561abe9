"""The command compare: its tables, curves and errors."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET

import pytest
from helpers.sweep_files import SHORT, TEXT, mue_rows, setting, write_methods, write_sweep

from ofa_exit.cli.compare import main


def table(text: str, title: str) -> list[list[str]]:
    """The cells of the first table after a title."""
    lines = text.partition(title)[2].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


@pytest.fixture
def folder(tmp_path):
    return write_methods(tmp_path)


def test_tables_and_curves(folder, capsys):
    assert main([str(folder), "--keep", "0.96,0.9,0.99", "--save", "0.3"]) == 0
    written = capsys.readouterr().out.split()
    assert written == [
        str(folder / n) for n in ("table.md", "table.csv", "curves.png", "curves.svg")
    ]
    text = (folder / "table.md").read_text()
    header, *rows = table(text, "## test")
    shown = {row[0]: dict(zip(header, row)) for row in rows}
    rules = ("full depth", "keeps 96 %")
    assert list(shown) == [f"{n}, {rule}" for n in ("plain", "mue", "tiny") for rule in rules]
    mue = shown["mue, keeps 96 %"]
    assert mue["setting"] == "image never, text 0.9, decoder never"
    assert mue["CIDEr on valid"] == "97.0 (97.0 to 97.0)"
    assert mue["CIDEr"] == "48.0 (47.0 to 49.0)" and mue["kept"].startswith("96.0 % (94.0 % to")
    assert mue["expected time"].startswith("−16.7 %") and mue["FLOPs"].startswith("−10.0 %")
    assert mue["trained"] == "1,500,000"
    assert shown["tiny, full depth"]["expected time"] == "−33.3 %"
    assert shown["tiny, keeps 96 %"]["setting"] == "no setting keeps 96 %"
    # Trade-off: where quality is kept, the largest saving is best.
    header, *rows = table(text, "Trade-off")
    assert header == ["method", "keeps 96 %", "keeps 90 %", "keeps 99 %", "saves 30 %"]
    assert rows[1][1:4] == ["**48.0 at −16.7 %**", "**42.0 at −41.7 %**", "none"]
    # Image against text, in the paper's order.
    header, *rows = table(text, "Image and text layers")
    assert [row[0] for row in rows] == ["mue"] * 4
    assert [row[1].split()[0] for row in rows] == ["6.00", "3.00", "3.10", "6.00"]
    assert "Ablation" not in text and "paper's numbers" not in text
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    names = [text for e in ET.parse(folder / "curves.svg").iter() if (text := e.text)]
    assert len(names) > 0


def test_the_csv_has_every_rule(folder):
    assert main([str(folder), "--keep", "0.96,0.9", "--save", "0.3", "--paper", "mue_coco"]) == 0
    lines = list(csv.DictReader((folder / "table.csv").open()))
    mue = [line for line in lines if line["method"] == "mue"]
    rules = ["full depth", "keeps 96 %", "keeps 90 %", "saves 30 %", *["decoder in full"] * 4]
    assert [line["rule"] for line in mue] == rules
    assert mue[1]["setting"] == f"{TEXT} | {TEXT}" and mue[2]["setting"] == f"{SHORT} | {SHORT}"
    assert (mue[1]["CIDEr"], mue[1]["CIDEr_low"], mue[1]["CIDEr_high"]) == ("48", "47", "49")
    assert mue[1]["paper_CIDEr"] == "137" and mue[0]["paper_CIDEr"] == ""
    tiny = [line for line in lines if line["method"] == "tiny"]
    assert tiny[0]["paper_CIDEr"] == "128.7" and tiny[1]["remark"] == "no setting keeps 96 %"


def test_printed_numbers_stand_beside(folder):
    assert main([str(folder), "--paper", "mue_coco"]) == 0
    text = (folder / "table.md").read_text()
    header, *rows = table(text, "## test")
    grey = {row[0]: row[header.index("paper")] for row in rows}
    assert grey["mue, keeps 96 %"] == '<span style="color:grey">137 at −40.2 %</span>'
    assert grey["tiny, full depth"] == '<span style="color:grey">128.7 at −33.0 %</span>'
    assert grey["mue, full depth"] == ""
    assert "MuE, Table 5:" in text


def test_ablation(folder):
    for name in ("no_split", "no_layer_loss"):
        for split in ("valid", "test"):
            write_sweep(folder / name / f"{split}.csv", mue_rows()[:1] + mue_rows()[3:])
    assert main([str(folder), "--paper", "mue_coco"]) == 0
    _, *rows = table((folder / "table.md").read_text(), "Ablation (MuE Table 4)")
    assert [row[0] for row in rows] == ["plain", "mue", "no_layer_loss", "no_split"]
    assert rows[3][-1] == '<span style="color:grey">117.5 at −21.0 %</span>'


def test_several_test_splits_and_another_metric(folder, tmp_path):
    for path in folder.iterdir():
        (path / "test.csv").rename(path / "test_a.csv")
        write_sweep(path / "test_b.csv", list(csv.DictReader((path / "valid.csv").open())))
    out = tmp_path / "out" / "tables"
    given = ["--quality", "BLEU-4", "--by", "parameter_speedup", "--axes", "parameter_speedup"]
    assert main([str(folder), "mue", "plain", "--out", str(out), *given]) == 0
    assert {path.name for path in out.iterdir()} == {
        *("table.md", "table.csv", "curves_test_a.png", "curves_test_a.svg"),
        *("curves_test_b.png", "curves_test_b.svg"),
    }
    text = (out / "table.md").read_text()
    assert "## test_a" in text and "## test_b" in text and "saves most (speed-up)" in text
    assert "tiny" not in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--baseline", "ofa"], "no method 'ofa' among mue, plain, tiny"),
        (["--quality", "accuracy"], "no column accuracy among its scores, CIDEr, BLEU-4"),
        (["--keep", "much"], "--keep much: give shares"),
        (["--keep", ""], "--keep : give shares"),
        (["--save", "0"], "--save 0: give shares"),
        (["calm"], "calm has no CSV"),
    ],
)
def test_errors_take_one_line(folder, given, message, capsys):
    assert main([str(folder), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ofa-exit compare: error: ") and message in line


def test_a_chosen_setting_that_the_test_lacks(folder, capsys):
    write_sweep(folder / "plain" / "test.csv", [setting("full depth", 50)])
    assert main([str(folder), "--keep", "0.9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "plain/test.csv has no line for the chosen setting: exit_decoder_threshold=0.9" in line
