"""Leaving through exits (BLIPEE Section 3.5) against loops written from the paper."""

from __future__ import annotations

import pytest
import torch
from helpers.candidate_samples import PAD, TRIE, one_by_one, sample
from helpers.flop_counts import CPU_CAPACITY, counted
from helpers.small_models import VOCAB, TriesHeads, batch, generate, nano, select

from ofa_exit.evaluation.efficiency import flops
from ofa_exit.evaluation.efficiency.depth import SampleDepth
from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.evaluation.efficiency.totals import RunTotals
from ofa_exit.plugin.search.candidates import AllCandidateGenerator
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.policies.measures import softmax_confidence
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit

KV_MODES = ["propagate", "recompute"]
EXITS = [1, 2, 4]
STEPS = 8


@pytest.fixture(scope="module")
def model():
    return nano(exit_layers="1,2,4")


@torch.no_grad()
def middle_alpha(model, quantile: float = 0.6) -> float:
    """An α that some tokens pass at every exit."""
    model.configure_exits(None)
    _, extra = model(**batch(4, target=10), exit_features=True)
    logits = [model.output_layer(x) for x in extra["exit_features"].values()]
    return float(torch.stack([softmax_confidence(x) for x in logits]).quantile(quantile))


def slow_decode(model, net_input, tokens, kv, alpha):
    """One hypothesis, token by token, no cache: the inputs of every layer and exit are kept.

    Returns log-probabilities of ``tokens`` and the backbone layers that each needed.
    """
    out = model.encoder(**{k: v for k, v in net_input.items() if k != "prev_output_tokens"})
    decoder = model.decoder
    inputs = {("layer", n): [] for n in range(1, 7)} | {("exit", n): [] for n in EXITS}
    prefix, scores, depths = [0], [], []

    def run(kind, number, module, place):
        block = torch.cat(inputs[kind, number], dim=1)
        biases, cross_bias = decoder.biases(block.size(1), out, None)
        cross = module.encoder_attn.project_kv(out.states)
        return module(block, biases[place], cross, cross_bias)[:, -1:]

    for token in tokens:
        state = decoder.layernorm_embedding(decoder.embed_tokens(torch.tensor([prefix[-1:]])))
        feature, depth = None, 6
        for number, layer in enumerate(decoder.layers, start=1):
            inputs["layer", number].append(state)
            if feature is None or kv == "recompute":
                state = run("layer", number, layer, number - 1)
            if number in EXITS:
                inputs["exit", number].append(state)
                if feature is None:
                    made = run("exit", number, decoder.exits[str(number)], number)
                    words = decoder.output_layer(decoder.layer_norm(made))[0, 0].softmax(-1)
                    if float(words.max()) > alpha:
                        feature, depth = made, number
        final = decoder.layer_norm(state if feature is None else feature)
        scores.append(float(decoder.output_layer(final)[0, 0].log_softmax(-1)[token]))
        depths.append(depth)
        prefix.append(token)
    return scores, depths


@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.usefixtures("reading")
@torch.no_grad()
def test_beam_search_equals_the_slow_loop(model, kv, beam):
    net_input = batch(4)
    for quantile in torch.linspace(0.4, 0.95, 12).tolist():  # until all exits are taken
        alpha = middle_alpha(model, quantile)
        model.configure_exits(ConfidenceExit(alpha), kv)
        hypotheses = generate(model, net_input, STEPS, beam_size=beam)
        tokens = [[h["tokens"].tolist() for h in of] for of in hypotheses]
        depths = model.last_trace.depths(tokens)
        if len({d for s in depths for h in s for d in h}) > 2:
            break
    assert len({d for s in depths for h in s for d in h}) > 2, "exits should be mixed"
    for row, of_sentence in enumerate(hypotheses):
        for rank, hypothesis in enumerate(of_sentence):
            given = tokens[row][rank]
            scores, used = slow_decode(model, select(net_input, row), given, kv, alpha)
            assert depths[row][rank] == used
            torch.testing.assert_close(
                hypothesis["positional_scores"], torch.tensor(scores), rtol=1e-4, atol=2e-4
            )


@pytest.mark.parametrize("kv", KV_MODES)
@torch.no_grad()
def test_incremental_equals_teacher_forced(model, kv):
    model.configure_exits(ConfidenceExit(middle_alpha(model)), kv)
    net_input = batch(3)
    tokens = net_input.pop("prev_output_tokens")
    out = model.encoder(**net_input)
    whole, _ = model.decoder(tokens, out)
    trace = model.last_trace.steps[-1].layers_used
    state: dict = {}
    out = model.encoder(**net_input)
    steps = [
        model.decoder(tokens[:, : t + 1], out, incremental_state=state)[0]
        for t in range(tokens.size(1))
    ]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)
    layers = torch.cat([step.layers_used for step in model.last_trace.steps], dim=1)
    assert torch.equal(layers, trace) and len(layers.unique()) > 2


@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.usefixtures("reading")
@torch.no_grad()
def test_a_row_never_depends_on_its_batch(model, kv, monkeypatch):
    """Nor on who finishes early."""
    model.configure_exits(ConfidenceExit(middle_alpha(model)), kv)
    project, eos = model.decoder.output_projection, torch.zeros(VOCAB)
    monkeypatch.setattr(model.decoder, "output_layer", lambda features: project(features) + eos)
    net_input = batch(6)
    for likely in torch.arange(0.0, 5.0, 0.25):
        eos[2] = likely
        together = generate(model, net_input, 12)
        if len({step.layers_used.size(0) for step in model.last_trace.steps}) > 2:
            break
    tokens = [[h["tokens"].tolist() for h in s] for s in together]
    depths = model.last_trace.depths(tokens)
    assert len({d for s in depths for h in s for d in h}) > 1
    assert len({step.layers_used.size(0) for step in model.last_trace.steps}) > 2
    for row in range(6):
        alone = generate(model, select(net_input, row), 12)[0]
        assert [h["tokens"].tolist() for h in alone] == tokens[row]
        assert model.last_trace.depths([tokens[row]]) == [depths[row]]


@torch.no_grad()
def test_words_are_scored_in_portions(model, monkeypatch):
    """However few scores fit at once, the same tokens leave."""
    model.configure_exits(ConfidenceExit(middle_alpha(model)))
    whole, _ = model(**batch(4, target=10))
    depths = model.last_trace.steps[-1].layers_used
    monkeypatch.setattr("ofa_exit.models.word_scores.MAX_SCORES_AT_ONCE", 1)
    parts, _ = model(**batch(4, target=10))
    assert torch.equal(model.last_trace.steps[-1].layers_used, depths)
    assert len(depths.unique()) > 1
    torch.testing.assert_close(parts, whole)


@torch.no_grad()
def test_exits_that_nobody_takes_change_nothing(model):
    model.configure_exits(None)
    net_input = batch(3)
    plain = generate(model, net_input)
    ran = []
    hooks = [
        layer.register_forward_hook(lambda *_: ran.append(1))
        for layer in model.decoder.exits.values()
    ]
    for policy, runs in (
        (ConfidenceExit(1.0), False),
        (SimilarityExit(1.0, 1.0), False),
        (ConfidenceExit(0.9999999), True),
    ):
        model.configure_exits(policy)
        for a, b in zip(plain, generate(model, net_input)):
            for left, right in zip(a, b):
                assert torch.equal(left["positional_scores"], right["positional_scores"])
        assert bool(ran) == runs
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.parametrize("layer", EXITS)
@torch.no_grad()
def test_static_evaluates_one_exit_alone(model, layer, kv):
    model.configure_exits(None)
    net_input = batch(3)
    _, extra = model(**net_input, exit_features=True)
    wanted = extra["exit_features"][layer]
    model.configure_exits(StaticExit((6, 6, layer)), kv)
    features, _ = model(**net_input, features_only=True)
    torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-5)
    (step,) = model.last_trace.steps
    assert step.heads_run.tolist() == [1, 1, 1] and step.layers_used.unique().tolist() == [layer]
    model.configure_exits(StaticExit((6, 6, 3)), kv)  # no exit there: the plain state
    features, _ = model(**net_input, features_only=True)
    model.configure_exits(None)
    _, extra = model(**net_input, features_only=True, all_layers=True)
    torch.testing.assert_close(features, extra["layer_features"][2])


@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.parametrize("sentences", [1, 5])
@pytest.mark.usefixtures("reading")
@torch.no_grad()
def test_rows_run_are_rows_traced(model, sentences, kv):
    model.configure_exits(ConfidenceExit(middle_alpha(model)), kv)
    rows = {"layers": 0, "exits": 0, "cross": 0}

    def count(part):
        def hook(module, inputs, output):
            rows[part] += output.size(0)

        return hook

    hooks = [
        module.register_forward_hook(count(part))
        for part, modules in (("layers", model.decoder.layers), ("exits", [*EXITS]))
        for module in (
            modules if part == "layers" else [model.decoder.exits[str(n)] for n in modules]
        )
    ]
    hooks += [
        model.decoder.exits[str(n)].encoder_attn.k_proj.register_forward_hook(count("cross"))
        for n in EXITS
    ]
    generate(model, batch(sentences), beam_size=4)
    for hook in hooks:
        hook.remove()
    steps = model.last_trace.steps
    assert rows["layers"] == sum(int(step.layers_run.sum()) for step in steps)
    assert rows["exits"] == sum(int(step.heads_run.sum()) for step in steps) > 0
    reached = [
        0
    ] * sentences  # exits of each sentence whose cross-attention K/V were ever asked for
    for step in steps:
        for sentence, exits in zip(step.sentence.tolist(), step.heads_run.tolist()):
            reached[sentence] = max(reached[sentence], exits)
    assert rows["cross"] == sum(reached)  # once a sentence, on first reach


class Scripted(TriesHeads):
    """Leaves by time step."""

    def __init__(self, *layers: int) -> None:
        self.layers = layers

    def exits_at(self, seen):
        return seen.layer >= self.layers[int(seen.step)]


@pytest.mark.parametrize("kv", KV_MODES)
def test_generation_costs_what_torch_counts(kv):
    model = nano(exit_layers="1,2,4").requires_grad_(False)
    sentence = select(batch(1, size=48), 0)
    model.configure_exits(Scripted(1, 3, 6, 2, 1, 5, 4), kv)
    for part in (model.encoder, model.decoder):
        part.forget_shapes()
    real = counted(lambda: generate(model, sentence, steps=6, beam_size=2, min_len=6))
    trace = model.last_trace
    cells, text = model.encoder.image_tokens(48, 48), int(sentence["src_lengths"])
    counts = flops.batch_flops(trace)
    biases = flops.bias_costs(model, cells, text, CPU_CAPACITY)
    assert sum(counts.executed.values()) + sum(biases.values()) == real
    assert sum(int(step.head_kv_backfilled.sum()) for step in trace.steps) > 0
    assert counts.executed["exits"] > 0 == counts.full["exits"]


@torch.no_grad()
def test_raising_alpha_never_adds_an_exit(model):
    net_input, before = batch(4), None
    for alpha in (0.0, 0.05, 0.1, 0.3, 0.6, 0.9, 1.0):
        model.configure_exits(ConfidenceExit(alpha), "recompute")
        model(**net_input)
        layers = model.last_trace.steps[-1].layers_used
        assert before is None or (layers >= before).all()
        before = layers
    assert (before == 6).all()


@pytest.mark.parametrize("prompts", [False, True])
@torch.no_grad()
def test_closed_sets_are_confident_over_their_answers(model, prompts, monkeypatch):
    """The first exit whose best allowed answer is likely enough, sentence by sentence."""
    chosen = sample(prompts)
    generator = AllCandidateGenerator([model], TRIE, PAD)
    projected = []
    project = model.decoder.output_layer
    monkeypatch.setattr(model.decoder, "output_layer", lambda x: projected.append(x) or project(x))
    for alpha in (0.0, 0.6, 0.9, 1.0):
        model.configure_exits(ConfidenceExit(alpha), "recompute")
        hypotheses = generator.generate([model], chosen)
        assert not projected  # never over the whole vocabulary
        tokens = [[h["tokens"].tolist() for h in of] for of in hypotheses]
        depths = generator.traces()[0].depths(tokens)
        for number, of_sentence in enumerate(tokens):
            sure = []
            for layer in EXITS:
                model.configure_exits(StaticExit((6, 6, layer)))
                first = one_by_one(model, chosen, number)
                model.configure_exits(None)
                sure.append((layer, max(float(first[0][0].exp()), float(first[1][0].exp()))))
            projected.clear()
            wanted = next((layer for layer, p in sure if p > alpha), 6)
            assert {answer[0] for answer in depths[number]} == {wanted}, (of_sentence, sure)


# ------------------------------------------------------------------ measures and reports


def test_confidence_is_the_largest_probability():
    logits = torch.randn(3, 4, 50, dtype=torch.float64)
    torch.testing.assert_close(
        softmax_confidence(logits), logits.softmax(-1).amax(-1).float(), rtol=1e-5, atol=1e-6
    )
    constrained = torch.full((2, 5), -torch.inf)
    constrained[:, 1] = 3.0
    assert softmax_confidence(constrained).tolist() == [1.0, 1.0]
    assert softmax_confidence(logits.half()).dtype == torch.float32


def test_speedup_and_time_reduction_count_the_heads_own_layers():
    """By hand: words at 2 + 1, at 4 + 1, at the last of 6 layers, and at 3 without a head."""
    samples = [SampleDepth(6, 6, (2, 4)), SampleDepth(6, 6, (6, 3, 0))]
    rest = dict(seconds=1.0, counted=0, executed={}, full={}, biases={})
    values = RunTotals.of(samples, 6, 6, [1, 2, 4], 1, **rest).summary()
    assert values["parameter_speedup"] == pytest.approx(6 / ((3 + 5 + 6 + 3) / 4))
    reductions = [(1 - (3 + 5) / 2 / 6) / 2, (1 - (6 + 3) / 2 / 6) / 2]
    assert values["expected_time_reduction"] == pytest.approx(sum(reductions) / 2)
    assert values["decoder_layers"] == (3 + 4.5) / 2


@torch.no_grad()
def test_the_report_has_it(model):
    model.configure_exits(ConfidenceExit(0.0))
    report = GenerationReport(model)
    hypotheses = generate(model, batch(2))
    tokens = [[h["tokens"].tolist() for h in of] for of in hypotheses]
    report.add(["a", "b"], model.last_trace, tokens, [7, 5], (32, 32), 1.0)
    assert report.summary()["parameter_speedup"] == 3  # all leave at layer 1: 6 / (1 + 1)
    assert "parameter_speedup" in report.table() and "after layers 1,2,4" in report.table()
    model.configure_exits(None)
    report = GenerationReport(model)
    generate(model, batch(2))
    report.add(["a", "b"], model.last_trace, [[[5]], [[5]]], [7, 5], (32, 32), 1.0)
    assert report.summary()["parameter_speedup"] == 1
    assert "parameter_speedup" not in report.table()


@torch.no_grad()
def test_some_exits_of_a_model_alone(model):
    """As in a model that has no others: nothing is left of those that are not tried."""
    fewer = nano(exit_layers="2,4")
    wanted = fewer.state_dict()
    fewer.load_state_dict({n: v for n, v in model.state_dict().items() if n in wanted})
    alpha, net_input = middle_alpha(model), batch(3)
    fewer.configure_exits(ConfidenceExit(alpha))
    expected = generate(fewer, net_input, STEPS)
    model.configure_exits(ConfidenceExit(alpha, [2, 4]))
    assert model.decoder.active_heads(model.decoder.exit_policy) == [2, 4]
    for of, other in zip(generate(model, net_input, STEPS), expected, strict=True):
        assert [h["tokens"].tolist() for h in of] == [h["tokens"].tolist() for h in other]
    traces = [m.last_trace.steps for m in (model, fewer)]
    for step, other in zip(*traces, strict=True):
        assert torch.equal(step.layers_used, other.layers_used) and torch.equal(
            step.heads_run, other.heads_run
        )
    assert len({int(d) for step in traces[0] for d in step.layers_used}) > 1
