"""Generation through every kind of head, against loops written from the heads' equations."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.candidate_samples import ANSWERS, EOS, PAD, TRIE, sample
from helpers.head_samples import KINDS, alphas, noisy
from helpers.policy_oracle import SlowDecoder
from helpers.small_models import VOCAB, batch, generate, select

from ofa_exit.models import word_scores
from ofa_exit.plugin.search.candidates import AllCandidateGenerator
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.policies.static import StaticExit

KV_MODES = ["propagate", "recompute", "copy"]
STEPS = 8
IMITATION = ["imitation", "imitation_all"]


@pytest.fixture(scope="module")
def models():
    return {kind: noisy(kind) for kind in KINDS}


@torch.no_grad()
def slow_decode(model, net_input, tokens, kv, alpha, active=None, allowed=None):
    """Feed one sequence after bos. A token leaves at the first head that is surer than α.

    Args:
        active: layers whose heads are tried; None for all.
        allowed: words that can follow each position; None for all.

    Returns the log-probabilities [V] after each of ``[bos, *tokens[:-1]]`` and its layers.
    """
    slow = SlowDecoder(model, net_input, kv, active or model.decoder.exit_heads.layers)
    found, depths = [], []
    for step, token in enumerate([0, *tokens[:-1]]):
        words = allowed[step] if allowed else range(VOCAB)
        answer, depth = slow.feed(
            step, token, lambda seen: math.exp(max(seen.words)) > alpha, words
        )
        found.append(torch.full((VOCAB,), -torch.inf).index_copy(0, torch.tensor(words), answer))
        depths.append(depth)
    return found, depths


def searched(model, net_input, beam, kv, active=None):
    """Generate with the first α at which the words leave at three depths or more."""
    for alpha in alphas(model):
        model.configure_exits(ConfidenceExit(alpha, active), kv)
        hypotheses = generate(model, net_input, STEPS, beam_size=beam)
        tokens = [[h["tokens"].tolist() for h in of] for of in hypotheses]
        depths = model.last_trace.depths(tokens)
        if len({d for of in depths for h in of for d in h}) > 2:
            return alpha, hypotheses, tokens, depths
    raise AssertionError("exits should be mixed")


def assert_as_in_the_loop(model, net_input, beam, kv, active=None):
    alpha, hypotheses, tokens, depths = searched(model, net_input, beam, kv, active)
    for row, of_sentence in enumerate(hypotheses):
        for rank, hypothesis in enumerate(of_sentence[:2]):
            given = tokens[row][rank]
            alone = select(net_input, row)
            scores, used = slow_decode(model, alone, given, kv, alpha, active)
            assert depths[row][rank] == used
            wanted = torch.stack([s[token] for s, token in zip(scores, given, strict=True)])
            torch.testing.assert_close(
                hypothesis["positional_scores"], wanted, rtol=1e-4, atol=1e-5
            )
            if beam == 1:
                assert [int(s.argmax()) for s in scores[:-1]] == given[:-1]


# Beams of ``copy`` share the layer that the deepest reaches, which the loop of one does not know.
@pytest.mark.parametrize(
    ("kv", "beam"), [(kv, beam) for kv in KV_MODES for beam in (1, 5) if (kv, beam) != ("copy", 5)]
)
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_beam_search_equals_the_slow_loop(models, kind, kv, rows, beam):
    assert_as_in_the_loop(models[kind], batch(rows), beam, kv)


@pytest.mark.parametrize("kv", ["propagate", "copy"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("reading")
@torch.no_grad()
def test_a_row_never_depends_on_its_batch(models, kind, kv):
    model, net_input = models[kind], batch(7)
    _, _, tokens, depths = searched(model, net_input, 3, kv)
    for row in range(7):
        alone = generate(model, select(net_input, row), STEPS)[0]
        assert [h["tokens"].tolist() for h in alone] == tokens[row]
        assert model.last_trace.depths([tokens[row]]) == [depths[row]]


class AsksTwice(ConfidenceExit):
    """The rule of its base, from two looks at the scores."""

    def decoder_gate(self, seen):
        if not seen.has_head:
            return False
        best = seen.scores(lambda logits: logits.float().amax(-1))
        total = seen.scores(lambda logits: logits.float().logsumexp(-1))
        return (best - total).exp() > self.alpha


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_words_are_scored_once(models, kind, monkeypatch):
    """However often a gate asks; beyond the memory that is held, once a question and at the end."""
    model, net_input = models[kind], batch(3)
    alpha, hypotheses, tokens, _ = searched(model, net_input, 3, "propagate")

    def again():
        model.configure_exits(AsksTwice(alpha))
        found = generate(model, net_input, STEPS, beam_size=3)
        assert [[h["tokens"].tolist() for h in of] for of in found] == tokens
        for of, wanted in zip(found, hypotheses, strict=True):
            for one, other in zip(of, wanted, strict=True):
                torch.testing.assert_close(one["score"], other["score"], rtol=1e-5, atol=1e-5)
        work = [one for step in model.last_trace.steps for one in step.work]
        return sum(one.price(1) * sum(one.units) for one in work if one.part == "vocabulary")

    once = again()
    monkeypatch.setattr(word_scores, "MAX_SCORES_AT_ONCE", 1)
    assert once < again()


@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_some_heads_alone(models, kind, kv):
    """Heads before those that are tried run for imitation only, and nothing exits there."""
    model, net_input, beam = models[kind], batch(3), 1 if kv == "copy" else 3
    assert_as_in_the_loop(model, net_input, beam, kv, [2, 4])
    policy = model.decoder.exit_policy
    runs = {"shared": [], **{name: [1, 2, 3, 4] for name in IMITATION}}.get(kind, [2, 4])
    assert model.decoder.active_heads(policy) == runs
    assert model.decoder.heads_in_use(policy) == [2, 4]
    assert {int(d) for step in model.last_trace.steps for d in step.layers_used.unique()} <= {
        *(2, 4, 6)
    }


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_static_exits_through_one_head(models, kind):
    model, net_input = models[kind], batch(2)
    model.configure_exits(StaticExit((6, 6, 4)))
    (hypothesis, *_), _ = generate(model, net_input, STEPS, beam_size=1)
    given = hypothesis["tokens"].tolist()
    scores, used = slow_decode(model, select(net_input, 0), given, "propagate", 0.0, [4])
    assert used == [4] * len(given)
    wanted = torch.stack([s[token] for s, token in zip(scores, given, strict=True)])
    torch.testing.assert_close(hypothesis["positional_scores"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("kv", ["propagate", "recompute"])  # answers share copies as beams do
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_closed_sets_equal_the_slow_loop(models, kind, kv, prompts):
    model, chosen = models[kind], sample(prompts)
    generator = AllCandidateGenerator([model], TRIE, PAD)
    words, taken = generator.tree.words.tolist(), set()
    for alpha in (0.0, 0.7, 0.9, 0.97, 0.995):
        model.configure_exits(ConfidenceExit(alpha), kv)
        hypotheses = generator.generate([model], chosen)
        tokens = [[h["tokens"].tolist() for h in of] for of in hypotheses]
        depths = generator.traces()[0].depths(tokens)
        for row, of_sentence in enumerate(hypotheses):
            net_input = select(chosen["net_input"], row)
            prompt = net_input["prev_output_tokens"][0, 1 : chosen["prompt_lengths"][row]].tolist()
            for rank, hypothesis in enumerate(of_sentence):
                answer = tokens[row][rank]
                # A word is decided where the answers leave a choice. Elsewhere any can follow.
                next_words = [TRIE.allowed_next(answer[:t]) for t in range(len(answer))]
                choices = [next if len(next) > 1 else words for next in next_words]
                allowed = [words] * len(prompt) + choices
                scores, used = slow_decode(
                    model, net_input, [*prompt, *answer], kv, alpha, None, allowed
                )
                for t, token in enumerate(answer):
                    decided, place = len(next_words[t]) > 1, len(prompt) + t
                    assert depths[row][rank][t] == (used[place] if decided else 0)
                    wanted = scores[place][token] if decided else torch.tensor(0.0)
                    found = hypothesis["positional_scores"][t]
                    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
                taken.update(depths[row][rank])
    assert len(ANSWERS) == len(tokens[0]) and EOS not in words
    assert len(taken - {0}) > 2


@pytest.mark.gpu
@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_generates_as_the_cpu_does(kind, kv):
    net_input, found = batch(4), []
    alpha = alphas(noisy(kind))[4]
    for device in ("cpu", "cuda"):
        model = noisy(kind).to(device)
        model.configure_exits(ConfidenceExit(alpha), kv)
        inputs = {name: value.to(device) for name, value in net_input.items()}
        hypotheses = generate(model, inputs, STEPS)
        tokens = [[h["tokens"].tolist() for h in of] for of in hypotheses]
        scores = torch.stack([h["score"].cpu() for of in hypotheses for h in of])
        found.append((tokens, model.last_trace.depths(tokens), scores))
    (tokens, depths, scores), (gpu_tokens, gpu_depths, gpu_scores) = found
    assert gpu_tokens == tokens and gpu_depths == depths
    torch.testing.assert_close(gpu_scores, scores, rtol=1e-4, atol=1e-4)
