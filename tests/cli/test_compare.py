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
    names = ("table.md", "table.csv", "options.txt", "curves.png", "curves.svg")
    assert written == [str(folder / name) for name in names]
    text = (folder / "table.md").read_text()
    header, *rows = table(text, "## test")
    shown = {row[0]: dict(zip(header, row)) for row in rows}
    rules = ("full depth", "keeps 96 %")
    assert list(shown) == [f"{n}, {rule}" for n in ("plain", "tiny", "mue") for rule in rules]
    mue = shown["mue, keeps 96 %"]
    assert mue["setting"] == "image never, text 0.9, decoder never"
    assert mue["CIDEr on valid"] == "97.0 (97.0 to 97.0)"
    assert mue["CIDEr"] == "48.0 (47.0 to 49.0)" and mue["kept"].startswith("96.0 % (94.0 % to")
    assert mue["expected time"].startswith("−16.7 %") and mue["FLOPs"].startswith("−10.0 %")
    assert mue["trained"] == "1,500,000"
    assert shown["tiny, full depth"]["expected time"] == "−33.3 %"
    assert shown["tiny, keeps 96 %"]["setting"] == "no setting keeps 96 %"
    options = (folder / "options.txt").read_text().splitlines()
    assert options[:2] == ["plain", "tiny"]
    assert options[2].startswith("mue@1 --exit-policy=similarity --exit-image-threshold=2 ")
    # Trade-off: where quality is kept, the largest saving is best.
    header, *rows = table(text, "Trade-off")
    savings = ["expected time", "FLOPs", "measured time", "speed-up"]
    assert header == ["", "method", "CIDEr", "kept", *savings]
    assert [row[0] for row in rows[::3]] == ["keeps 96 %", "keeps 90 %", "keeps 99 %", "saves 30 %"]
    bold = [row[1] for row in rows if "*" in row[1]]
    assert bold == ["**mue**", "**mue**", "**plain**", "**mue**"]
    assert [cell.split(" (")[0] for cell in rows[2][2:]] == [
        "48.0", "96.0 %", "−16.7 %", "−10.0 %", "−8.3 %", "1.00×",
    ]  # fmt: skip
    assert rows[8] == ["", "mue", "none", *["–"] * 5]
    # Image against text, in the paper's order.
    header, *rows = table(text, "Image and text layers")
    assert header == ["method", "image", "text", "CIDEr", "BLEU-4", *savings]
    assert [row[0] for row in rows] == ["mue"] * 4
    assert [row[1].split()[0] for row in rows] == ["6.00", "3.00", "3.10", "6.00"]
    flops = [row[header.index("FLOPs")].split(" (")[0] for row in rows]
    assert flops == ["0.0 %", "−40.0 %", "−30.0 %", "−10.0 %"]
    assert "Ablation" not in text and "papers' numbers" not in text
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    names = [text for e in ET.parse(folder / "curves.svg").iter() if (text := e.text)]
    assert len(names) > 0


def test_the_csv_has_every_rule(folder):
    assert main([str(folder), "--keep", "0.96,0.9", "--save", "0.3", "--paper", "mue_coco"]) == 0
    lines = list(csv.DictReader((folder / "table.csv").open()))
    mue = [line for line in lines if line["method"] == "mue"]
    rules = ["full depth", "keeps 96 %", "keeps 90 %", "saves 30 %", *["decoder in full"] * 4]
    assert [line["rule"] for line in mue] == rules
    assert {line["seeds"] for line in mue} == {"1 | 2"}
    assert mue[1]["setting"] == f"{TEXT} | {TEXT}" and mue[2]["setting"] == f"{SHORT} | {SHORT}"
    assert (mue[1]["CIDEr"], mue[1]["CIDEr_low"], mue[1]["CIDEr_high"]) == ("48", "47", "49")
    assert mue[1]["paper_mue_CIDEr"] == "137" and mue[0]["paper_mue_CIDEr"] == ""
    assert [line["paper_mue_CIDEr"] for line in mue[4:]] == ["143.9", "112.1", "112.2", "143.6"]
    tiny = [line for line in lines if line["method"] == "tiny"]
    assert tiny[0]["paper_mue_CIDEr"] == "128.7" and tiny[1]["remark"] == "no setting keeps 96 %"


def grey(text: str) -> str:
    return f'<span style="color:grey">{text}</span>'


def test_seeds_that_choose_differently(folder):
    """Settings in the order of seeds: those of seed 2 keep no 99 %."""
    rows = mue_rows()
    rows[3] = setting(TEXT, 99.5, (6, 2, 6))
    write_sweep(folder / "mue@1" / "valid.csv", rows)
    assert main([str(folder), "--keep", "0.99"]) == 0
    lines = list(csv.DictReader((folder / "table.csv").open()))
    (chosen,) = [line for line in lines if (line["method"], line["rule"]) == ("mue", "keeps 99 %")]
    assert (chosen["seeds"], chosen["setting"]) == ("1 | 2", f"{TEXT} | none")


def test_shares_given_twice_count_once(folder):
    assert main([str(folder), "--keep", "0.99,0.99,0.9", "--save", "0.3,0.30"]) == 0
    lines = list(csv.DictReader((folder / "table.csv").open()))
    rules = [line["rule"] for line in lines if line["method"] == "plain"]
    assert rules == ["full depth", "keeps 99 %", "keeps 90 %", "saves 30 %"]


def test_weights_of_linear_heads(folder):
    """Only the sweeps of such heads have the column; the others have a dash."""
    assert main([str(folder)]) == 0
    assert "speed-up with heads" not in table((folder / "table.md").read_text(), "## test")[0]
    rows = [{**row, "parameter_speedup_with_heads": 0.5} for row in mue_rows()]
    for split in ("valid", "test"):
        write_sweep(folder / "deeblip" / f"{split}.csv", rows)
    assert main([str(folder)]) == 0
    header, *rows = table((folder / "table.md").read_text(), "## test")
    shown = {row[0]: row[header.index("speed-up with heads")] for row in rows}
    assert shown["deeblip, keeps 96 %"] == "0.50×" and shown["mue, keeps 96 %"] == "–"


def test_a_panel_for_every_saving(folder, monkeypatch):
    """BLIPEE's Figure 4b is the last one."""
    drawn = []
    monkeypatch.setattr(
        "ofa_exit.cli.compare.plot_curve", lambda points, *_: drawn.append(points[0].savings) or []
    )
    assert main([str(folder)]) == 0
    assert [list(savings) for savings in drawn] == [
        ["expected_time_reduction", "flop_reduction", "measured_time_reduction",
         "parameter_speedup"]
    ]  # fmt: skip


def test_curves_of_further_scores(folder):
    assert main([str(folder), "--scores", "all"]) == 0
    assert {path.name for path in folder.glob("curves*.png")} == {
        *("curves.png", "curves_BLEU-4.png")
    }
    (folder / "curves_BLEU-4.png").unlink()
    assert main([str(folder), "--quality", "BLEU-4", "--scores", "CIDEr"]) == 0
    assert {path.name for path in folder.glob("curves*.png")} == {"curves.png", "curves_CIDEr.png"}


def test_unfinished_seeds_do_not_block_the_tables(folder, caplog):
    (folder / "mue@1" / "test.csv").unlink()
    assert main([str(folder)]) == 0
    lines = list(csv.DictReader((folder / "table.csv").open()))
    assert {line["seeds"] for line in lines if line["method"] == "mue"} == {"2"}
    assert "mue@1 lacks test.csv" in caplog.text


def test_numbers_of_both_papers(folder):
    """BLIPEE's Table 4 is no ablation, and stands in no column of MuE's."""
    for split in ("valid", "test"):
        write_sweep(folder / "no_split" / f"{split}.csv", mue_rows())
    assert main([str(folder), "--paper", "mue_coco,blipee_coco"]) == 0
    text = (folder / "table.md").read_text()
    _, *rows = table(text, "## test")
    printed = {row[0]: row[-1] for row in rows}
    assert printed["mue, keeps 96 %"] == grey("137 at −40.2 % (MuE); 137.5 at 1.41× (BLIPEE)")
    assert printed["plain, full depth"] == grey("146.7 (MuE); 139.8 at 1.07× (BLIPEE)")
    _, *rows = table(text, "Ablation (MuE Table 4)")
    assert [row[-1] for row in rows] == ["", grey("137 at −40.2 % (MuE)"),
                                         grey("117.5 at −21.0 % (MuE)")]  # fmt: skip
    assert "MuE, Table 5, coco:" in text and "BLIPEE, Table 4, coco:" in text
    (line, *_) = csv.DictReader((folder / "table.csv").open())
    assert (line["paper_mue_CIDEr"], line["paper_blipee_CIDEr"]) == ("146.7", "139.8")


def test_mue_tables_2_and_3_stand_beside(folder):
    """The paper's rows: of Table 2 by the passes that exit early, of Table 3 by the same rule."""
    given = ["--keep", "0.96,0.9", "--save", "0.2,0.3,0.5", "--paper", "mue_coco"]
    assert main([str(folder), *given]) == 0
    text = (folder / "table.md").read_text()
    _, *rows = table(text, "Image and text layers")
    assert [row[-1] for row in rows] == [
        grey(f"{cider} (MuE)") for cider in ("143.9", "112.1", "112.2", "143.6")
    ]
    _, *rows = table(text, "Trade-off")
    printed = [row[-1] for row in rows if row[1].strip("*") == "mue"]
    # 96 % of 146.7 is 140.8. No row of MuE's saves half.
    assert printed == [
        grey("141.7 at −28.9 % (MuE)"), grey("133.9 at −45.0 % (MuE)"),
        grey("142.7 at −20.0 % (MuE)"), grey("139.3 at −34.2 % (MuE)"), "",
    ]  # fmt: skip
    assert {row[-1] for row in rows if row[1].strip("*") == "tiny"} == {""}


def test_printed_numbers_stand_beside(folder):
    assert main([str(folder), "--paper", "mue_coco"]) == 0
    text = (folder / "table.md").read_text()
    header, *rows = table(text, "## test")
    printed = {row[0]: row[header.index("paper")] for row in rows}
    assert printed["mue, keeps 96 %"] == grey("137 at −40.2 % (MuE)")
    assert printed["tiny, full depth"] == grey("128.7 at −33.0 % (MuE)")
    assert printed["mue, full depth"] == ""
    assert "MuE, Table 5, coco:" in text


def test_ablation(folder):
    for name in ("no_split", "no_layer_loss"):
        for split in ("valid", "test"):
            write_sweep(folder / name / f"{split}.csv", mue_rows()[:1] + mue_rows()[3:])
    assert main([str(folder), "--paper", "mue_coco"]) == 0
    header, *rows = table((folder / "table.md").read_text(), "Ablation (MuE Table 4)")
    assert [row[0] for row in rows] == ["plain", "mue", "no_split", "no_layer_loss"]
    assert rows[2][-1] == grey("117.5 at −21.0 % (MuE)")
    shown = dict(zip(header, rows[2]))
    assert (shown["expected time"], shown["FLOPs"]) == ("−16.7 %", "−10.0 %")
    assert shown["measured time"] == "−8.3 %"


def test_several_test_splits_and_another_metric(folder, tmp_path):
    for path in folder.iterdir():
        (path / "test.csv").rename(path / "test_a.csv")
        write_sweep(path / "test_b.csv", list(csv.DictReader((path / "valid.csv").open())))
    out = tmp_path / "out" / "tables"
    given = ["--quality", "BLEU-4", "--by", "parameter_speedup", "--axes", "parameter_speedup"]
    assert main([str(folder), "--out", str(out), *given, "mue", "plain"]) == 0
    assert {path.name for path in out.iterdir()} == {
        *("table.md", "table.csv", "options.txt", "curves_test_a.png", "curves_test_a.svg"),
        *("curves_test_b.png", "curves_test_b.svg"),
    }
    text = (out / "table.md").read_text()
    assert "## test_a" in text and "## test_b" in text and "saves most (speed-up)" in text
    assert "tiny" not in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--baseline", "ofa"], "no method 'ofa' among plain, tiny, mue"),
        (["--quality", "accuracy"], "no column accuracy among its scores, CIDEr, BLEU-4"),
        (["--keep", "much"], "--keep much: give shares"),
        (["--keep", ""], "--keep : give shares"),
        (["--save", "0"], "--save 0: give shares"),
        (["--scores", "BLEU-4,SPICE"], "no column SPICE among its scores, CIDEr, BLEU-4"),
        (["--paper", "mue_coco,coco"], "no numbers of 'coco': choose from mue_coco"),
        (["calm"], "calm has no finished sweeps"),
        (["mue@1"], "mue@1: name the method without its seed, mue"),
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
