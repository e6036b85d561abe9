"""Floating-point operations of a generation, as executed and as full depth would have cost.

A multiply-add counts as 2. Counted are matrix products, attention and convolutions, the operations
that torch's FlopCounterMode counts; norms, activations, softmax and the exit gate (about 6·C a
token and layer) are not. Padding is not counted. C is the embedding dimension, F that of the
feed-forward block, S the source tokens, V the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PARTS = ("stem", "biases", "encoder", "cross_kv", "decoder", "skipped_kv", "exits", "vocabulary")
KV_MODES = ("propagate", "recompute")


@dataclass(frozen=True)
class ModelShape:
    """The numbers of an OFA model that its operations depend on (heads do not change them)."""

    encoder_dim: int
    encoder_ffn_dim: int
    encoder_layers: int
    decoder_dim: int
    decoder_ffn_dim: int
    decoder_layers: int
    vocabulary: int
    image_channels: int  # features of the stem, which image_proj maps to encoder_dim
    split: bool  # image and text in two tied encoder passes
    text_room: int = 1  # joint position biases are made for multiples of so many text tokens,
    max_text: int = 1024  # and at most for so many

    @classmethod
    def from_model(cls, model: Any) -> "ModelShape":
        """Shape of an OFAModel."""
        cfg = model.cfg
        return cls(
            encoder_dim=cfg.encoder_embed_dim,
            encoder_ffn_dim=cfg.encoder_ffn_embed_dim,
            encoder_layers=len(model.encoder.layers),
            decoder_dim=cfg.decoder_embed_dim,
            decoder_ffn_dim=cfg.decoder_ffn_embed_dim,
            decoder_layers=len(model.decoder.layers),
            vocabulary=model.encoder.embed_tokens.num_embeddings,
            image_channels=model.encoder.image_proj.in_features,
            split=bool(cfg.split_modalities),
            text_room=model.encoder.text_room,
            max_text=cfg.max_source_positions,
        )


@dataclass(frozen=True)
class StemCost:
    """What the image stem makes of one picture."""

    flops: int
    tokens: int  # T_i, cells of its feature map


@dataclass(frozen=True)
class SentenceCall:
    """One sentence in one call of the decoder."""

    hypotheses: int
    layers: int  # run for all its hypotheses, those that rode along included
    repaid: int = 0  # keys and values made up for skipped layers, of one position in one layer each
    asked: int = 1  # positions of all hypotheses whose words were scored
    exits: int = 0  # run for all its hypotheses
    exits_repaid: int = 0  # as repaid, of exits


@dataclass(frozen=True)
class DecoderCall:
    """One call of the decoder: P positions of all hypotheses of the sentences not yet finished."""

    length: int  # L, positions so far
    positions: int  # P: 1 in a step of a generation, L where whole sequences are run at once
    sentences: dict[int, SentenceCall]  # by its number in the batch
    keys: int | None = None  # that self-attention runs over, None = L


@dataclass(frozen=True)
class BatchFlops:
    """Operations of one batch, by part (PARTS): as executed, and with every layer executed."""

    executed: dict[str, int]
    full: dict[str, int]


def stem_cost(stem: nn.Module, image_size: tuple[int, int]) -> StemCost:
    """Counts the operations of the real stem module on one image.

    image_size: (height, width) in pixels. Runs on meta tensors: nothing is computed or allocated.
    """
    tensors = {
        name: tensor.detach().to("meta")
        for name, tensor in [*stem.named_parameters(), *stem.named_buffers()]
    }
    image = torch.empty(1, 3, *image_size, device="meta", dtype=next(stem.parameters()).dtype)
    was_training = {module: module.training for module in stem.modules()}
    stem.eval()  # batch statistics and stochastic depth are no part of inference
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            features = torch.func.functional_call(stem, tensors, (image,))
    finally:
        for module, mode in was_training.items():
            module.train(mode)  # which also forgets what was made of meta tensors
    return StemCost(counter.get_total_flops(), features.shape[-2] * features.shape[-1])


def image_projection(shape: ModelShape, tokens: int) -> int:
    """image_proj of one picture: 2·T·channels·C."""
    return 2 * tokens * shape.image_channels * shape.encoder_dim


def encoder_layer(shape: ModelShape, tokens: int) -> int:
    """One encoder layer over one sample's T tokens.

    8·T·C² (q, k, v, out) + 4·T²·C (attention) + 4·T·C·F.
    """
    dim, ffn = shape.encoder_dim, shape.encoder_ffn_dim
    return 8 * tokens * dim**2 + 4 * tokens**2 * dim + 4 * tokens * dim * ffn


def encoder_biases(shape: ModelShape, image: int, text: int) -> int:
    """The encoder's position bias over T = image + text positions: 4·T·C² + 2·pairs·C.

    The pairs are T², or those within each pass of a split encoder. It depends on no content, so it
    is made once for all batches of a shape (of a joint encoder, as long as the shape stays, with
    room for longer texts).
    """
    text = bias_text(shape, image, text)
    tokens = image + text
    pairs = image**2 + text**2 if shape.split else tokens**2
    return 4 * tokens * shape.encoder_dim**2 + 2 * pairs * shape.encoder_dim


def bias_text(shape: ModelShape, image: int, text: int) -> int:
    """The text positions that the encoder's bias is made for."""
    room = shape.text_room if image and not shape.split else 1
    return min(-(-text // room) * room, shape.max_text)


def decoder_self_bias(shape: ModelShape, positions: int) -> int:
    """The decoder's self-attention bias over L positions: 4·L·C² + 2·L²·C, once a shape."""
    return 4 * positions * shape.decoder_dim**2 + 2 * positions**2 * shape.decoder_dim


def decoder_cross_bias(shape: ModelShape, positions: int, source: int) -> int:
    """The decoder's cross-attention bias, L·S pairs: 2·(L + S)·C² + 2·L·S·C, once a shape."""
    dim = shape.decoder_dim
    return 2 * (positions + source) * dim**2 + 2 * positions * source * dim


def cross_key_values(shape: ModelShape, source: int) -> int:
    """Cross-attention keys and values of one decoder layer over a sentence's S tokens: 4·S·C²."""
    return 4 * source * shape.encoder_dim * shape.decoder_dim


def decoder_layer(shape: ModelShape, length: int, source: int) -> int:
    """One decoder layer for one token over the keys of L positions and S source tokens.

    8·C² (self q, k, v, out) + 4·L·C + 4·C² (cross q, out) + 4·S·C + 4·C·F; cross K/V are there.
    """
    dim, ffn = shape.decoder_dim, shape.decoder_ffn_dim
    return 12 * dim**2 + 4 * (length + source) * dim + 4 * dim * ffn


def self_key_values(shape: ModelShape) -> int:
    """Self-attention key and value of one token in one skipped layer: 4·C²."""
    return 4 * shape.decoder_dim**2


def vocabulary_projection(shape: ModelShape) -> int:
    """Scores of all V words for one token: 2·C·V."""
    return 2 * shape.decoder_dim * shape.vocabulary


def trace_calls(trace: Any) -> list[DecoderCall]:
    """The decoder calls that an ExitTrace recorded, in their order."""
    calls = []
    for step in trace.steps:
        counts: dict[int, list[int]] = {}
        none = torch.zeros_like(step.ran)
        exits = (none, none) if step.exits is None else (step.exits, step.exits_repaid)
        rows = (step.sentence, step.ran, step.repaid, step.asked, *exits)
        for sentence, ran, repaid, asked, exit, made in zip(*(row.tolist() for row in rows)):
            total = counts.setdefault(sentence, [0, 0, 0, 0, 0, 0])
            total[0] += 1
            total[1] = ran  # the hypotheses of a sentence run together
            total[2] += repaid
            total[3] += asked
            total[4] = exit
            total[5] += made
        sentences = {number: SentenceCall(*total) for number, total in counts.items()}
        length, positions = step.tokens.size(1), step.layers.size(1)
        calls.append(DecoderCall(length, positions, sentences, step.keys))
    return calls


def batch_flops(
    shape: ModelShape,
    stem: StemCost | None,
    image_layers: Sequence[int],
    text_layers: Sequence[int],
    text_tokens: Sequence[int],
    calls: Sequence[DecoderCall],
    kv: str = "propagate",
    image_rows: Sequence[int] | None = None,
) -> BatchFlops:
    """Operations of generating for one batch of sentences.

    stem: of one picture; None for a batch without any. image_layers, text_layers: executed, one a
    sentence, 0 where it has no such modality (nor ran the stem for it); the same number twice for a
    joint encoder. text_tokens: unpadded source lengths.
    image_rows: which picture each sentence has, where sentences share some: such a one passes the
    stem, and the layers of a split encoder, once.

    Counted is what the runtime did. The encoder runs once a sentence. A decoder layer runs for
    all hypotheses of a sentence while one of them is active, and for sentences that ride along.
    Cross-attention K/V of a layer are made once a sentence, when a token of it first gets there.
    What a skipped layer owes to later tokens is its key and value
    ("propagate") or the whole layer ("recompute"). An exit costs a layer, its own cross-attention
    K/V, the scoring of words at every position, and its keys and values where it was not reached.
    Full depth is the same calls with every layer of the backbone run, and no exit.

    The position biases are left out: their cost is shared by batches, see `encoder_biases`.
    Raises ValueError for an unknown `kv`.
    """
    if kv not in KV_MODES:
        raise ValueError(f"K/V mode {kv!r}: choose one of {', '.join(KV_MODES)}")
    executed = dict.fromkeys(PARTS, 0)
    full = dict.fromkeys(PARTS, 0)
    grid = stem.tokens if stem else 0
    images = [grid if depth else 0 for depth in image_layers]
    rows = range(len(images)) if image_rows is None else image_rows
    seen: set[int] = set()
    for row, image, text, image_depth, text_depth in zip(
        rows, images, text_tokens, image_layers, text_layers, strict=True
    ):
        first = row not in seen
        seen.add(row)
        if stem and image and first:
            pixels = stem.flops + image_projection(shape, grid)
            executed["stem"] += pixels
            full["stem"] += pixels
        if shape.split:
            image_cost = encoder_layer(shape, image) if first else 0
            text_cost = encoder_layer(shape, text)
            executed["encoder"] += image_depth * image_cost + text_depth * text_cost
            full["encoder"] += shape.encoder_layers * (image_cost + text_cost)
        else:
            layer = encoder_layer(shape, image + text)
            executed["encoder"] += max(image_depth, text_depth) * layer
            full["encoder"] += shape.encoder_layers * layer
    sources = [image + text for image, text in zip(images, text_tokens, strict=True)]
    _add_decoder(shape, sources, calls, kv, executed, full)
    return BatchFlops(executed, full)


def flop_reduction(executed: dict[str, int], full: dict[str, int]) -> float:
    """1 - executed / full operations, stem and scoring of words included.

    Eq. 14 of MuE weighted by real cost.
    """
    return 1 - sum(executed.values()) / sum(full.values())


def _add_decoder(
    shape: ModelShape,
    sources: Sequence[int],
    calls: Sequence[DecoderCall],
    kv: str,
    executed: dict[str, int],
    full: dict[str, int],
) -> None:
    """Adds the decoder's calls to both counts; `sources` is S of each sentence."""
    made: dict[int, tuple[int, int]] = {}  # a sentence's layers and exits whose cross K/V are there
    for call in calls:
        if call.positions == call.length:  # nothing is remembered of earlier calls
            made = {}
            full["cross_kv"] += shape.decoder_layers * sum(
                cross_key_values(shape, sources[number]) for number in call.sentences
            )
        for number, sentence in call.sentences.items():
            source = sources[number]
            layers, exits = made.get(number, (0, 0))
            made[number] = max(layers, sentence.layers), max(exits, sentence.exits)
            new_layers, new_exits = made[number][0] - layers, made[number][1] - exits
            tokens = sentence.hypotheses * call.positions
            layer = decoder_layer(shape, call.keys or call.length, source)
            executed["decoder"] += tokens * sentence.layers * layer
            full["decoder"] += tokens * shape.decoder_layers * layer
            words = sentence.asked * vocabulary_projection(shape)
            executed["vocabulary"] += words
            full["vocabulary"] += words
            executed["cross_kv"] += new_layers * cross_key_values(shape, source)
            debt = self_key_values(shape) if kv == "propagate" else layer
            executed["skipped_kv"] += sentence.repaid * debt
            executed["exits"] += (
                tokens * sentence.exits * (layer + vocabulary_projection(shape))
                + new_exits * cross_key_values(shape, source)
                + sentence.exits_repaid * self_key_values(shape)
            )
