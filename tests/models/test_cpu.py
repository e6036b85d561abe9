"""The fast paths of inference compute what plain torch computes, and one switch turns them off."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import batch, nano

from ofa_exit.models import cpu, stem


@pytest.fixture
def few_elements(monkeypatch):
    """Let small tensors take the fast paths."""
    monkeypatch.setattr(cpu, "MIN_WEIGHT_ELEMENTS", 0)
    monkeypatch.setattr(cpu, "CHUNK_ROWS", 3)


@pytest.mark.parametrize("rows", [1, cpu.MIN_ROWS, 10, cpu.MAX_ROWS, 100])
@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_linear_equals_torch(few_elements, rows, has_bias):
    x, weight = torch.randn(rows // 5 or 1, 5 if rows >= 5 else 1, 24), torch.randn(40, 24)
    bias = torch.randn(40) if has_bias else None
    found = cpu.linear(x, weight, bias)
    assert found.is_contiguous()
    torch.testing.assert_close(found, F.linear(x, weight, bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [2, 3, 4, 7])
def test_chunks_cover_every_row_once(few_elements, length):
    x, sizes = torch.randn(2, length, 8), []

    def double(rows):
        sizes.append(rows.numel() // 8)
        return 2 * rows

    with torch.no_grad():
        assert torch.equal(cpu.in_chunks(double, x), 2 * x)
    assert sum(sizes) == 2 * length
    assert max(sizes) == (3 if 2 * length >= 6 else 2 * length)


def test_chunks_are_off_while_gradients_are_recorded(few_elements):
    calls = []
    cpu.in_chunks(lambda rows: calls.append(1) or rows, torch.randn(20, 8))
    assert len(calls) == 1


@torch.no_grad()
def test_the_switch_turns_every_fast_path_off(few_elements, monkeypatch):
    calls = []

    def count(owner, name):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: calls.append(name) or plain(*a, **k))

    for owner, name in ((stem, "fold"), (torch, "addmm"), (torch, "empty_like")):
        count(owner, name)
    fast, _ = nano()(**batch(3))
    assert set(calls) == {"fold", "addmm", "empty_like"}
    calls.clear()
    monkeypatch.setattr(cpu, "ENABLED", False)
    plain, _ = nano()(**batch(3))
    assert not calls
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
