"""Kinds of exit heads: what is built, what is rejected, and the shared head."""

import pytest
import torch
from helpers.small_models import VOCAB, batch, generate, nano

from ofa_exit.heads.base import ExitHeads, parse_exit_layers
from ofa_exit.heads.registry import HEADS, register_head
from ofa_exit.policies.base import GateInput
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.policies.measures import softmax_confidence


@pytest.mark.parametrize("spec", ["0,2", "2,6", "2,2", "a", "1;2"])
def test_layers_that_make_no_sense_are_rejected(spec):
    with pytest.raises(ValueError, match=f"--exit-layers '{spec}'"):
        parse_exit_layers(spec, 6)


def test_layers_are_sorted():
    assert parse_exit_layers("4, 2", 6) == [2, 4]
    assert parse_exit_layers(None, 6) == parse_exit_layers(" ", 6) == []


def test_unknown_kinds_are_rejected():
    with pytest.raises(ValueError, match="--exit-head 'deep' is none of transformer, shared"):
        nano(exit_layers="2", exit_head="deep")


def test_names_are_unique_and_classes_heads():
    with pytest.raises(ValueError, match="'shared'"):
        register_head("shared")(ExitHeads)
    with pytest.raises(ValueError, match="int must extend ExitHeads"):
        register_head("number")(int)
    assert "number" not in HEADS


def test_models_without_exit_layers_share_the_last_layers_head():
    heads = nano().decoder.exit_heads
    assert heads.layers == [1, 2, 3, 4, 5] and not heads and not list(heads.parameters())


def test_weights_of_a_head_are_counted():
    """A decoder layer; a norm and a matrix; a classifier that two heads share; nothing."""
    layer = sum(weight.numel() for weight in nano().decoder.layer(1).parameters())
    expected = {"transformer": layer, "linear": 2 * 32 + VOCAB * 32, "meta": (2 * 32 + 2) // 2}
    for kind, count in {**expected, "shared": 0}.items():
        heads = nano(exit_layers="2,4", exit_head=kind).decoder.exit_heads
        assert heads.parameters_per_head() == count, kind
    assert nano().decoder.exit_heads.parameters_per_head() == 0


@torch.no_grad()
def test_shared_heads_score_what_the_final_norm_and_projection_do():
    model = nano(exit_layers="2,4", exit_head="shared")
    seen = {}

    class Watching(ConfidenceExit):
        def decoder_gate(self, gate_input: GateInput):
            if gate_input.has_head:
                scores = gate_input.scores(softmax_confidence)
                seen[gate_input.layer] = scores, gate_input.current.clone()
            return super().decoder_gate(gate_input)

    model.configure_exits(Watching(0.99999))
    model(**batch(2))
    assert list(seen) == [2, 4]
    for scores, hidden in seen.values():
        logits = model.decoder.output_projection(model.decoder.layer_norm(hidden))
        torch.testing.assert_close(scores, softmax_confidence(logits))


@torch.no_grad()
def test_scores_need_a_head():
    model = nano(exit_layers="2,4", exit_head="shared")

    class Asking(ConfidenceExit):
        def decoder_gate(self, seen: GateInput):
            return seen.scores(softmax_confidence) > self.alpha

    model.configure_exits(Asking(0.5))
    with pytest.raises(RuntimeError, match="layer 1"):
        model(**batch(2))


@torch.no_grad()
def test_confidence_over_shared_heads_exits_with_the_layers_own_words():
    model = nano(exit_layers="1,3", exit_head="shared")
    model.configure_exits(ConfidenceExit(0.0))  # everything exits at the first head
    logits, _ = model(**batch(3))
    (step,) = model.last_trace.steps
    target = batch(3)["prev_output_tokens"]
    assert step.layers_used[target.ne(1)].unique().tolist() == [1]
    assert step.heads_run.sum() == 0  # they have no modules of their own
    model.configure_exits(None)
    _, extra = model(**batch(3), return_layers=True)
    expected = model.decoder.shared_scores(extra["layer_states"][1])
    kept = target.ne(1)
    torch.testing.assert_close(logits[kept], expected[kept], rtol=1e-4, atol=1e-5)
    assert generate(model, batch(2))
