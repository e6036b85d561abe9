"""Saturation of layers: the states, their cosines, and the command."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET

import pytest
import torch
from helpers.small_models import batch, nano
from helpers.task_files import SMALL, caption_folder, entailment_folder, train

from ofa_exit.cli import saturation
from ofa_exit.cli.saturation.states import cosines, layer_states
from ofa_exit.evaluation.figures.saturation import CONSECUTIVE, LAST
from ofa_exit.plugin.errors import UsageError
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.policies.similarity import ENCODER_SIMILARITIES, SimilarityExit

PAD = 1


def sample(rows: int = 3) -> dict:
    net_input = batch(rows)
    target = net_input["prev_output_tokens"].clone()
    target[0, 4:] = PAD
    return {"net_input": net_input, "target": target}


@pytest.mark.parametrize("split", [True, False])
@torch.no_grad()
def test_states_of_every_layer(split):
    model, given = nano(split), sample()
    states = layer_states(model, given["net_input"])
    assert list(states) == (["image", "text", "decoder"] if split else ["joint", "decoder"])
    assert all(len(layers) == 7 for layers in states.values())
    # The last states are those that enter the final norm.
    encoder_out = model.encoder.forward_torchscript(given["net_input"])
    ends = [states[part][-1] for part in states if part != "decoder"]
    normed = model.encoder.layer_norm(torch.cat(ends, dim=1))
    torch.testing.assert_close(normed, encoder_out.states)
    _, extra = model(**given["net_input"])
    torch.testing.assert_close(states["decoder"][-1], extra["states"])
    assert not any(layer._forward_hooks for layer in model.encoder.layers)


class Recording(SimilarityExit):
    """Never exits, and keeps the cosines that its gates see."""

    def gate(self, part):
        return ExitPolicy.gate(self, part)

    def _saturated(self, seen, threshold):
        similarity = ENCODER_SIMILARITIES[self.encoder_similarity]
        self.seen.append(similarity(seen.previous, seen.current, seen.padding_mask))
        return torch.zeros_like(self.seen[-1], dtype=torch.bool)


@pytest.mark.parametrize("split", [True, False])
@torch.no_grad()
def test_cosines_are_those_of_the_policy(split):
    model, given = nano(split), sample()
    found = dict(cosines(layer_states(model, given["net_input"]), given, PAD))
    policy = Recording(image_threshold=2, text_threshold=2, encoder_threshold=2)
    policy.seen = []
    model.configure_exits(policy)
    model.encoder.forward_torchscript(given["net_input"])
    parts = ["image", "text"] if split else ["joint"]
    wanted = [found[part, CONSECUTIVE, layer] for part in parts for layer in range(1, 6)]
    assert len(policy.seen) == len(wanted)
    for expected, own in zip(policy.seen, wanted):
        torch.testing.assert_close(own, expected)
    # Row 2 has no image.
    assert len(wanted[0]) == (2 if split else 3)


@torch.no_grad()
def test_padding_does_not_count():
    """A sample alone and in a batch, as rule 2 of the runtime."""
    model, given = nano(True), sample(2)
    both = dict(cosines(layer_states(model, given["net_input"]), given, PAD))
    words = int(given["target"].ne(PAD).sum())
    assert {len(both["decoder", CONSECUTIVE, n]) for n in range(1, 7)} == {words}
    net_input = {k: v[1:] for k, v in given["net_input"].items()}
    net_input["src_tokens"] = net_input["src_tokens"][:, :5]
    alone = {"net_input": net_input, "target": given["target"][1:]}
    for key, values in cosines(layer_states(model, net_input), alone, PAD):
        torch.testing.assert_close(both[key][-len(values) :], values)
    assert ("decoder", LAST, 6) not in both and ("decoder", LAST, 5) in both


def test_images_that_sentences_share_count_once():
    given = sample(3)
    given["net_input"]["patch_images"] = given["net_input"]["patch_images"][:2]
    given["net_input"]["image_rows"] = torch.tensor([0, 0, 1])  # the last has none
    found = dict(cosines(layer_states(nano(True), given["net_input"]), given, PAD))
    assert len(found["image", CONSECUTIVE, 1]) == 1 and len(found["text", CONSECUTIVE, 1]) == 3


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saturation")
    data = caption_folder(folder / "data")
    return data, train("mue_caption", data, folder / "run", updates=2)


def arguments(data, task="mue_caption") -> list[str]:
    return [
        *[str(data), "--task", task, "--cpu", "--gen-subset", "test", "--batch-size", "4"],
        *["--num-workers", "0", *SMALL],
    ]


def test_two_checkpoints_in_one_figure(trained, tmp_path, capsys):
    data, checkpoint = trained
    out = tmp_path / "made" / "saturation"
    given = ["--out", f"{out}.png", f"first={checkpoint}", f"again={checkpoint}", *arguments(data)]
    assert saturation.main(given) == 0
    written = [f"{out}.csv", f"{out}.png", f"{out}.svg"]
    assert capsys.readouterr().out.split()[-3:] == written
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    first = [row for row in rows if row["checkpoint"] == "first"]
    assert [{**row, "checkpoint": "again"} for row in first] == rows[len(first) :]
    layers = {(row["part"], row["measure"], row["layer"]): row for row in first}
    assert len(layers) == 3 * (6 + 5)
    assert layers["image", CONSECUTIVE, "1"]["count"] == "11"
    assert layers["decoder", CONSECUTIVE, "1"]["count"] == "44"  # "a red square" and eos
    assert all(-1 <= float(row["mean"]) <= 1.0001 for row in first)
    assert all(float(row["quartile_1"]) <= float(row["quartile_3"]) for row in first)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    ET.fromstring(out.with_suffix(".svg").read_bytes())


def test_answers(tmp_path):
    data = entailment_folder(tmp_path / "data")
    checkpoint = train("mue_snli_ve", data, tmp_path / "run", updates=1)
    out = tmp_path / "curve"
    given = ["--out", str(out), f"MuE={checkpoint}", *arguments(data, "mue_snli_ve")]
    assert saturation.main(given) == 0
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert {row["part"] for row in rows} == {"image", "text", "decoder"}


@pytest.mark.parametrize(
    ("checkpoints", "more", "message"),
    [
        (["mue.pt"], [], r"'mue\.pt': give NAME=CHECKPOINT"),
        (["a={0}", "a={0}"], [], "the name 'a' comes twice"),
        (["a=/no/file.pt"], [], r"/no/file\.pt: no such checkpoint"),
        (["a={0}"], ["--path", "b.pt"], "--path: .* Leave it out"),
        (["a={0}"], ["--exit-policy", "similarity"], "--exit-policy: .* Leave it out"),
        (["a={0}"], ["--patch-image-size", "64"], "--patch-image-size is 64"),
    ],
)
def test_errors(trained, checkpoints, more, message, tmp_path):
    data, checkpoint = trained
    named = [name.format(checkpoint) for name in checkpoints]
    with pytest.raises(UsageError, match=message):
        saturation.main([*named, *arguments(data), *more])


def test_at_least_one_checkpoint(capsys):
    with pytest.raises(SystemExit):
        saturation.main(["data", "--task", "mue_caption"])
    assert "at least one checkpoint" in capsys.readouterr().err
