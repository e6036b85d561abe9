"""Compiled parts compute what they did."""

import pytest
import torch
from helpers.small_models import batch, generate, nano

from ofa_exit.models.compiling import compile_parts
from ofa_exit.policies.similarity import SimilarityExit


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check(backend):
    """Beam search over batches of two sizes, with exits and without, and the layers it took."""
    plain, compiled = (nano(encoder_layers=2, decoder_layers=2) for _ in range(2))
    compile_parts(compiled, backend)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for policy in (None, SimilarityExit(0.9, 0.9, 2.0, 0.9, schedule="static")):
        for sentences in (3, 2):
            found = []
            for model in (plain, compiled):
                model.configure_exits(policy)
                hypotheses = generate(model, batch(sentences), beam_size=2)
                found.append([h for of_sentence in hypotheses for h in of_sentence])
            for one, other in zip(*found, strict=True):
                assert torch.equal(one["tokens"], other["tokens"])
                torch.testing.assert_close(one["score"], other["score"], rtol=1e-4, atol=1e-4)
    ours, theirs = plain.last_trace, compiled.last_trace
    assert torch.equal(ours.image_layers, theirs.image_layers)
    for one, other in zip(ours.steps, theirs.steps, strict=True):
        assert torch.equal(one.layers, other.layers)


@torch.no_grad()
def test_no_part_breaks_into_pieces():
    """Each compiled part is one graph, which is what makes it worth compiling."""
    model = nano(encoder_layers=1, decoder_layers=1)
    (layer,), x = model.decoder.layers, torch.randn(4, 1, 32)
    kv = torch.randn(2, 2, 4, 5, 8)
    arguments = {
        model.encoder.embed_images: (torch.randn(2, 3, 32, 32),),
        model.encoder.layers[0]: (torch.randn(2, 5, 32), torch.randn(1, 4, 5, 5)),
        layer.self_inputs: (x,),
        layer.attend: (
            *(x, x, *layer.self_attn.project_kv(x), torch.zeros(1, 4, 1, 1)),
            *(*kv, torch.zeros(2, 4, 1, 5)),
        ),
    }
    for part, given in arguments.items():
        compiled = torch.compile(part, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*given), part(*given), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@torch.no_grad()
def test_generation_stays_the_same(backend):
    check(backend)
