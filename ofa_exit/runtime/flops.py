"""FLOPs of what was run: how many units, and the price of each.

Modules state the cost of a unit in ``flops``, next to their ``forward``. The runtime records what
it runs as ``Work``, and reports add. A multiply-add counts as 2 FLOPs. Matrix products, attention
and convolutions are counted, as by torch's FlopCounterMode. Norms, activations, softmax and gates
(about 6·C per token and layer) are not. Padding is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional

from torch import Tensor

PARTS = ("stem", "biases", "encoder", "cross_kv", "decoder", "skipped_kv", "exits", "vocabulary")


class Work(NamedTuple):
    """Equal units of work of one pass of the encoder or one decoder call.

    Attributes:
        part: one of ``PARTS``.
        price: FLOPs of a unit, given a number of tokens.
        units: how many units each row had. They are Long [R] if only the device knows them.
        tokens: what each row is priced by, Long [R]: those of its pass. None: the rows are the S
            sentences present, and each is priced by its source tokens.
    """

    part: str
    price: Callable[[int], int]
    units: Sequence[int] | Tensor
    tokens: Optional[Tensor] = None


def add_work(total: dict[str, int], work: Sequence[Work], sources: Sequence[int]) -> None:
    """Add the FLOPs of ``work`` to ``total`` by part, in place.

    Args:
        sources: source tokens of each sentence present, without padding.
    """
    for part, price, units, tokens in work:
        counts = units.tolist() if isinstance(units, Tensor) else units
        sizes = sources if tokens is None else tokens.tolist()
        total[part] += sum(
            count * price(size) for count, size in zip(counts, sizes, strict=True) if count
        )


def linear_flops(tokens: int, inputs: int, outputs: int) -> int:
    """Return the FLOPs of a linear layer over ``tokens``: 2·T·I·O."""
    return 2 * tokens * inputs * outputs
