"""Small models and inputs with fixed pseudo-random weights, shared by the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from ofa_exit.models.archs import ARCHS
from ofa_exit.models.ofa import OFAModel
from ofa_exit.policies.base import ExitPolicy, GateInput
from ofa_exit.policies.measures import softmax_confidence
from ofa_exit.testing import build_with_weights, random_images, random_tokens

VOCAB = 60


@dataclass
class TriesHeads(ExitPolicy):
    """Runs all heads and scores their words; ``exits_at`` says which rows exit."""

    def exits_at(self, seen: GateInput) -> Tensor | bool:
        return False

    def decoder_gate(self, seen: GateInput) -> Tensor | bool:
        if seen.has_head:
            seen.scores(softmax_confidence)
        return self.exits_at(seen)


def nano(split: bool = True, **overrides: Any) -> OFAModel:
    """ofa_nano, narrow, with weights drawn from their names, in eval mode."""
    options = {
        **ARCHS["ofa_nano"],
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 64,
        "resnet_width": 8,
        **overrides,
    }
    return build_with_weights(options, VOCAB, split_modalities=split)


def batch(sentences: int = 3, size: int = 32, target: int = 6) -> dict[str, Tensor]:
    """Net input; row 1 has a shorter text and row 2 has no image, as far as there are such rows."""
    source = random_tokens("src", (sentences, 7), VOCAB)
    source[:, 0], source[:, -1] = 0, 2
    if sentences > 1:
        source[1, 4], source[1, 5:] = 2, 1
    masks = torch.ones(sentences, dtype=torch.bool)
    if sentences > 2:
        masks[2] = False
    prev = random_tokens("prev", (sentences, target), VOCAB)
    prev[:, 0] = 0
    return {
        "src_tokens": source,
        "src_lengths": source.ne(1).sum(1),
        "patch_images": random_images("image", (sentences, 3, size, size)),
        "patch_masks": masks,
        "prev_output_tokens": prev,
    }


def training_batch(rows: int = 3) -> dict[str, Any]:
    """A batch to train on; one row has no image, targets are of different lengths."""
    net_input = batch(rows)
    target = torch.randint(4, VOCAB, net_input["prev_output_tokens"].shape)
    for row in range(rows):
        target[row, 2 + row :] = 1
    return {
        "id": torch.arange(rows),
        "image_keys": torch.arange(rows),
        "net_input": net_input,
        "target": target,
        "ntokens": int(target.ne(1).sum()),
        "nsentences": rows,
    }


def select(net_input: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One sentence alone, without the padding that its batch needed."""
    alone = {
        name: value[row : row + 1] for name, value in net_input.items() if isinstance(value, Tensor)
    }
    alone["src_tokens"] = alone["src_tokens"][:, : int(alone["src_lengths"])]
    return alone


def generate(
    model: OFAModel, net_input: dict[str, Tensor], steps: int = 8, **options: Any
) -> list[list[dict[str, Tensor]]]:
    """Stock beam search from bos, with the step limit that the task would set."""
    rows = net_input["src_tokens"].size(0)
    inputs = {k: v for k, v in net_input.items() if k != "prev_output_tokens"}
    inputs.setdefault("step_limit", torch.full((rows,), steps))
    generator = SequenceGenerator(
        [model], model.decoder.dictionary, max_len_b=steps, **{"beam_size": 3, **options}
    )
    sample = {"net_input": inputs, "id": torch.arange(rows)}
    with torch.no_grad():
        return generator.generate([model], sample, bos_token=0)
