"""Image tokens that exit one by one in the encoder."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from helpers.fake_devices import encode, fake_model
from helpers.flop_counts import counted
from helpers.small_models import batch, generate, nano, select
from torch import Tensor

from ofa_exit.evaluation.efficiency.flops import batch_flops
from ofa_exit.plugin.image_tokens import build_token_exits
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit
from ofa_exit.runtime.token_exits import TokenExits

SHARES = (1.0, 0.8, 0.5, 0.5, 0.2)
SIDE = 64  # 16 image tokens


def encoded(model, net_input: dict[str, Tensor]) -> Tensor:
    inputs = {k: v for k, v in net_input.items() if k != "prev_output_tokens"}
    with torch.no_grad():
        return model.encoder(**inputs, step_limit=None).states


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("policy", [None, StaticExit((4, 3, 2))])
def test_all_tokens_are_the_plain_encoder_to_the_bit(split, policy):
    model, inputs = nano(split), batch(size=SIDE)
    policy = policy if split or policy is None else StaticExit((4, 4, 2))
    model.configure_exits(policy)
    plain = encoded(model, inputs)
    model.configure_exits(policy, token_exits=TokenExits(1.0))
    assert torch.equal(encoded(model, inputs), plain)


def slowly(encoder, x: Tensor, biases: list[Tensor], cells: int, layers: int) -> Tensor:
    """Return the states [T, C] of one row without padding, token by token.

    Attention is written out for every token that runs, from the equations of OFA.
    """
    running = list(range(len(x)))
    for number in range(1, layers + 1):
        layer, attention = encoder.layers[number - 1], encoder.layers[number - 1].self_attn
        h = layer.self_attn_layer_norm(x)
        key, value = attention.project_kv(h.unsqueeze(0))  # [1, heads, T, d]
        after = x.clone()
        for token in running:
            query = attention.q_proj(h[token]).view(attention.num_heads, 1, -1)
            scores = query @ key[0].transpose(1, 2) * attention.scaling
            scores = scores + biases[number - 1][0, :, token].unsqueeze(1)
            mixed = scores.softmax(-1) @ value[0] * attention.c_attn.view(-1, 1, 1)
            state = x[token] + layer.attn_ln(attention.out_proj(mixed.flatten()))
            after[token] = state + layer.feed_forward(state)
        if number < layers:
            share = SHARES[number - 1]
            staying = -int(-share * cells // 1)
            image = [token for token in running if token < cells]
            cosines = torch.cosine_similarity(x, after, dim=-1)
            image = sorted(image, key=lambda token: float(cosines[token]))[:staying]
            running = sorted(image) + [token for token in running if token >= cells]
        x = after
    return x


@pytest.mark.parametrize("split", [True, False])
@torch.no_grad()
def test_states_are_those_of_a_loop_over_tokens(split):
    model, inputs = nano(split), batch(size=SIDE)
    model.configure_exits(None, token_exits=TokenExits(SHARES))
    states = encoded(model, inputs)
    encoder = model.encoder
    for row in range(2):  # row 2 has no image
        alone = select(inputs, row)
        image, grid = encoder.embed_image(alone["patch_images"])
        text = encoder.embed_text(alone["src_tokens"])
        biases = encoder._biases(grid, text.size(1))
        cells, depth = image.size(1), len(encoder.layers)
        if split:
            seen = slowly(encoder, image[0], biases.image, cells, depth)
            read = slowly(encoder, text[0], biases.text, 0, depth)
            expected = torch.cat([seen, read])
        else:
            both = torch.cat([image, text], dim=1)[0]
            expected = slowly(encoder, both, biases.joint, cells, depth)
        found = states[row, : len(expected)]
        torch.testing.assert_close(found, encoder.layer_norm(expected), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("policy", [None, "similarity"])
def test_a_row_does_not_depend_on_its_batch(split, policy):
    model, inputs = nano(split), batch(size=SIDE)
    names = ("image_threshold", "text_threshold") if split else ("encoder_threshold",)
    gates = SimilarityExit(**dict.fromkeys(names, 0.9)) if policy else None
    model.configure_exits(gates, trace=True, token_exits=TokenExits(SHARES))
    together = encoded(model, inputs)
    layers = model.last_trace.image_layers
    for row in range(len(together)):
        alone = encoded(model, select(inputs, row))[0]
        cells = alone.size(0) - int(inputs["src_lengths"][row])
        torch.testing.assert_close(together[row, : len(alone)][cells:], alone[cells:])
        if row != 2:
            torch.testing.assert_close(together[row, :cells], alone[:cells])
        assert model.last_trace.image_layers[0] == layers[row]


def test_gates_do_not_see_tokens_that_have_exited():
    """Their states are equal, so a cosine over all tokens would rise."""
    seen_masks = []

    class Looks(SimilarityExit):
        def image_gate(self, seen):
            seen_masks.append(seen.padding_mask)
            return super().image_gate(seen)

    model = nano()
    model.configure_exits(Looks(image_threshold=0.999999), token_exits=TokenExits(SHARES))
    encoded(model, batch(2, SIDE))
    counts = [None if mask is None else (~mask).sum(1).tolist() for mask in seen_masks]
    assert counts == [None, None, [13, 13], [8, 8], [8, 8]]  # layer 6 has no gate


@pytest.mark.parametrize("split", [True, False])
def test_flops_are_those_that_torch_counts(split):
    model, inputs = nano(split), batch(2, SIDE)
    inputs = {name: value[:1] for name, value in inputs.items()}
    encoded(model, inputs)  # makes the position biases, which are kept
    spent = {}
    for name, exits in (("full", None), ("less", TokenExits(SHARES))):
        model.configure_exits(None, trace=True, token_exits=exits)
        spent[name] = counted(lambda: encoded(model, inputs))
        trace = model.last_trace
        flops = batch_flops(trace)
        assert sum(flops.executed.values()) == spent[name]
        assert sum(flops.full.values()) == spent["full"]
    assert spent["less"] < spent["full"]


def test_rows_without_an_image_cost_their_text():
    model, inputs = nano(False), batch(3, SIDE)
    model.configure_exits(None, trace=True, token_exits=TokenExits(0.5))
    encoded(model, inputs)
    together = batch_flops(model.last_trace).executed["encoder"]
    apart = 0
    for row in range(3):
        alone = select(inputs, row)
        if row == 2:
            alone = {k: v for k, v in alone.items() if not k.startswith("patch")}
        encoded(model, alone)
        apart += batch_flops(model.last_trace).executed["encoder"]
    assert together == apart


def test_training_runs_all_tokens():
    model, inputs = nano(dropout=0.0), batch(size=SIDE)
    with torch.no_grad():
        plain = model.train()(**inputs)[0]
        model.configure_exits(None, token_exits=TokenExits(0.25))
        assert torch.equal(model(**inputs)[0], plain)


def test_captions_are_searched_over_the_states():
    model, inputs = nano(), batch(size=SIDE)
    full = generate(model, inputs)
    model.configure_exits(None, token_exits=TokenExits(1.0))
    same = generate(model, inputs)
    model.configure_exits(None, token_exits=TokenExits(0.1))
    other = generate(model, inputs)
    scores = [
        [float(hyp["score"]) for hyp in hyps] for found in (full, same, other) for hyps in found
    ]
    assert scores[:3] == scores[3:6] and scores[:2] != scores[6:8]
    assert scores[2] == scores[8]  # no image


def test_nothing_is_read_back(fake):
    model = fake_model().eval()
    model.configure_exits(None, token_exits=TokenExits(0.5))
    out, _ = encode(model, torch.float32)
    assert out.states.device.type == "cuda"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0", "0 is no share of the tokens"),
        ("50", "50 is no share of the tokens"),
        ("0.5,0.8", "0.8 follows 0.5: a token that exited stays out"),
        ("half", "must be a number, or numbers"),
        ("nan", "must be a finite number"),
        (True, "must be a number"),
    ],
)
def test_senseless_shares_are_rejected(given, message):
    with pytest.raises(ValueError, match=f"^--exit-image-tokens {given}: .*{message}"):
        build_token_exits(Namespace(exit_image_tokens=given))


def test_lossless_mode_does_not_go_with_it():
    with pytest.raises(ValueError, match=r"--exit-lossless and --exit-image-tokens 0\.5"):
        build_token_exits(Namespace(exit_image_tokens="0.5", exit_lossless=4))
