"""What fit-gate records, against whole sequences and plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.candidate_samples import PAD, TRIE, sample
from helpers.small_models import batch, generate, nano, select

from ofa_exit.cli.fit_gate.records import best_words, recording
from ofa_exit.models import word_scores
from ofa_exit.plugin.search.candidates import AllCandidateGenerator

STEPS = 3


@torch.no_grad()
def slow_word(model, net_input, tokens, allowed=None):
    """(change, before, after, step), agreement after each layer of a sequence's last word."""
    inputs = {k: v for k, v in net_input.items() if k != "prev_output_tokens"}
    _, extra = model(**inputs, prev_output_tokens=torch.tensor([tokens]), return_layers=True)
    states = [layer[0, -1] for layer in extra["layer_states"]]
    decoder, words = model.decoder, []
    for state in states[1:]:
        scores = (decoder.layer_norm(state) @ decoder.output_projection.weight.t()).tolist()
        chosen = range(len(scores)) if allowed is None else allowed
        words.append(max(chosen, key=lambda word: scores[word]))
    found = []
    for before, after, word in zip(states, states[1:-1], words):
        values = [math.log(float(state.norm())) for state in (after - before, before, after)]
        found.append(([*values, math.log(len(tokens))], word == words[-1]))
    return found


def compare(records, words):
    """``words``: what ``slow_word`` returned, in any order."""
    assert len(records) == len(words) and records.layers == 6
    for layer in range(1, 6):
        features, labels = records.of_layer(layer)
        order = features[:, 2].argsort()
        wanted = sorted((word[layer - 1] for word in words), key=lambda one: one[0][2])
        expected = torch.tensor([one for one, _ in wanted])
        torch.testing.assert_close(features[order], expected, rtol=1e-3, atol=1e-3)
        assert labels[order].tolist() == [agrees for _, agrees in wanted]
    assert labels.any()


@torch.no_grad()
def test_words_of_a_search():
    model, net_input, words = nano(), batch(3), []
    model.configure_exits(None)
    with recording(model.decoder) as records:
        hyps = generate(model, net_input, STEPS, beam_size=1, min_len=STEPS)
    for row, ((hyp, *_),) in enumerate(zip(hyps)):
        tokens = [0, *hyp["tokens"].tolist()[:-1]]
        assert len(tokens) == STEPS + 1
        alone = select(net_input, row)
        words += [slow_word(model, alone, tokens[: t + 1]) for t in range(len(tokens))]
    compare(records, words)
    assert "forward" not in vars(model.decoder)
    assert not any(layer._forward_hooks for layer in model.decoder.layers)


@torch.no_grad()
def test_decisions_of_a_closed_set():
    """The best word is the best of those that are allowed."""
    model, chosen, words = nano(), sample(prompts=True), []
    model.configure_exits(None)
    with recording(model.decoder) as records:
        AllCandidateGenerator([model], TRIE, PAD).generate([model], chosen)
    for row, length in enumerate(chosen["prompt_lengths"].tolist()):
        alone = select(chosen["net_input"], row)
        prompt = alone.pop("prev_output_tokens")[0, :length].tolist()
        for branch in ([], [7]):
            allowed = TRIE.allowed_next(branch)
            words.append(slow_word(model, alone, [*prompt, *branch], allowed))
    compare(records, words)


@torch.no_grad()
def test_chunks_change_nothing(monkeypatch):
    model, generator = nano(), torch.Generator().manual_seed(5)
    states = torch.randn(7, 32, generator=generator)
    words = torch.tensor([3, 9, 11])
    allowed = torch.tensor([[True, False, True]] * 7)
    whole = best_words(model.decoder, states, None, None)
    closed = best_words(model.decoder, states, words, allowed)
    assert set(closed.tolist()) <= {0, 2}
    from ofa_exit.cli.fit_gate import records

    monkeypatch.setattr(records, "MAX_SCORES_AT_ONCE", 130)
    assert torch.equal(best_words(model.decoder, states, None, None), whole)
    assert torch.equal(best_words(model.decoder, states, words, allowed), closed)
    assert len(best_words(model.decoder, states[:0], None, None)) == 0
    assert word_scores.MAX_SCORES_AT_ONCE > 130


def test_an_error_leaves_the_decoder_as_it_was():
    model = nano()
    with pytest.raises(KeyError), recording(model.decoder):
        raise KeyError
    assert "forward" not in vars(model.decoder)
