"""Quality after each layer: the measurement, its curve, and the exits it suggests."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET

import pytest
from helpers.head_samples import KINDS, fresh
from helpers.head_samples import LAYERS as LAYERS_OF_KIND
from helpers.task_files import SMALL, caption_folder, entailment_folder, generate, train

from ofa_exit.cli import layers, plot_layers
from ofa_exit.evaluation.figures.layer_curve import (
    EXITS,
    LAYERS,
    MID_CRISIS,
    OVERTHINKING,
    RISING,
    choose_exits,
    judge,
    read_curves,
)
from ofa_exit.policies.static import StaticExit

# The shape of Figure 2, left: a first rise, a dip, the recovery, and a loss at the end.
FIGURE = {1: 20.0, 2: 45.0, 3: 40.0, 4: 30.0, 5: 45.0, 6: 70.0, 7: 80.0, 8: 78.0}


def test_the_phenomena_of_figure_2_are_found():
    verdicts = judge(FIGURE)
    assert [layer for layer, v in verdicts.items() if v == MID_CRISIS] == [3, 4]
    assert [layer for layer, v in verdicts.items() if v == OVERTHINKING] == [8]
    assert choose_exits(FIGURE) == [1, 2, 5, 6, 7]


def test_a_share_forgives_small_drops():
    assert judge(FIGURE, share=0.8)[3] == RISING  # 40 of 45
    assert judge(FIGURE, share=0.8)[4] == MID_CRISIS  # 30 of 45
    assert judge(FIGURE, share=0.8)[8] == RISING
    assert choose_exits(FIGURE, share=0.8) == [1, 2, 3, 5, 6, 7]


@pytest.mark.parametrize(
    ("count", "chosen"), [(1, [5]), (2, [2, 6]), (3, [1, 5, 7]), (5, [1, 2, 5, 6, 7])]
)
def test_fewer_exits_are_spread(count, chosen):
    assert choose_exits(FIGURE, count=count) == chosen


def test_lowering_the_share_never_loses_an_exit():
    chosen = [set(choose_exits(FIGURE, share)) for share in (1.0, 0.9, 0.8, 0.6, 0.1)]
    assert all(few <= many for few, many in zip(chosen, chosen[1:]))
    assert chosen[-1] == set(range(1, 8))


def test_a_falling_curve_leaves_one_layer():
    curve = {1: 3.0, 2: 2.0, 3: 1.0}
    assert judge(curve) == {1: RISING, 2: OVERTHINKING, 3: OVERTHINKING}
    assert choose_exits(curve) == [1]
    with pytest.raises(ValueError, match=r"2 exits.* 1 layers"):
        choose_exits(curve, count=2)


@pytest.mark.parametrize("share", [0, 1.1, float("nan")])
def test_an_invalid_share_is_rejected(share):
    with pytest.raises(ValueError, match="share"):
        judge(FIGURE, share)


@pytest.mark.parametrize("wrong", [["--share", "2"], ["--share", "x"], ["--exits", "0"]])
def test_invalid_options_are_rejected_before_anything_is_measured(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        layers.main(["out", "data", *wrong])
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_static_depths_can_leave_an_exit_out():
    assert StaticExit((6, 6, 2)).select_heads([1, 2, 4]) == [2]
    assert StaticExit((6, 6, 2), use_exits=False).select_heads([1, 2, 4]) == []
    with pytest.raises(ValueError, match="use_exits"):
        StaticExit((6, 6, 2), use_exits="no")


@pytest.mark.parametrize("kind", ["transformer", *KINDS])
def test_trained_heads_of_every_kind_are_measured(kind):
    chosen = LAYERS_OF_KIND.get(kind, "2,4")
    grid = layers.layer_grid(fresh(exit_head=kind, exit_layers=chosen))
    found = [setting["exit_depths"] for setting in grid if setting["run"] == EXITS]
    trained = [] if kind == "shared" else chosen.split(",")
    assert found == [f"6,6,{layer}" for layer in trained]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a plain model for a few updates, then exits after layers 2 and 4."""
    folder = tmp_path_factory.mktemp("curve")
    data = caption_folder(folder / "data")
    plain = train("mue_caption", data, folder / "plain", updates=6)
    exits = train(
        "mue_caption", data, folder / "exits", "--exit-layers", "2,4",
        "--criterion", "blipee_adversarial", "--finetune-from-model", str(plain), updates=4,
    )  # fmt: skip
    return data, plain, exits


def arguments(data, checkpoint, task="mue_caption") -> list[str]:
    scoring = ["--scoring", "coco_caption", "--coco-tokenizer", "plain", "--max-len-b", "6"]
    return [
        *[str(data), "--task", task, "--path", str(checkpoint), "--cpu", "--gen-subset", "test"],
        *["--batch-size", "4", "--num-workers", "0", *SMALL],
        *(scoring if task == "mue_caption" else ["--scoring", "accuracy"]),
    ]


def test_every_layer_and_every_exit_alone(trained, tmp_path, capsys):
    data, _, checkpoint = trained
    out = tmp_path / "made" / "curve"
    assert layers.main([str(out), "--share", "0.5", *arguments(data, checkpoint)]) == 0
    rows = list(csv.DictReader((tmp_path / "made" / "curve.csv").open()))
    assert [(row["run"], row["layer"]) for row in rows] == [
        *[(LAYERS, str(layer)) for layer in range(1, 7)],
        *[(EXITS, "2"), (EXITS, "4")],
    ]
    # The encoder runs in full, the decoder to where it is stopped.
    assert {(row["image_layers"], row["text_layers"]) for row in rows} == {("6", "6")}
    assert [float(row["decoder_layers"]) for row in rows[:6]] == [1, 2, 3, 4, 5, 6]
    # Each agrees with a generation of its own.
    static = ["--exit-policy", "static", "--exit-depths"]
    for row, options in (
        (rows[1], [*static, "6,6,2", "--exit-options", '{"use_exits": false}']),
        (rows[5], []),
        (rows[6], [*static, "6,6,2"]),
    ):
        alone = generate(
            "mue_caption", data, checkpoint, "--gen-subset", "test",
            *["--scoring", "coco_caption", "--coco-tokenizer", "plain", *options],
        )  # fmt: skip
        for name in ("CIDEr", "BLEU-1"):
            assert f"{name} = {float(row[name]):.2f}" in alone["result"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    ET.fromstring(out.with_suffix(".svg").read_bytes())
    printed = capsys.readouterr().out
    chosen = read_curves(out.with_suffix(".csv"), "CIDEr")[LAYERS]
    expected = ",".join(map(str, choose_exits(chosen, 0.5)))
    assert printed.splitlines()[-1] == f"--exit-layers {expected}"
    # Drawn and chosen again, by another metric.
    again = [str(out.with_suffix(".csv")), "--quality", "BLEU-1", "--exits", "1", "--share", "0.01"]
    assert plot_layers.main([*again, "--out", str(tmp_path / "again")]) == 0
    assert "--exit-layers " in capsys.readouterr().out
    assert (tmp_path / "again.svg").exists()


def test_entailment_by_its_scorer(tmp_path, capsys):
    data = entailment_folder(tmp_path / "data")
    checkpoint = train("mue_snli_ve", data, tmp_path / "run", updates=2)
    given = arguments(data, checkpoint, "mue_snli_ve")
    assert layers.main([str(tmp_path / "curve"), *given]) == 0
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [row["layer"] for row in rows] == list("123456")
    assert all(0 <= float(row["accuracy"]) <= 100 for row in rows)
    assert "layer   accuracy" in capsys.readouterr().out


def test_run_names_of_the_previous_release_are_read(tmp_path):
    old = ("decoder stopped behind the layer", "exit behind the layer")
    rows = [f"{old[0]},1,2", f"{old[0]},2,3", f"{old[1]},1,4"]
    (tmp_path / "curve.csv").write_text("\n".join(["run,layer,CIDEr", *rows]))
    assert read_curves(tmp_path / "curve.csv", "CIDEr") == {LAYERS: {1: 2, 2: 3}, EXITS: {1: 4}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run,layer\n", "line 1: no column CIDEr"),
        (f"run,layer,CIDEr\n{LAYERS},1,2\n{LAYERS},3,2\n", "curve.csv"),
        (f"run,layer,CIDEr\n{LAYERS},1,2\n{LAYERS},1,2\n", "line 3, column layer"),
        (f"run,layer,CIDEr\n{LAYERS},1,nan\n", "line 2, column CIDEr"),
    ],
)
def test_an_invalid_curve_is_named(text, message, tmp_path, capsys):
    (tmp_path / "curve.csv").write_text(text)
    assert plot_layers.main([str(tmp_path / "curve.csv"), "--quality", "CIDEr"]) == 2
    assert message in capsys.readouterr().err
