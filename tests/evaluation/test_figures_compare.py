"""Methods of a comparison: reading, savings against the baseline, rules, seeds, printed numbers."""

from __future__ import annotations

import re

import pytest
from helpers.paths import ROOT
from helpers.sweep_files import (
    EARLY,
    FULL,
    IMAGE,
    SHORT,
    TEXT,
    mue_rows,
    setting,
    write_methods,
    write_sweep,
)

from ofa_exit.cli import compare
from ofa_exit.evaluation.figures.methods import check_quality, read_methods, read_sweep
from ofa_exit.evaluation.figures.paper_numbers import main_rows, paper_names, paper_rows, table_rows
from ofa_exit.evaluation.figures.savings import against_baseline, expected_time_reduction
from ofa_exit.evaluation.figures.selection import (
    CORNERS,
    KEPT,
    FullDepth,
    Keep,
    Save,
    evaluate,
    in_words,
)


@pytest.fixture
def methods(tmp_path):
    return read_methods(write_methods(tmp_path), ["plain", "mue", "tiny"])


def test_methods_are_in_the_order_of_families(tmp_path):
    folder = write_methods(tmp_path)
    for name in ("blipee", "berxit", "pabee"):
        for split in ("valid", "test"):
            write_sweep(folder / name / f"{split}.csv", mue_rows())
    names = [method.name for method in read_methods(folder)]
    assert names == ["plain", "tiny", "mue", "pabee", "blipee", "berxit"]


def test_a_folder_per_method_and_seed(methods):
    assert [(method.name, len(method.seeds)) for method in methods] == [
        ("plain", 1), ("mue", 2), ("tiny", 1),
    ]  # fmt: skip
    assert methods[1].trained_parameters == 1500000
    assert [method.seed_names for method in methods] == [[""], ["1", "2"], [""]]
    sweep = methods[1].seeds[0]["valid"]
    assert sweep.scores == ["CIDEr", "BLEU-4"] and sweep.full_depth == FULL
    assert methods[1].mean_at_full_depth("test", "CIDEr") == 49
    assert check_quality(methods, None) == "CIDEr"


def test_empty_fields_and_lines_of_a_reference_are_left_out(tmp_path):
    """The reference has full depth, too, and stands after the settings."""
    rows = [setting(FULL, 1, parameter_speedup=""), setting("reference", 2, run="reference")]
    sweep = read_sweep(write_sweep(tmp_path / "test.csv", rows))
    assert list(sweep.settings) == [FULL]
    assert "parameter_speedup" not in sweep.settings[FULL]


def test_rules_choose_on_validation(methods):
    plain, mue, _ = methods
    # On test 97 - 50 and two more: read there, not chosen.
    result = evaluate(mue, Keep(0.96), "test", "CIDEr", plain)
    assert result.settings == [TEXT, TEXT] and result.valid == [97, 97]
    assert result.values["CIDEr"] == [47, 49] and result.mean("CIDEr") == 48
    assert result.values[KEPT] == pytest.approx([0.94, 0.98])
    assert evaluate(mue, Keep(0.9), "test", "CIDEr", plain).settings == [SHORT] * 2
    assert (
        evaluate(mue, Keep(0.9, "parameter_speedup"), "test", "CIDEr", plain).settings
        == [SHORT] * 2
    )
    assert evaluate(mue, Save(0.1), "test", "CIDEr", plain).settings == [TEXT] * 2
    assert evaluate(mue, Save(0.3), "test", "CIDEr", plain).settings == [SHORT] * 2
    assert evaluate(mue, FullDepth(), "test", "CIDEr", plain).settings == [FULL] * 2


def test_where_no_setting_qualifies_the_result_says_so(methods, tmp_path):
    plain, mue, _ = methods
    none = evaluate(mue, Keep(0.99), "test", "CIDEr", plain)
    assert none.remark == "no setting keeps 99 %" and none.mean("CIDEr") is None
    # In one of two seeds: that one counts at full depth.
    rows = mue_rows()
    rows[3] = setting(TEXT, 99.5, (6, 2, 6))
    write_sweep(tmp_path / "mue@2" / "valid.csv", rows)
    (again,) = read_methods(tmp_path, ["mue"])
    some = evaluate(again, Keep(0.99), "test", "CIDEr", plain)
    assert some.settings == [None, TEXT] and some.values["CIDEr"] == [48, 49]
    assert some.remark == "no setting keeps 99 % in 1 of 2 seeds: full depth"


def test_image_against_text_layers(methods):
    """MuE's Table 2, in its order: the passes that run early do so as in EARLY."""
    plain, mue, _ = methods
    chosen = [evaluate(mue, rule, "test", "CIDEr", plain).settings[0] for rule in CORNERS]
    assert chosen == [FULL, EARLY, IMAGE, TEXT]


def test_a_smaller_model_saves_against_the_baseline(methods):
    """MuE's Table 1 gives OFA tiny 33 %: 4 of 6 layers."""
    plain, mue, tiny = against_baseline(methods, methods[0])
    own, saved = (method.seeds[0]["test"].settings[FULL] for method in (methods[2], tiny))
    assert own["expected_time_reduction"] == own["flop_reduction"] == 0
    assert saved["expected_time_reduction"] == pytest.approx(1 / 3)
    assert saved["flop_reduction"] == pytest.approx(0.4)  # 6 GFLOPs of the baseline's 10
    before, after = (m.seeds[0]["test"].settings[SHORT] for m in (methods[1], mue))
    assert before["expected_time_reduction"] == after["expected_time_reduction"]
    assert after["flop_reduction"] == 0.5
    assert plain.seeds[0]["test"].settings[FULL]["flop_reduction"] == 0


def test_a_seed_saves_against_the_same_seed_of_the_baseline(tmp_path):
    """Seed 3 has none, and takes the first."""
    gflops = {"plain@1": 10, "plain@2": 20, "tiny@1": 5, "tiny@2": 5, "tiny@3": 5}
    for name, value in gflops.items():
        for split in ("valid", "test"):
            write_sweep(tmp_path / name / f"{split}.csv", [setting(FULL, 40, gflops=value)])
    methods = read_methods(tmp_path, ["plain", "tiny"])
    plain, tiny = against_baseline(methods, methods[0])

    def saved(method):
        return [seed["test"].settings[FULL]["flop_reduction"] for seed in method.seeds]

    assert saved(plain) == [0, 0] and saved(tiny) == [0.5, 0.75, 0.5]


def test_eq_14_with_the_layers_of_another_model():
    values = {"encoder_layers_full": 4, "decoder_layers_full": 4, "image_layers": 4}
    values |= {"text_layers": 2, "expected_time_reduction": 1 - (3 / 4 + 2 / 4) / 2}
    other = {"encoder_layers_full": 6, "decoder_layers_full": 12}
    expected = 1 - (3 / 6 + 2 / 12) / 2
    assert expected_time_reduction(values, other) == pytest.approx(expected)
    without = "expected_time_reduction_without_prompt"
    values[without] = 1 - (4 / 4 + 2 / 4) / 2
    expected = 1 - (4 / 6 + 2 / 12) / 2
    assert expected_time_reduction(values, other, without) == pytest.approx(expected)


def test_a_smaller_model_that_was_swept_against_the_baseline(methods, tmp_path):
    """Its expected time counts the reference's layers, and its time is that against the other."""
    rows = [
        setting(FULL, 70, (4, 4, 4), (6, 6), 6, measured_time_reduction=0.2),
        setting("exit_decoder_threshold=0.9", 60, (4, 4, 2), (6, 6), 5),
    ]
    for row in rows:
        row.update(encoder_layers_full=4, decoder_layers_full=4, reference_layers="6+6")
    for split in ("valid", "test"):
        write_sweep(tmp_path / "tiny" / f"{split}.csv", rows)
    (tiny,) = read_methods(tmp_path, ["tiny"])
    _, seen = against_baseline([methods[0], tiny], methods[0])
    full, exits = seen.seeds[0]["test"].settings.values()
    assert full["expected_time_reduction"] == pytest.approx(1 / 3)
    assert exits["expected_time_reduction"] == pytest.approx(1 - (4 / 6 + 2 / 6) / 2)
    assert full["measured_time_reduction"] == 0.2
    other = {"encoder_layers_full": 4, "decoder_layers_full": 8}
    assert expected_time_reduction(exits, other) == pytest.approx(1 - (4 / 4 + 2 / 8) / 2)
    write_sweep(tmp_path / "tiny" / "test.csv", rows[::-1])
    with pytest.raises(ValueError, match="line 2: the first setting saves time"):
        read_methods(tmp_path, ["tiny"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (FULL, FULL),
        (SHORT, "image never, text 0.9, decoder 0.9"),
        ("exit_policy=confidence exit_alpha=1.0", "policy confidence, alpha 1.0"),
        ('exit_alpha=0.6 exit_options={"layers": [1, 3]}', 'alpha 0.6, options {"layers": [1, 3]}'),
        ("exit_decoder_threshold=0.9,0.8", "decoder 0.9,0.8"),
    ],
)
def test_settings_in_words(name, words):
    assert in_words(name) == words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "tiny" / "test.csv").rename(f / "tiny" / "test_b.csv"),
         r"tiny has sweeps of valid, test_b, but .*plain of valid, test\. Sweep the same splits"),
        (lambda f: write_sweep(f / "mue@2" / "test.csv", mue_rows()[:3]),
         r"mue@2/test\.csv and .*mue@1/test\.csv do not have the same settings"),
        (lambda f: write_sweep(f / "tiny" / "test.csv", [setting("a", 1, (1, 1, 1))]),
         r"tiny/test\.csv, line 2: the first setting saves time \(a\)"),
        (lambda f: write_sweep(f / "tiny" / "test.csv", [setting("a", 1)] * 2),
         r"tiny/test\.csv, line 3: the setting 'a' comes twice"),
        (lambda f: write_sweep(f / "tiny" / "test.csv", [setting("a", 1, CIDEr="much")]),
         r"tiny/test\.csv, a, column CIDEr: 'much'"),
        (lambda f: (f / "tiny" / "test.csv").write_text("setting,CIDEr\na,1\n"),
         r"tiny/test\.csv, line 1: no column sentences"),
        (lambda f: (f / "mue@1" / "trained_parameters.txt").write_text("3 M"),
         r"trained_parameters\.txt: '3 M' is not a number of parameters"),
    ],
)  # fmt: skip
def test_files_that_do_not_belong_together(change, message, tmp_path):
    write_methods(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_methods(tmp_path, ["plain", "mue", "tiny"])


@pytest.mark.parametrize("lacking", ["valid", "test", "test_b"])
def test_unfinished_seeds_are_left_out(lacking, tmp_path, caplog):
    write_methods(tmp_path)
    for path in tmp_path.iterdir():
        write_sweep(path / "test_b.csv", mue_rows())
    (tmp_path / "mue@1" / f"{lacking}.csv").unlink()
    (plain, _, mue) = read_methods(tmp_path)
    assert mue.seed_names == ["2"] and plain.splits == ["valid", "test", "test_b"]
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}/mue@1 lacks {lacking}.csv and is left out")


def test_methods_of_which_nothing_is_left(tmp_path, caplog):
    write_methods(tmp_path)
    (tmp_path / "tiny" / "test.csv").unlink()
    assert [method.name for method in read_methods(tmp_path)] == ["plain", "mue"]
    assert "tiny lacks test.csv" in caplog.text
    caplog.clear()
    read_methods(tmp_path, ["plain", "mue"])  # tiny is not asked for
    assert not caplog.messages
    with pytest.raises(ValueError, match="tiny has no finished sweeps"):
        read_methods(tmp_path, ["plain", "tiny"])


def test_missing_folders_and_scores(methods, tmp_path):
    with pytest.raises(
        ValueError, match=r"calm has no finished sweeps\. There are folders of mue, plain, tiny"
    ):
        read_methods(tmp_path, ["calm"])
    with pytest.raises(ValueError, match="absent is no folder"):
        read_methods(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"valid\.csv, line 1: no column accuracy among .*CIDEr"):
        check_quality(methods, "accuracy")
    write_sweep(tmp_path / "tiny" / "test.csv", [setting("a", 1, (4, 4, 4), (4, 4), CIDEr="")])
    with pytest.raises(ValueError, match=r"tiny/test\.csv, a: column CIDEr is empty"):
        check_quality(read_methods(tmp_path), "CIDEr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no METHOD with valid\.csv and test\.csv"):
        read_methods(tmp_path / "empty")


def test_partial_files_are_ignored(tmp_path):
    write_methods(tmp_path)
    write_sweep(tmp_path / "plain" / "test.partial.csv", mue_rows())
    assert read_methods(tmp_path, ["plain"])[0].splits == ["valid", "test"]
    assert read_sweep(tmp_path / "plain" / "test.csv").settings[FULL]["CIDEr"] == 50


@pytest.mark.parametrize(
    ("name", "method", "table", "split", "values"),
    [
        ("mue_coco", "mue", "1", "test", {"CIDEr": 137.0, "expected_time_reduction": 0.402}),
        ("mue_coco", "deecap", "5", "test", {"ROUGE-L": 57.2}),
        ("mue_coco", "no_layer_loss", "4", "test", {"CIDEr": 117.9}),
        ("mue_snli_ve", "deebert", "1", "valid", {"accuracy": 78.9}),
        ("blipee_nocaps", "blipee", "1", "test_valid", {"CIDEr": 122.7, "SPICE": 16.1}),
        ("blipee_nocaps", "blipee", "1", "test_valid_in_domain", {"CIDEr": 124.3}),
        ("blipee_nocaps", "blipee", "1", "test_valid_near_domain", {"CIDEr": 120.0}),
        ("blipee_nocaps", "blipee", "1", "test_valid_out_domain", {"CIDEr": 125.5}),
        ("blipee_nocaps", "blipee_distill", "5", "test_valid", {"parameter_speedup": 1.45}),
        ("blipee_nocaps", "blipee_capfilt", "5", "test_valid_in_domain", {"CIDEr": 123.5}),
        ("blipee_gqa", "blipee", "3", "testdev", {"accuracy": 44.0}),
        ("mue_snli_ve", "mue", "1", "test_valid", {"accuracy": 88.7}),
        ("blipee_vqa", "pabee", "2", "test", {"accuracy": 77.1}),
        ("blipee_visdial", "mue", "3", "test", {"MRR": 36.6}),
        ("blipee_coco", "leeblip", "4", "test", {"METEOR": 27.6}),
        ("blipee_vqa", "deeblip", "2", "test", {"accuracy": 75.9}),
    ],
)
def test_printed_numbers(name, method, table, split, values):
    source = f"{'MuE' if name.startswith('mue') else 'BLIPEE'}, Table {table}"
    (row,) = table_rows(paper_rows([name]), source, method, split)
    assert values.items() <= row.values.items()


def test_data_sets_of_the_papers():
    assert {"mue_coco", "mue_snli_ve", "blipee_vizwiz", "blipee_gqa"} <= set(paper_names())
    assert [row.table for row in main_rows(paper_rows(["mue_coco"]), "mue", "test")] == ["1", "5"]
    entailment = paper_rows(["mue_snli_ve"])
    assert [row.split for row in main_rows(entailment, "mue", "valid")] == ["valid"]
    with pytest.raises(ValueError, match="no numbers of 'emoji': choose from mue_coco"):
        paper_rows(["mue_coco", "emoji"])


def test_rows_of_two_papers():
    """COCO is in both. A paper without the split gives nothing, whatever the other prints."""
    both = paper_rows(["mue_coco", "blipee_coco", "mue_coco"])
    sources = [row.source for row in main_rows(both, "mue", "test")]
    assert sources == ["MuE, Table 1", "MuE, Table 5", "BLIPEE, Table 4"]
    assert [row.source for row in table_rows(both, "MuE, Table 4", "mue", "test")] == [
        "MuE, Table 4"
    ]
    other = paper_rows(["mue_snli_ve", "blipee_nocaps"])
    found = main_rows(other, "mue", "valid")
    assert [(row.paper, row.split) for row in found] == [("mue", "valid")]
    assert not main_rows(other, "mue", "test_artist")


def test_every_domain_of_nocaps_is_printed():
    """compare.sh calls the splits test_NAME."""
    options = (ROOT / "run_scripts" / "nocaps" / "options.sh").read_text()
    (names,) = re.findall(r"\$\{TEST:-([a-z_ ]+)\}", options)
    rows = paper_rows(["blipee_nocaps"])
    shown = [row.split for n in names.split() for row in main_rows(rows, "mue", f"test_{n}")]
    assert shown == ["full-dataset", "in-domain", "near-domain", "out-domain"]


@pytest.mark.parametrize("method", ["deebert", "leebert"])
def test_methods_of_mue_are_not_those_of_blipee(method):
    """BLIPEE's DeeBLIP and LeeBLIP are methods of their own here."""
    names = [name for name in paper_names() if name.startswith("blipee")]
    assert not [row for row in paper_rows(names) if row.method == method]


@pytest.mark.parametrize("name", [n for n in paper_names() if n.startswith("blipee_")])
def test_plain_is_the_backbone_of_blipee(name):
    """V-O is OPT, and V-F is FlanT5."""

    def decoders(method: str) -> set[str]:
        rows = [row for row in paper_rows([name]) if row.method == method]
        return {"OPT" if row.row.endswith("V-O") or "OPT" in row.row else "FlanT5" for row in rows}

    assert decoders("plain") == decoders("blipee") == {"OPT" if name == "blipee_coco" else "FlanT5"}


def test_every_printed_method_has_a_script():
    """BLIPEE with CapFilt is of train_blipee.sh, so the page claims Tables 1 to 4 of BLIPEE."""
    scripts = {path.stem for path in (ROOT / "run_scripts" / "methods").glob("*.sh")}
    rows = [row for row in paper_rows(paper_names()) if row.method]
    lacking = [row for row in rows if row.method not in scripts]
    assert {row.method for row in lacking} == {"blipee_capfilt"}
    assert {row.source for row in lacking} == {"BLIPEE, Table 5"}
    texts = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8"), compare.__doc__ or ""
    assert all("BLIPEE Tables 1 to 4" in text for text in texts)
