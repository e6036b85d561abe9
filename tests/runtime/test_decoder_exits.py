"""Exits in the decoder against loops written from MuE's Algorithm 1, whatever search does."""

from __future__ import annotations

import pytest
import torch
from helpers.small_models import VOCAB, batch, generate, nano, select

from ofa_exit.policies.measures import hidden_saturation
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit
from ofa_exit.runtime.rows import to_slices

KV_MODES = ["propagate", "recompute"]
STEPS = 8


@pytest.fixture(scope="module")
def model():
    return nano()


def decoder_threshold(model, quantile: float = 0.75) -> float:
    """A threshold that lets some tokens leave at every depth."""
    model.configure_exits(None)
    net_input = batch(4, target=10)
    with torch.no_grad():
        _, extra = model(**net_input, return_layers=True)
    states = extra["layer_states"]
    cosines = torch.stack([hidden_saturation(a, b) for a, b in zip(states, states[1:])])
    return float(cosines.flatten().quantile(quantile))


def slow_decode(model, net_input, tokens, kv, threshold, **schedule):
    """One hypothesis, token by token, without a cache: inputs of every layer are kept as lists.

    Returns log-probabilities of ``tokens`` and the layers that each needed.
    """
    policy = SimilarityExit(2.0, 2.0, 2.0, threshold, **schedule)
    out = model.encoder(
        **{k: v for k, v in net_input.items() if k != "prev_output_tokens"},
    )
    decoder = model.decoder
    prefix, inputs = [0], [[] for _ in decoder.layers]
    scores, depths = [], []
    for step, token in enumerate(tokens):
        length = step + 1
        embedded = decoder.embed_tokens(torch.tensor([prefix[-1:]]))
        state = decoder.layernorm_embedding(embedded)
        frozen, depth = None, 0
        self_biases, cross_bias = decoder.biases(length, out, None)
        for number, layer in enumerate(decoder.layers, start=1):
            going = state if frozen is None or kv == "recompute" else frozen
            inputs[number - 1].append(going)
            if frozen is not None and kv == "propagate":
                continue
            block = torch.cat(inputs[number - 1], dim=1)
            cross = layer.encoder_attn.project_kv(out.states)
            new = layer(block, self_biases[number - 1], cross, cross_bias)[:, -1:]
            if frozen is None:
                depth = number
                cosine = float(hidden_saturation(state, new))
                if number < len(decoder.layers) and exits(policy, cosine, step):
                    frozen = new
            state = new
        final = state if frozen is None else frozen
        logits = decoder.output_layer(decoder.layer_norm(final))[0, 0]
        scores.append(float(torch.log_softmax(logits, -1)[token]))
        depths.append(depth)
        prefix.append(token)
    return scores, depths


def exits(policy, cosine, step) -> bool:
    """MuE Eq. 11 in plain Python."""
    import math

    theta = policy.decoder_threshold
    if policy.schedule == "decay":
        theta = policy.beta * theta + (1 - policy.beta) * math.exp(-policy.tau * step / STEPS)
    return theta < 1 and cosine > theta


@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.parametrize("schedule", ["static", "decay"])
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.usefixtures("reading")
@torch.no_grad()
def test_beam_search_with_exits_equals_the_slow_loop(model, kv, schedule, beam):
    threshold = decoder_threshold(model)
    options = dict(schedule=schedule, beta=0.9, tau=0.5)
    policy = SimilarityExit(2.0, 2.0, 2.0, threshold, **options)
    net_input = batch(4)
    model.configure_exits(policy, kv)
    hypotheses = generate(model, net_input, STEPS, beam_size=beam)
    tokens = [[h["tokens"].tolist() for h in of_sentence] for of_sentence in hypotheses]
    depths = model.last_trace.depths(tokens)
    assert len({d for s in depths for h in s for d in h}) > 2, "exits should be mixed"
    model.configure_exits(None)
    lengths = set()
    for row, of_sentence in enumerate(hypotheses):
        for rank, hypothesis in enumerate(of_sentence):
            lengths.add(len(tokens[row][rank]))
            scores, used = slow_decode(
                model, select(net_input, row), tokens[row][rank], kv, threshold, **options
            )
            assert depths[row][rank] == used
            torch.testing.assert_close(
                hypothesis["positional_scores"], torch.tensor(scores), rtol=1e-4, atol=2e-4
            )


@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.usefixtures("reading")
@torch.no_grad()
def test_sentences_that_finish_early_leave_the_others_alone(model, kv, monkeypatch):
    """A batch of sentences that end at different steps gives what each gives alone."""
    threshold = decoder_threshold(model)
    model.configure_exits(SimilarityExit(0.5, 0.5, 2.0, threshold, schedule="static"), kv)
    net_input = batch(6)
    project, eos = model.decoder.output_projection, torch.zeros(VOCAB)
    monkeypatch.setattr(model.decoder, "output_layer", lambda features: project(features) + eos)
    for likely in torch.arange(0.0, 5.0, 0.25):  # until eos competes with the best words
        eos[2] = likely
        together = generate(model, net_input, 12)
        if len({step.layers_used.size(0) for step in model.last_trace.steps}) > 2:
            break
    tokens = [[h["tokens"].tolist() for h in s] for s in together]
    depths = model.last_trace.depths(tokens)
    image, text = model.last_trace.image_layers, model.last_trace.text_layers
    rows = [step.layers_used.size(0) for step in model.last_trace.steps]
    assert len(set(rows)) > 2, "the sentences should end at different steps"
    for row in range(6):
        alone = generate(model, select(net_input, row), 12)[0]
        assert [h["tokens"].tolist() for h in alone] == tokens[row]
        assert model.last_trace.depths([tokens[row]]) == [depths[row]]
        assert int(model.last_trace.image_layers) == int(image[row])
        assert int(model.last_trace.text_layers) == int(text[row])


@pytest.mark.parametrize("kv", KV_MODES)
@torch.no_grad()
def test_incremental_equals_teacher_forced(model, kv):
    threshold = decoder_threshold(model)
    model.configure_exits(SimilarityExit(2.0, 2.0, 2.0, threshold, schedule="static"), kv)
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


@torch.no_grad()
def test_no_exit_no_difference(model):
    """With gates that never open, every score is the plain stack's, to the bit."""
    net_input = batch(3)
    model.configure_exits(None)
    plain = generate(model, net_input)
    model.configure_exits(SimilarityExit(1.0, 1.0, 1.0, 1.0))
    never = generate(model, net_input)
    for a, b in zip(plain, never):
        for left, right in zip(a, b):
            assert torch.equal(left["tokens"], right["tokens"])
            assert torch.equal(left["positional_scores"], right["positional_scores"])
    tokens = [[h["tokens"].tolist() for h in s] for s in never]
    assert {d for s in model.last_trace.depths(tokens) for h in s for d in h} == {6}


@torch.no_grad()
def test_a_gate_that_never_opens_changes_nothing(model):
    """Gates evaluated at every layer (threshold just under 1) but never open."""
    net_input = batch(3)
    model.configure_exits(None)
    plain = generate(model, net_input)
    for kv in KV_MODES:
        model.configure_exits(SimilarityExit(0.99999, 0.99999, 2.0, 0.99999, schedule="static"), kv)
        for a, b in zip(plain, generate(model, net_input)):
            for left, right in zip(a, b):
                assert torch.equal(left["tokens"], right["tokens"])
                assert torch.equal(left["positional_scores"], right["positional_scores"])


@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.parametrize("depth", [1, 2, 4, 6])
@torch.no_grad()
def test_static_depth_equals_a_shorter_model(model, depth, kv):
    """StaticExit(k) is the model made of the first k layers."""
    net_input = batch(3)
    model.configure_exits(StaticExit((depth, depth, depth)), kv)
    exited = generate(model, net_input)
    shorter = nano(encoder_layers=depth, decoder_layers=depth)
    shorter.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k in shorter.state_dict()}
    )
    for a, b in zip(generate(shorter, net_input), exited):
        for left, right in zip(a, b):
            assert torch.equal(left["tokens"], right["tokens"])
            torch.testing.assert_close(
                left["positional_scores"], right["positional_scores"], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("sentences", [1, 5])
@pytest.mark.usefixtures("reading")
@torch.no_grad()
def test_rows_run_are_rows_traced(model, sentences, beam, kv):
    """Forward hooks count exactly the rows that the trace says every layer ran."""
    threshold = decoder_threshold(model)
    model.configure_exits(SimilarityExit(0.9, 0.9, 2.0, threshold, schedule="static"), kv)
    rows = {"encoder": 0, "decoder": 0, "backfilled": 0}

    def count(part):
        def hook(module, inputs, output):
            rows[part] += output.size(0)
            if part == "decoder":
                rows["backfilled"] += output.size(0) * (output.size(1) - 1)

        return hook

    hooks = [
        layer.register_forward_hook(count(part))
        for part, module in (("encoder", model.encoder), ("decoder", model.decoder))
        for layer in module.layers
    ]
    hypotheses = generate(model, batch(sentences), beam_size=beam)
    for hook in hooks:
        hook.remove()
    trace = model.last_trace
    assert rows["encoder"] == int(trace.image_layers.sum() + trace.text_layers.sum())
    ran = sum(int(step.layers_run.sum()) for step in trace.steps)
    needed = sum(int(step.layers_used.sum()) for step in trace.steps)
    assert rows["decoder"] == ran
    assert needed <= ran < 6 * sum(step.layers_used.numel() for step in trace.steps)
    if kv == "recompute":  # earlier positions pass the layer together with the newest
        assert rows["backfilled"] == sum(int(step.kv_backfilled.sum()) for step in trace.steps) > 0
    if beam == sentences == 1:  # nobody to ride along with
        (depths,) = trace.depths([[hypotheses[0][0]["tokens"].tolist()]])
        assert ran == sum(depths[0])


@torch.no_grad()
def test_raising_the_threshold_never_adds_an_exit(model):
    net_input = batch(4)
    tokens = net_input.pop("prev_output_tokens")
    before = None
    for threshold in (0.2, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0):
        model.configure_exits(
            SimilarityExit(threshold, threshold, 2.0, threshold, schedule="static"), "recompute"
        )
        # Recompute leaves the states of the full stack alone, so depths are comparable.
        out = model.encoder(**net_input)
        trace = model.last_trace
        encoder = torch.stack([trace.image_layers, trace.text_layers])
        model.configure_exits(
            SimilarityExit(2.0, 2.0, 2.0, threshold, schedule="static"), "recompute"
        )
        out = model.encoder(**net_input)
        model.decoder(tokens, out)
        decoder = model.last_trace.steps[-1].layers_used
        if before is not None:
            assert (encoder >= before[0]).all() and (decoder >= before[1]).all()
        before = encoder, decoder
    assert (before[1] == 6).all() and VOCAB


@torch.no_grad()
def test_ensemble_members_exit_by_themselves():
    from fairseq.sequence_generator import SequenceGenerator

    one, two = nano(), nano()
    for model, threshold in ((one, 0.9), (two, 1.0)):
        model.configure_exits(SimilarityExit(2.0, 2.0, 2.0, threshold, schedule="static"))
    inputs = {k: v for k, v in batch(3).items() if k != "prev_output_tokens"}
    generator = SequenceGenerator([one, two], one.decoder.dictionary, max_len_b=6, beam_size=2)
    hypotheses = generator.generate(
        [one, two], {"net_input": inputs, "id": torch.arange(3)}, bos_token=0
    )
    tokens = [[h["tokens"].tolist() for h in s] for s in hypotheses]
    assert {d for s in two.last_trace.depths(tokens) for h in s for d in h} == {6}
    assert min(d for s in one.last_trace.depths(tokens) for h in s for d in h) < 6


@torch.no_grad()
def test_cross_keys_are_made_for_sentences_that_get_there(model, reading):
    """Sentence i exits after layer 1 + i: the layers above never project its encoder states."""
    inputs = batch(3)

    class ByLimit(SimilarityExit):
        def decoder_gate(self, seen):
            return (seen.layer > seen.step_limit - 100).expand(seen.current.shape[:2])

    made = [0] * 6
    hooks = [
        layer.encoder_attn.k_proj.register_forward_hook(
            lambda module, given, output, number=number: made.__setitem__(
                number, made[number] + output.size(0)
            )
        )
        for number, layer in enumerate(model.decoder.layers)
    ]
    model.configure_exits(ByLimit(2.0, 2.0, 2.0, 0.5))
    generate(model, {**inputs, "step_limit": 100 + torch.arange(3)}, STEPS, beam_size=2)
    for hook in hooks:
        hook.remove()
    # Copied together, two that stay ride with the one that leaves first.
    assert made == ([3, 2, 1, 0, 0, 0] if reading == "in place" else [3, 3, 1, 0, 0, 0])


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("kv", KV_MODES)
def test_exits_run_under_autocast(model, kv):
    threshold = decoder_threshold(model)
    model.configure_exits(SimilarityExit(2.0, 2.0, 2.0, threshold, schedule="static"), kv)
    with torch.autocast("cpu", torch.bfloat16):
        hypotheses = generate(model, batch(4), STEPS)
    assert all(h["score"].isfinite() for of in hypotheses for h in of)
    assert len({int(d) for step in model.last_trace.steps for d in step.layers_used[:, 0]}) > 1


def test_to_slices_are_neighbours():
    assert to_slices([1, 2, 5]) == [slice(1, 3), slice(5, 6)]
    assert to_slices([]) == []
