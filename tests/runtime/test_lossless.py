"""Lossless mode: greedy search with drafts gives the tokens of full depth."""

import random

import pytest
import torch
from helpers.flop_counts import CPU_CAPACITY, counted
from helpers.small_models import VOCAB, batch, generate, nano

from ofa_exit.evaluation.efficiency.flops import batch_flops, bias_costs
from ofa_exit.models import lossless
from ofa_exit.models.lossless import LosslessDecoding
from ofa_exit.plugin.drafts import allowed_words
from ofa_exit.plugin.search.prompted import BoundedEnsemble
from ofa_exit.policies.static import StaticExit
from ofa_exit.runtime.drafts import DraftBuffer, Drafting

EOS, DEPTH, STEPS = 2, 6, 12


def tokens_of(hyps):
    return [row[0]["tokens"].tolist() for row in hyps]


def assert_same(found, expected):
    assert tokens_of(found) == tokens_of(expected)
    for one, other in zip(found, expected):
        for name in ("score", "positional_scores"):
            torch.testing.assert_close(one[0][name], other[0][name], atol=1e-4, rtol=1e-4)


def greedy(model, net_input, drafting=None, allowed=None, **options):
    model.configure_exits(None, drafting=drafting, trace=True)
    model.decoder.allowed_words = allowed
    return generate(model, net_input, STEPS, **{"beam_size": 1, **options})


def bounded(model, *limits):
    """Stock search in which each sentence ends at its own step."""
    ensemble = BoundedEnsemble([model])
    ensemble.limits, ensemble.eos = torch.tensor(limits), EOS

    def run(net_input, drafting=None):
        model.configure_exits(None, drafting=drafting, trace=True)
        generator_options = {"beam_size": 1}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("helpers.small_models.SequenceGenerator", _generator_of(ensemble))
            return generate(model, net_input, STEPS, **generator_options)

    return run


def _generator_of(ensemble):
    from fairseq.sequence_generator import SequenceGenerator

    return lambda models, *args, **options: SequenceGenerator(ensemble, *args, **options)


class Forced:
    """Drafts that are right at a rate, whatever the model: ``pattern(row, position)``."""

    def __init__(self, expected, pattern):
        self.expected, self.pattern = expected, pattern

    def __call__(self, decoding, hidden, prefixes, choices):
        drafts = []
        for prefix in prefixes:
            # The sentence whose full-depth tokens begin like this; a rejected draft has none.
            place = len(prefix) - 1
            rows = [n for n, own in enumerate(self.expected) if own[:place] == prefix[1:]]
            right = self.expected[rows[0]][place] if rows else 5
            wrong = 4 + (right + 1) % (VOCAB - 8)
            drafts.append(right if not rows or self.pattern(rows[0], place) else wrong)
        return drafts


def force(monkeypatch, expected, pattern):
    forced = Forced(tokens_of(expected), pattern)
    monkeypatch.setattr(LosslessDecoding, "guess", lambda *arguments: forced(*arguments))


def rounds_by_hand(length, count, pattern):
    """(drafted, accepted) of a sentence of ``length`` tokens with eos, walked slowly."""
    position, drafted, accepted = 0, 0, 0
    while position < length:
        # After `position` tokens, drafts for tokens position, position + 1, …; eos is never fed.
        right = 0
        room = min(count, STEPS - position)
        usable = [place for place in range(position, position + room) if place < length - 1]
        for place in usable:
            if not pattern(0, place):
                break
            right += 1
        # A wrong draft goes on from what full depth never saw: its drafts all count.
        drafted += len(usable) if right == len(usable) else room
        accepted += right
        position += right + 1
    return drafted, accepted


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("count", [1, 3, 4, 20])
def test_forced_patterns_give_the_tokens_of_full_depth(monkeypatch, rate, count):
    model, net_input = nano(), batch(1)
    expected = greedy(model, net_input, no_repeat_ngram_size=3)
    draws = random.Random(f"{rate} {count}")
    agreed = [draws.random() < rate for _ in range(STEPS + 1)]
    force(monkeypatch, expected, lambda row, place: agreed[place])
    found = greedy(model, net_input, Drafting(count, 2), no_repeat_ngram_size=3)
    assert_same(found, expected)
    steps = model.last_trace.steps
    seen = tuple(int(sum(getattr(s, n).sum() for s in steps)) for n in ("drafted", "accepted"))
    length = len(expected[0][0]["tokens"])
    assert seen == rounds_by_hand(length, count, lambda row, place: agreed[place])


@pytest.mark.parametrize("layer", [1, 3, 5])
@pytest.mark.parametrize("split", [True, False])
def test_drafts_of_the_model_give_the_tokens_of_full_depth(split, layer):
    model, net_input = nano(split), batch(3)
    expected = greedy(model, net_input)
    for count in (1, 4):
        assert_same(greedy(model, net_input, Drafting(count, layer)), expected)


@pytest.mark.parametrize("limits", [(3, 9, 6), (12, 1, 12), (5, 5, 2)])
def test_sentences_of_different_lengths_accept_different_drafts(monkeypatch, reading, limits):
    model, net_input = nano(), batch(3)
    run = bounded(model, *limits)
    expected = run(net_input)
    assert [len(tokens) for tokens in tokens_of(expected)] == [n + 1 for n in limits]
    draws = random.Random(reading)
    agreed = [[draws.random() < 0.7 for _ in range(STEPS + 1)] for _ in limits]
    force(monkeypatch, expected, lambda row, place: agreed[row][place])
    for count in (2, 4):
        assert_same(run(net_input, Drafting(count, 2)), expected)
    parts = {len(s.layers_run.nonzero()) for s in model.last_trace.steps}
    assert len(parts) > 1  # some rows sat rounds out


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram_size": 2},
        {"min_len": 9},
        {"unk_penalty": 5.0, "temperature": 1.7},
        {"len_penalty": 0.3, "normalize_scores": False},
        {"max_len": 7},
    ],
    ids=str,
)
def test_options_of_the_search_apply_to_every_word(options):
    model, net_input = nano(False), batch(3)
    found = greedy(model, net_input, Drafting(4, 2), **options)
    assert_same(found, greedy(model, net_input, **options))


def test_a_row_alone_gives_what_it_gives_in_a_batch():
    model, net_input = nano(), batch(2)
    together = greedy(model, net_input, Drafting(3, 2))
    alone = {k: v[:1] for k, v in net_input.items()}
    assert tokens_of(together)[:1] == tokens_of(greedy(model, alone, Drafting(3, 2)))


def test_known_words_are_drafted_without_scoring():
    model, net_input = nano(), batch(2)
    expected = tokens_of(greedy(model, net_input))
    prefix = torch.tensor([tokens[:STEPS] for tokens in expected])
    allowed = allowed_words(prefix, 1)
    found = greedy(model, net_input, Drafting(4, 1), allowed)
    assert tokens_of(found) == expected
    steps = model.last_trace.steps
    assert sum(int(s.accepted.sum()) for s in steps) == sum(int(s.drafted.sum()) for s in steps)
    assert batch_flops(model.last_trace).executed["exits"] == 0
    # 13 steps in rounds of 5: three rounds, in which both rows run 5, 5 and 3 positions.
    assert [s.layers_run.tolist() for s in steps if s.layers_run.any()] == [
        [5 * DEPTH] * 2,
        [5 * DEPTH] * 2,
        [3 * DEPTH] * 2,
    ]


def test_layers_run_are_those_that_ran():
    model, net_input = nano(False), batch(3)
    positions = []
    for layer in model.decoder.layers:
        layer.register_forward_hook(
            lambda module, inputs, out: positions.append(out.size(0) * out.size(1))
        )
    greedy(model, net_input, Drafting(3, 2))
    assert sum(positions) == sum(int(s.layers_run.sum()) for s in model.last_trace.steps)


@pytest.mark.parametrize("rows", [1, 2])
def test_flops_are_those_of_torch(rows):
    """Rejected drafts cost, too."""
    model = nano(False).requires_grad_(False)  # torch's counter stumbles over views of parameters
    net_input = {k: torch.cat([v] * rows) for k, v in batch(1).items()}
    net_input["patch_images"][rows - 1] *= 0.5
    operations = counted(lambda: greedy(model, net_input, Drafting(3, 2)))
    executed = batch_flops(model.last_trace).executed
    assert executed["exits"] > 0
    biases = bias_costs(model, model.encoder.image_tokens(32, 32), 7, CPU_CAPACITY)
    assert sum(executed.values()) + sum(biases.values()) == operations


def test_full_depth_of_the_report_is_that_of_a_plain_search():
    model, net_input = nano(), batch(3)
    greedy(model, net_input, Drafting(3, 2))
    of_drafts = batch_flops(model.last_trace).full
    greedy(model, net_input)
    assert of_drafts == batch_flops(model.last_trace).full


def test_drafts_end_with_the_positions_of_the_model():
    model, net_input = nano(max_target_positions=9), batch(2)
    expected = greedy(model, net_input)
    assert max(map(len, tokens_of(expected))) == 9
    assert tokens_of(greedy(model, net_input, Drafting(20, 2))) == tokens_of(expected)


def test_misuse_is_rejected():
    model, net_input = nano(), batch(1)
    with pytest.raises(ValueError, match="--beam 1"):
        greedy(model, net_input, Drafting(3, 2), beam_size=2)
    with pytest.raises(ValueError, match="--exit-lossless-layer 6: the model has 6"):
        model.configure_exits(None, drafting=Drafting(3, 6))
    with pytest.raises(ValueError, match="leave the exit policy out"):
        model.configure_exits(StaticExit((1, 1, 1)), drafting=Drafting(3, 2))
    for wrong in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            Drafting(*wrong)


def test_the_buffer_forgets_what_was_not_chosen():
    buffer, scores = DraftBuffer(2), torch.arange(6.0).view(2, 3, 1)
    assert buffer.missing(0, [0, 0]) == [0, 1]
    buffer.add([0, 1], 0, [[0, 7, 8], [0, 9]], scores)
    assert buffer.scores(0).flatten().tolist() == [0, 3]
    assert buffer.missing(1, [7, 5]) == [1]  # row 1 was drafted 9
    buffer.add([1], 1, [[5]], scores[:1, :1] + 10)
    assert buffer.scores(1).flatten().tolist() == [1, 10]
    assert buffer.missing(2, [8, 6]) == [1]
    buffer.add([1], 2, [[6]], scores[:1, :1] + 20)
    buffer.reorder(torch.tensor([1]))
    assert buffer.scores(2).flatten().tolist() == [20]
    assert buffer.missing(3, [4]) == [0]


def test_drafts_of_all_rows_are_read_at_once(monkeypatch):
    model, reads = nano(), []
    decoding = LosslessDecoding(model.decoder, Drafting(4, 1), None)
    hidden = torch.randn(5, model.cfg.decoder_embed_dim, generator=torch.manual_seed(0))
    choices = [(), (7, 9, 11), (5,), (8, 6), ()]
    features = model.decoder.layer_norm(hidden)
    scores = features @ model.decoder.output_projection.weight.T  # [5, V]
    expected = [max(words or range(VOCAB), key=scores[row].__getitem__)
                for row, words in enumerate(choices)]  # fmt: skip
    read = lossless.to_host
    monkeypatch.setattr(lossless, "to_host", lambda values: reads.append(1) or read(values))
    with torch.no_grad():
        assert decoding.guess(hidden, [[0]] * 5, choices) == expected
    assert len(reads) == 1


def test_kept_scores_are_those_of_a_row_alone():
    buffer, scores = DraftBuffer(4), torch.randn(4, 5, VOCAB)
    buffer.add([0, 1, 2, 3], 0, [[0], [0, 6], [0, 6, 7], [0]], scores)
    held = [one.scores for one in buffer._rounds]
    assert [one.untyped_storage().nbytes() // 4 for one in held] == [
        VOCAB * n for n in (1, 2, 3, 1)
    ]
    assert all(torch.equal(one, scores[row, : len(one)]) for row, one in enumerate(held))


def test_what_else_is_asked_of_the_decoder_is_given():
    model, net_input = nano(), batch(2)
    model.configure_exits(None, drafting=Drafting(2, 1))
    with torch.no_grad():
        out = model.encoder.forward_torchscript(net_input)
        tokens = torch.zeros(2, 1, dtype=torch.long)
        found, _ = model.decoder(tokens, out, incremental_state={}, features_only=True)
    assert found.shape == (2, 1, model.cfg.decoder_embed_dim)
