"""Confidence and cosine of every word of a trace, by a teacher-forced pass that exits likewise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor

from ofa_exit.data.trie import AnswerTrie
from ofa_exit.plugin.errors import UsageError
from ofa_exit.policies.base import ExitPolicy, GateAnswer, GateInput
from ofa_exit.policies.measures import hidden_saturation, softmax_confidence


@dataclass
class Replay(ExitPolicy):
    """Exits where a trace of one sentence says, and keeps what the decoder's gate sees.

    Attributes:
        image_layers, text_layers: layers that the passes run.
        word_layers: Long [P], those of the decoder's positions.
        cosines: after each gated layer, float32 [P].
        last: hidden states after the last gated layer, [1, P, C].
    """

    image_layers: int
    text_layers: int
    word_layers: Tensor
    cosines: list[Tensor] = field(default_factory=list)
    last: Optional[Tensor] = None

    def image_gate(self, seen: GateInput) -> GateAnswer:
        return seen.layer >= self.image_layers

    def text_gate(self, seen: GateInput) -> GateAnswer:
        return seen.layer >= self.text_layers

    joint_gate = text_gate

    def decoder_gate(self, seen: GateInput) -> GateAnswer:
        self.cosines.append(hidden_saturation(seen.previous, seen.current)[0])
        self.last = seen.current
        return (self.word_layers <= seen.layer).unsqueeze(0)


@torch.no_grad()
def measure_words(
    model: Any, sample: Mapping[str, Any], record: Mapping[str, Any], trie: Optional[AnswerTrie]
) -> tuple[list[float], list[float]]:
    """Return the confidence and the cosine of every token of a record's best hypothesis.

    The pass is fed the hypothesis and exits at the traced layers, so that its states are those of
    the generation with ``--exit-kv propagate``. Words leave through the trained heads of their
    layers, where the model has such heads. Tokens of a decoder prompt, whose layers a trace does
    not name, run in full.

    Args:
        sample: the row's batch of one sentence.
        trie: the closed set of answers, over which confidences are taken; None = all words.

    Raises:
        UsageError: the record names layers that the model does not have.
    """
    best, depth = record["hypotheses"][0], len(model.decoder.layers)
    tokens, layers = best["tokens"], best["layers"]
    if max(layers) > depth:
        raise UsageError(
            f"row {record['id']} has words of layer {max(layers)}, and the checkpoint has {depth} "
            "decoder layers: give the one that the trace was made with"
        )
    net_input = dict(sample["net_input"])
    prompt = net_input["prev_output_tokens"][:, : int(sample["prompt_lengths"][0])]
    fed = prompt.new_tensor([tokens[:-1]])
    net_input["prev_output_tokens"] = torch.cat([prompt, fed], dim=1)  # [1, P]
    before = prompt.size(1) - 1  # the first token is predicted at the prompt's last position
    # Where no layer ran (0), and in the prompt, nothing exits early.
    used = [depth] * before + [layer or depth for layer in layers]
    word_layers = torch.tensor(used, device=prompt.device)
    policy = Replay(record["image_layers"], record["text_layers"], word_layers)
    model.configure_exits(policy)
    logits, extra = model(**net_input)
    model.configure_exits(None)
    confidences = softmax_confidence(_allowed(logits[0, before:], tokens, trie)).tolist()
    if max(used) == depth and policy.last is not None:
        policy.cosines.append(hidden_saturation(policy.last, extra["states"])[0])
    cosines = [float(policy.cosines[layer - 1][place]) for place, layer in enumerate(used)]
    return confidences, cosines[before:]


def _allowed(logits: Tensor, tokens: Sequence[int], trie: Optional[AnswerTrie]) -> Tensor:
    """Return the logits [L, V] with -inf on words that the trie does not allow after a prefix."""
    if trie is None:
        return logits
    masked = torch.full_like(logits, float("-inf"))
    for place in range(len(tokens)):
        words = trie.allowed_next(tokens[:place])
        masked[place, words] = logits[place, words]
    return masked
