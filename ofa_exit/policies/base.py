"""What a policy is: for each part of the model, a gate that says after a layer who may leave."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Optional, Union

from torch import Tensor


@dataclass
class GateInput:
    """What a gate may look at after one layer has run.

    previous, current: hidden states before and after the layer, [B, T, C] in the encoder (one row
        a sample) and [N, P, C] in the decoder (one row a hypothesis, P positions).
    layer: 1-based number of the layer that has just run; ``previous`` of layer 1 is its input.
    padding_mask: Bool [B, T], True on padding; None where nothing is padded. Encoder only.
    step: Long [P], or [N, P] where rows differ: time step of each position, 0 for the first token.
        Decoder only.
    step_limit: Long [N, 1], number of steps the generation of each row may take (N of MuE Eq. 11).
        Decoder only.
    exit_scores: behind a layer whose exit the policy uses, calls a function with the scores that
        this exit gives to the words, [M, V] of M rows and positions, over a closed set of answers
        [M, W], -inf on words not allowed; as often as memory wants it. What the function makes of
        them, [M], comes back as [N, P]. Decoder only.
    """

    previous: Tensor
    current: Tensor
    layer: int
    padding_mask: Optional[Tensor] = None
    step: Optional[Tensor] = None
    step_limit: Optional[Tensor] = None
    exit_scores: Optional[Callable[[Callable[[Tensor], Tensor]], Tensor]] = None


GateAnswer = Union[Tensor, bool]
Gate = Callable[[GateInput], GateAnswer]
"""True where a row may leave: Bool [B] in the encoder, Bool [N, P] in the decoder.

A plain ``bool`` answers for every row at once; then nothing is read back from the device.
"""


class ExitPolicy:
    """Decides when to stop. A method that returns None never stops that part, at no cost.

    Subclass it, return gates, and add the class to the registry (``ofa_exit.policies.registry``).
    Gates see each row by itself: an answer must not depend on the other rows of the batch.
    """

    def image_gate(self) -> Optional[Gate]:
        """Gate of the image pass of a split encoder."""
        return None

    def text_gate(self) -> Optional[Gate]:
        """Gate of the text pass of a split encoder."""
        return None

    def joint_gate(self) -> Optional[Gate]:
        """Gate of an encoder that runs image and text together."""
        return None

    def decoder_gate(self) -> Optional[Gate]:
        """Gate of the decoder, asked for every hypothesis and token."""
        return None

    def exits_used(self, exits: Sequence[int]) -> Collection[int]:
        """Which of a model's exits (decoder layers, from 1) to run whenever their layer is reached.

        What leaves there takes the features of the exit; elsewhere the backbone's.
        """
        return ()
