"""Sentences and words at depths of their own, which finish when they like: what that costs, and
that it stays right in half precision and in ensembles, however keys and values are read."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from helpers.flop_counts import counted
from helpers.small_models import VOCAB, TriesHeads, generate, nano, select

from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.models import cpu
from ofa_exit.testing import random_images, random_tokens

KV_MODES = ["propagate", "recompute"]
STEPS = 10
BEAM = 2


def sentences(count: int = 4) -> dict[str, torch.Tensor]:
    """Of one length, each with a picture. Step limits, which nothing reaches, number them."""
    source = random_tokens("src", (count, 7), VOCAB)
    source[:, 0], source[:, -1] = 0, 2
    return {
        "src_tokens": source,
        "src_lengths": torch.full((count,), 7),
        "patch_images": random_images("image", (count, 3, 48, 48)),
        "patch_masks": torch.ones(count, dtype=torch.bool),
        "step_limit": 100 + torch.arange(count),
    }


class Mixed(TriesHeads):
    """In the decoder each sentence and step has a depth, every other hypothesis one layer less.
    Rounding decides nothing there. In the encoder samples leave by chance."""

    def __init__(self, encoder: bool = False) -> None:
        self.encoder = encoder

    def image_gate(self, seen):
        if not self.encoder:
            return False
        # A coin for each sample and layer, as its state falls.
        return (1000 * seen.current[:, 0, 0]).floor() % 2 == 0

    text_gate = joint_gate = image_gate

    def exits_at(self, seen):
        depth = 1 + (3 * (seen.step_limit - 100) + 2 * seen.step) % 6
        return seen.layer >= depth - torch.arange(len(seen.current))[:, None] % 2


def _biased(project, by, features):
    return project(features) + by


@pytest.fixture
def likely_ends(monkeypatch):
    """Makes models end sentences earlier, the larger the number in the tensor returned."""
    by = torch.zeros(VOCAB)

    def on(*models):
        for model in models:
            project = model.decoder.output_projection
            patched = partial(_biased, project, by)
            monkeypatch.setattr(model.decoder, "output_layer", patched)
        return by

    return on


def until_they_end_apart(by: torch.Tensor, run, trace):
    """What ``run`` returns once its sentences end at three steps or more."""
    for likely in torch.arange(1.0, 5.0, 0.5):
        by[2] = likely
        found = run()
        rows = [step.layers_used.size(0) for step in trace().steps]
        if len(set(rows)) > 2:
            return found
    raise AssertionError("the sentences should end at different steps")


@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.parametrize("exits", [None, "1,2,4"])
@pytest.mark.usefixtures("reading")
def test_the_report_counts_what_torch_counts(kv, exits, likely_ends):
    """Every operation of a beam search over a batch, by torch's own counter."""
    model = nano(exit_layers=exits).requires_grad_(False)
    model.configure_exits(Mixed(encoder=True), kv)
    inputs, hypotheses = sentences(), []

    def run() -> int:
        for part in (model.encoder, model.decoder):
            part.forget_shapes()
        return counted(
            lambda: hypotheses.append(generate(model, inputs, STEPS, beam_size=BEAM)),
        )

    real = until_they_end_apart(likely_ends(model), run, lambda: model.last_trace)
    report = GenerationReport(model)
    tokens = [[h["tokens"].tolist() for h in of] for of in hypotheses[-1]]
    report.add(list("abcd"), model.last_trace, tokens, [7] * 4, (48, 48), 1.0)
    totals = report.totals()
    assert sum(totals.executed.values()) + sum(totals.biases.values()) == real
    trace = model.last_trace
    assert len(trace.image_layers.unique()) > 1 and len(trace.text_layers.unique()) > 1
    assert len({int(d) for step in trace.steps for d in step.layers_used}) > 3
    assert (
        totals.executed["skipped_kv"] > 0
        and sum(totals.executed.values()) < sum(totals.full.values()) + totals.executed["exits"]
    )


@torch.no_grad()
def features(model, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the features after each step of given words. Hypotheses change places, sentence 1 ends
    after step 4, and sentence 2 after step 6."""
    model.to(dtype)
    inputs = sentences()
    inputs["patch_images"] = inputs["patch_images"].to(dtype)
    out, state, found = model.encoder(**inputs), {}, []
    out = model.encoder.reorder_encoder_out(out, torch.arange(4).repeat_interleave(BEAM))
    tokens = random_tokens("words", (4 * BEAM, STEPS), VOCAB)
    names = torch.arange(4).repeat_interleave(BEAM)
    for step in range(STEPS):
        x, _ = model.decoder(tokens[:, : step + 1], out, incremental_state=state)
        assert x.dtype == dtype
        found.append(x.float())
        order = torch.arange(len(tokens)).view(-1, BEAM)
        if step % 3:
            order = order.flip(1)
        order = order.flatten()
        finished = {4: 1, 6: 2}.get(step)
        if finished is not None:
            order = order[names != finished]
        model.decoder.reorder_incremental_state_scripting(state, order)
        out = model.encoder.reorder_encoder_out(out, order)
        tokens, names = tokens[order], names[order]
    return found


@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.parametrize("exits", [None, "1,2,4"])
def test_half_precision_reads_in_place_what_it_would_copy(kv, exits, monkeypatch):
    model = nano(exit_layers=exits)
    model.configure_exits(Mixed(), kv)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for stretch in (0, 2**62):
            monkeypatch.setattr(cpu, "MIN_ELEMENTS_TO_COPY", stretch)
            found[dtype, stretch] = torch.cat([x.flatten() for x in features(model, dtype)])
            ran = {int(n) for step in model.last_trace.steps for n in step.layers_run}
            assert len(ran) > 3, "sentences should leave by themselves"
    exact = found[torch.float32, 0]
    torch.testing.assert_close(found[torch.float32, 2**62], exact, rtol=1e-5, atol=1e-5)
    # bfloat16 has 8 bits; what is read of another row would be off by the numbers' own size.
    for stretch in (0, 2**62):
        assert (found[torch.bfloat16, stretch] - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("kv", KV_MODES)
@pytest.mark.usefixtures("reading")
@torch.no_grad()
def test_ensembles_give_a_batch_what_they_give_each_sentence(kv, likely_ends):
    """Two models, one with exits of its own, at mixed depths; alone, nobody is taken out."""
    models = [nano(), nano(exit_layers="1,2,4")]
    for model in models:
        model.configure_exits(Mixed(), kv)
    torch.nn.init.normal_(models[1].decoder.layers[2].fc1.weight)

    def search(inputs):
        generator = SequenceGenerator(
            models, models[0].decoder.dictionary, max_len_b=STEPS, beam_size=BEAM
        )
        rows = torch.arange(inputs["src_tokens"].size(0))
        return generator.generate(models, {"net_input": inputs, "id": rows}, bos_token=0)

    inputs = sentences()
    together = until_they_end_apart(
        likely_ends(*models), lambda: search(inputs), lambda: models[0].last_trace
    )
    traces = [model.last_trace for model in models]
    for row, expected in enumerate(together):
        (alone,) = search(select(inputs, row))
        tokens = [hypothesis["tokens"].tolist() for hypothesis in alone]
        assert tokens == [hypothesis["tokens"].tolist() for hypothesis in expected]
        for one, other in zip(alone, expected):
            torch.testing.assert_close(
                one["positional_scores"], other["positional_scores"], rtol=1e-4, atol=1e-4
            )
        for model, trace in zip(models, traces):
            depths = trace.depths([[]] * row + [tokens])[row]
            assert model.last_trace.depths([tokens]) == [depths]
            assert len({layer for of in depths for layer in of}) > 1
