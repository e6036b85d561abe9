"""Methods of a comparison: reading, savings against the baseline, rules, seeds, printed numbers."""

from __future__ import annotations

import pytest
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


def test_a_folder_per_method_and_seed(methods):
    assert [(method.name, len(method.seeds)) for method in methods] == [
        ("plain", 1), ("mue", 2), ("tiny", 1),
    ]  # fmt: skip
    assert methods[1].trained_parameters == 1500000
    sweep = methods[1].seeds[0]["valid"]
    assert sweep.scores == ["CIDEr", "BLEU-4"] and sweep.full_depth == FULL
    assert "gflops_per_sentence" not in sweep.settings[FULL]  # the field is empty
    assert methods[1].mean_at_full_depth("test", "CIDEr") == 49
    assert check_quality(methods, None) == "CIDEr"


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
    saved = tiny.seeds[0]["test"].settings[FULL]["expected_time_reduction"]
    assert saved == pytest.approx(1 / 3)
    before, after = (m.seeds[0]["test"].settings[SHORT] for m in (methods[1], mue))
    assert before["expected_time_reduction"] == after["expected_time_reduction"]
    # 5 GFLOPs of the baseline's 10; its own full depth is counted under a policy only.
    assert after["flop_reduction"] == 0.5
    assert plain.seeds[0]["test"].settings[FULL]["flop_reduction"] == 0


def test_eq_14_with_the_layers_of_another_model():
    values = {"encoder_layers_full": 4, "decoder_layers_full": 4, "image_layers": 4}
    values |= {"text_layers": 2, "expected_time_reduction": 1 - (3 / 4 + 2 / 4) / 2}
    other = {"encoder_layers_full": 6, "decoder_layers_full": 12}
    expected = 1 - (3 / 6 + 2 / 12) / 2
    assert expected_time_reduction(values, other) == pytest.approx(expected)


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
        (lambda f: (f / "mue@1" / "valid.csv").unlink(), r"mue@1/valid\.csv is missing"),
        (lambda f: (f / "mue@1" / "test.csv").unlink(), r"mue@1/test\.csv is missing"),
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


def test_missing_folders_and_scores(methods, tmp_path):
    with pytest.raises(
        ValueError, match=r"calm has no CSV of a sweep\. There are mue, plain, tiny"
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
    with pytest.raises(ValueError, match=r"empty has no METHOD/valid\.csv"):
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
        # A split that is not printed gets the last one, here the whole data set.
        ("blipee_nocaps", "blipee", "1", "test", {"CIDEr": 122.7, "parameter_speedup": 1.51}),
        ("blipee_nocaps", "capfilt", "5", "in-domain", {"CIDEr": 123.5}),
        ("blipee_vqa", "pabee", "2", "test", {"accuracy": 77.1}),
        ("blipee_visdial", "mue", "3", "test", {"MRR": 36.6}),
        ("blipee_coco", "leebert", "4", "test", {"METEOR": 27.6}),
    ],
)
def test_printed_numbers(name, method, table, split, values):
    (row,) = table_rows(paper_rows(name), table, method, split)
    assert values.items() <= row.values.items()
    assert row.source == f"{'MuE' if name.startswith('mue') else 'BLIPEE'}, Table {table}"


def test_data_sets_of_the_papers():
    assert {"mue_coco", "mue_snli_ve", "blipee_vizwiz", "blipee_gqa"} <= set(paper_names())
    assert [row.table for row in main_rows(paper_rows("mue_coco"), "mue", "test")] == ["1", "5"]
    assert [row.split for row in main_rows(paper_rows("mue_snli_ve"), "mue", "valid")] == ["valid"]
    with pytest.raises(ValueError, match="no numbers of 'emoji': choose from mue_coco"):
        paper_rows("emoji")
