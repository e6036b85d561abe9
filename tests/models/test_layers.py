"""Encoder and decoder layers: grouped hypotheses, rows read in place, FLOPs."""

from __future__ import annotations

import pytest
import torch
from helpers.flop_counts import counted

from ofa_exit.models.attention import MultiheadAttention
from ofa_exit.models.layers import DecoderLayer, EncoderLayer

DIM, FFN, HEADS = 32, 48, 4


@pytest.fixture
def decoder_layer() -> DecoderLayer:
    return DecoderLayer(DIM, FFN, HEADS).eval()


def kv(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (rows, HEADS, length, DIM // HEADS)
    return torch.randn(shape), torch.randn(shape)


@pytest.mark.parametrize("bias_rows", [1, 2, 6], ids=["shared", "per sentence", "per hypothesis"])
@torch.no_grad()
def test_hypotheses_share_the_kv_of_their_sentence(decoder_layer, bias_rows):
    """Six hypotheses of two sentences give what each gives with a copy of the sentence's K/V."""
    x, self_bias = torch.randn(6, 2, DIM), torch.zeros(1, HEADS, 2, 2)
    key, value = kv(2, 5)
    cross_bias = torch.randn(bias_rows, HEADS, 2, 5)
    grouped = decoder_layer(x, self_bias, (key, value), cross_bias)
    copied_kv = key.repeat_interleave(3, dim=0), value.repeat_interleave(3, dim=0)
    copied_bias = cross_bias.repeat_interleave(6 // bias_rows, dim=0)
    copied = decoder_layer(x, self_bias, copied_kv, copied_bias)
    torch.testing.assert_close(grouped, copied, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_row_slices_equal_copied_rows(decoder_layer):
    """Hypotheses of sentences 0, 2 and 3 out of five, two per sentence."""
    sentences = torch.tensor([0, 2, 3])
    slices = [slice(0, 2), slice(4, 8)], [slice(0, 1), slice(2, 4)]
    rows = torch.tensor([0, 1, 4, 5, 6, 7])
    x, self_bias = torch.randn(6, 1, DIM), torch.zeros(1, HEADS, 1, 4)
    cached, cross = kv(10, 4), kv(5, 7)
    bias = torch.randn(3, HEADS, 1, 7)

    in_place = decoder_layer(x, self_bias, cross, bias, lambda *_: cached, slices)
    copied_kv = tuple(part[rows] for part in cached)
    copied_cross = tuple(part[sentences] for part in cross)
    copied = decoder_layer(x, self_bias, copied_cross, bias, lambda *_: copied_kv)
    torch.testing.assert_close(in_place, copied, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (3, 5)])
def test_attention_flops_match_torch(queries, keys):
    attention = MultiheadAttention(DIM, HEADS)
    key, value = kv(1, keys)
    bias = torch.zeros(1, HEADS, queries, keys)
    real = counted(lambda: attention(torch.randn(1, queries, DIM), key, value, bias))
    assert real == attention.flops(queries, keys)
    assert counted(lambda: attention.project_kv(torch.randn(1, keys, DIM))) == attention.kv_flops(
        keys
    )


@pytest.mark.parametrize("tokens", [1, 7])
def test_encoder_layer_flops_match_torch(tokens):
    layer = EncoderLayer(DIM, FFN, HEADS)
    states, bias = torch.randn(2, tokens, DIM), torch.zeros(1, HEADS, tokens, tokens)
    assert counted(lambda: layer(states, bias)) == 2 * layer.flops(tokens)
    assert counted(lambda: layer.feed_forward(states)) == 2 * layer.feed_forward_flops(tokens)


@pytest.mark.parametrize("group", [1, 2])
def test_decoder_layer_flops_match_torch(decoder_layer, group):
    """One token after three cached positions, for ``group`` hypotheses of one sentence."""
    cached, cross = kv(group, 4), kv(1, 5)
    states = torch.randn(group, 1, DIM)
    biases = torch.zeros(1, HEADS, 1, 4), torch.zeros(1, HEADS, 1, 5)
    real = counted(lambda: decoder_layer(states, biases[0], cross, biases[1], lambda *_: cached))
    assert real == group * decoder_layer.flops(keys=4, source=5)


def test_decoder_kv_flops_match_torch(decoder_layer):
    made = counted(lambda: decoder_layer.self_kv(torch.randn(1, 3, DIM)))
    assert made == 3 * decoder_layer.self_kv_flops()
    made = counted(lambda: decoder_layer.encoder_attn.project_kv(torch.randn(1, 5, DIM)))
    assert made == decoder_layer.cross_kv_flops(source=5)


def test_decoder_layer_flops_by_hand():
    # Six projections 6·2·16 = 192, attention over 2 + 5 keys 2·2·7·4 = 112, FFN 2·2·4·8 = 128.
    assert DecoderLayer(4, 8, 2).flops(keys=2, source=5) == 432
    # T = 3: four projections 4·2·3·16 = 384, scores and sums 2·2·9·4 = 144, FFN 2·2·3·4·8 = 384.
    assert EncoderLayer(4, 8, 2).flops(tokens=3) == 912
