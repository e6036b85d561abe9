"""Thresholds per layer: how they are read, and where rows exit under them."""

from __future__ import annotations

import pytest
import torch
from helpers.policy_oracle import check_captions, layers_of, model_of
from helpers.small_models import batch, nano

from ofa_exit.policies.base import ExitPolicy, GateInput, OptionError
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.policies.entropy import EntropyExit
from ofa_exit.policies.measures import hidden_saturation, sample_saturation
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.thresholds import at_layer, parse_thresholds, reject_wrong_count


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.9, 0.9),
        (1, 1.0),
        ("0.9", 0.9),
        ("0.9,0.8", (0.9, 0.8)),
        ("[0.9, 0.8, 2]", (0.9, 0.8, 2.0)),
        ([0.9, 1], (0.9, 1.0)),
        ((0.9,), (0.9,)),
    ],
)
def test_numbers_lists_and_texts_are_read(given, expected):
    found = parse_thresholds(given)
    assert found == expected and type(found) is type(expected)
    numbers = found if isinstance(found, tuple) else [found]
    assert all(type(number) is float for number in numbers)
    assert SimilarityExit(image_threshold=given).image_threshold == expected


@pytest.mark.parametrize(
    "given", ["", "a", "0.9,", "0.9;0.8", [], None, True, [True], ["0.9"], [[0.9]], {"1": 0.9}]
)
def test_what_is_no_number_is_rejected(given):
    with pytest.raises(OptionError, match="alpha must be a number"):
        ConfidenceExit(given)


@pytest.mark.parametrize("given", [-0.1, "-0.1", [0.5, -0.1], "nan", "0.5,inf", float("nan")])
def test_numbers_out_of_range_are_rejected(given):
    with pytest.raises(OptionError, match=r"entropy must be a finite number of at least 0, got"):
        EntropyExit(given)


def test_layers_count_from_one():
    assert [at_layer((0.1, 0.2), layer) for layer in (1, 2)] == [0.1, 0.2]
    assert at_layer(0.3, 17) == 0.3
    with pytest.raises(ValueError, match="2 thresholds are given, none of them for layer 3"):
        at_layer((0.1, 0.2), 3)


def test_a_list_has_a_number_for_each_layer_but_the_last():
    reject_wrong_count("--exit-alpha", 0.5, 6, "decoder")
    reject_wrong_count("--exit-alpha", (0.5,) * 5, 6, "decoder")
    with pytest.raises(ValueError, match=r"--exit-alpha gives 6 numbers.*6 decoder.*or 5, one"):
        reject_wrong_count("--exit-alpha", (0.5,) * 6, 6, "decoder")


@pytest.mark.parametrize(
    ("policy", "part", "is_open"),
    [
        (SimilarityExit([1.0, 2], [1, 0.9], 2.0, [1, 1.5]), "image", False),
        (SimilarityExit([1.0, 2], [1, 0.9], 2.0, [1, 1.5]), "text", True),
        (SimilarityExit([1.0, 2], [1, 0.9], 2.0, [1, 1.5]), "decoder", False),
        (SimilarityExit(encoder_threshold=(1, 0.5)), "joint", True),
        (ConfidenceExit([1, 1]), "decoder", False),
        (ConfidenceExit([1, 0.9]), "decoder", True),
        (EntropyExit([0, 0]), "decoder", False),
        (EntropyExit([0, 3]), "decoder", True),
    ],
)
def test_parts_where_no_layer_exits_have_no_gate(policy, part, is_open):
    assert (policy.gate(part) is not None) == is_open


class Watching(ExitPolicy):
    """Exits nowhere, and keeps the cosines of every row after each layer of each part."""

    def __init__(self):
        self.seen = {"image": [], "text": [], "joint": [], "decoder": []}

    def _keep(self, part: str, seen: GateInput) -> bool:
        cosines = (
            hidden_saturation(seen.previous, seen.current)
            if part == "decoder"
            else sample_saturation(seen.previous, seen.current, seen.padding_mask)
        )
        self.seen[part].append(cosines.tolist())
        return False

    def image_gate(self, seen):
        return self._keep("image", seen)

    def text_gate(self, seen):
        return self._keep("text", seen)

    def joint_gate(self, seen):
        return self._keep("joint", seen)

    def decoder_gate(self, seen):
        return self._keep("decoder", seen)


def first_above(cosines: list[float], thresholds: list[float]) -> int:
    """The first layer, from 1, whose cosine is above its threshold below 1; else the last."""
    for layer, (cosine, limit) in enumerate(zip(cosines, thresholds), start=1):
        if limit < 1 and cosine > limit:
            return layer
    return len(thresholds) + 1


def thresholds_between(layers: list[list[float]]) -> list[float]:
    """The median cosine after each layer, and never after layer 2."""
    limits = [sorted(rows)[len(rows) // 2] - 1e-4 for rows in layers]
    limits[1] = 1.0
    return limits


@pytest.mark.parametrize("split", [True, False])
@torch.no_grad()
def test_encoder_passes_exit_at_the_first_layer_above_its_own_threshold(split):
    model, net_input = nano(split), batch(7)
    net_input["patch_masks"][:] = True
    watching = Watching()
    model.configure_exits(watching)
    model(**net_input)
    used = set()
    for part in ("image", "text") if split else ("joint",):
        layers = watching.seen[part]
        limits = thresholds_between(layers)
        never = {"image_threshold": 2, "text_threshold": 2}
        name = "encoder" if part == "joint" else part
        model.configure_exits(SimilarityExit(**{**never, f"{name}_threshold": limits}))
        model(**net_input)
        trace = model.last_trace
        found = trace.text_layers if part == "text" else trace.image_layers
        wanted = [first_above([layer[row] for layer in layers], limits) for row in range(7)]
        assert found.tolist() == wanted
        used.update(wanted)
    assert len(used) > 2 and 2 not in used


@torch.no_grad()
def test_tokens_exit_at_the_first_layer_above_its_own_threshold():
    model, net_input, watching = nano(), batch(4), Watching()
    model.configure_exits(watching)
    model(**net_input)
    layers = watching.seen["decoder"]  # [layer][row][position]
    limits = thresholds_between([[c for row in layer for c in row] for layer in layers])
    found = layers_of(model, SimilarityExit(2.0, 2.0, decoder_threshold=limits, schedule="static"))
    used = set()
    for row, positions in enumerate(net_input["prev_output_tokens"].tolist()):
        for place, token in enumerate(positions):
            if token != 1:
                cosines = [layer[row][place] for layer in layers]
                assert int(found[row, place]) == first_above(cosines, limits)
                used.add(int(found[row, place]))
    assert len(used) > 2 and 2 not in used


@pytest.mark.parametrize("cls", [ConfidenceExit, EntropyExit])
def test_one_number_is_that_number_at_every_layer(cls):
    model = model_of("none")
    limit = 0.15 if cls is ConfidenceExit else 3.2
    expected = layers_of(model, cls(limit))
    assert len(expected.unique()) > 1
    assert torch.equal(layers_of(model, cls([limit] * 5)), expected)


def test_schedules_apply_to_each_number():
    def rule():
        return lambda layer: (
            layer.number == 3 and cosine(layer) > 0.9 * 0.8 + 0.1 * 0.8 * decay(layer)
        )

    def cosine(layer):
        return float(hidden_saturation(layer.previous, layer.state))

    def decay(layer):
        return float(torch.exp(torch.tensor(-4.0 * layer.step / 8)))

    policy = SimilarityExit(2.0, 2.0, decoder_threshold=(1, 1, 0.8, 1, 1), schedule="calm", tau=4.0)
    used = check_captions(model_of("none"), policy, rule, "propagate", [1, 2, 3, 4, 5])
    assert used <= {3, 6}
