"""Settings are chosen on one file and read on another."""

import csv

import pytest

from ofa_exit.cli.choose import main


def write(path, *rows):
    """rows: setting, CIDEr, share of time saved."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["run", "setting", "CIDEr", "expected_time_reduction"])
        writer.writeheader()
        for setting, cider, saved in rows:
            line = {"run": "MuE", "setting": setting}
            writer.writerow({**line, "CIDEr": cider, "expected_time_reduction": saved})
    return str(path)


def test_the_largest_saving_with_enough_quality(tmp_path, capsys):
    valid = write(
        tmp_path / "v.csv", ("full", 100, 0), ("a", 97, 0.3), ("b", 96.5, 0.4), ("c", 90, 0.6)
    )
    # On the test split c happens to be good: it must not be taken for that.
    test = write(
        tmp_path / "t.csv", ("full", 50, 0), ("a", 50, 0.3), ("b", 45, 0.4), ("c", 55, 0.6)
    )
    assert main([valid, test, "--keep", "0.96"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("b: at least 96.0 CIDEr")
    assert lines[2].split("\t") == [valid, "MuE", "96.5", "96.5 %", "0.4"]
    assert lines[3].split("\t") == [test, "MuE", "45.0", "90.0 %", "0.4"]
    (note,) = lines[4:]
    assert note.startswith("of no exits: ") and "its own full depth" in note


def test_no_exits_where_nothing_keeps_enough(tmp_path, capsys):
    baseline = write(tmp_path / "b.csv", ("full", 200, 0))
    valid = write(tmp_path / "v.csv", ("full", 100, 0), ("a", 97, 0.3))
    assert main([valid, "--baseline", baseline]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("full: at least 192.0") and "no setting" in printed
    assert printed.endswith(f"{valid}: 50.0 % of the first line of {baseline}\n")


def test_the_line_of_a_reference_is_no_setting(tmp_path, capsys):
    """It would save nothing and keep more than enough."""
    valid = write(
        tmp_path / "v.csv", ("full depth", 100, 0.3), ("a", 97, 0.5), ("reference", 120, 0.9)
    )
    assert main([valid]) == 0
    assert capsys.readouterr().out.startswith("a: at least 96.0 CIDEr")


@pytest.mark.parametrize(
    ("rows", "message"), [((("full", 1, 0),), "t.csv has no line"), ((), "t.csv: no row")]
)
def test_files_that_do_not_belong_together(tmp_path, capsys, rows, message):
    valid = write(tmp_path / "v.csv", ("full", 100, 0), ("a", 97, 0.3))
    assert main([valid, write(tmp_path / "t.csv", *rows)]) == 2
    assert message in capsys.readouterr().err
