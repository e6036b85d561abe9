"""Long runs do not leak."""

import gc

import pytest
import torch
from helpers.small_models import batch, generate, nano

from ofa_exit.policies.similarity import SimilarityExit


def tensors() -> int:
    """Tensors alive, and the numbers that they hold."""
    gc.collect()
    return sum(x.numel() for x in gc.get_objects() if isinstance(x, torch.Tensor))


def resident() -> int:
    """Bytes of memory of this process (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def run(model, batches: int) -> None:
    """Batches of changing sizes, text lengths and exits, as a data set has them."""
    for number in range(batches):
        thresholds = (0.9, 0.9, 2.0, 0.8 + 0.05 * (number % 4))
        model.configure_exits(SimilarityExit(*thresholds, schedule="static"))
        net_input = batch(1 + number % 4)
        net_input["src_tokens"] = net_input["src_tokens"][:, : 3 + number % 5]
        generate(model, net_input, 2 + number % 7, beam_size=2)


@torch.no_grad()
def test_nothing_is_kept_of_earlier_batches():
    model = nano()
    run(model, 40)  # every shape once, and what is kept by shape
    before = tensors()
    run(model, 40)
    assert tensors() <= before


@pytest.mark.slow
@torch.no_grad()
def test_memory_is_flat_over_200_batches():
    model = nano()
    run(model, 60)
    gc.collect()
    before = resident()
    run(model, 200)
    gc.collect()
    assert resident() - before < 8 * 2**20
