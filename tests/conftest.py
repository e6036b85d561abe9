"""Shared by all tests: few threads, a quiet command line, no Java tests where there is no Java."""

import os
import shutil

# Before torch is imported: several test processes share a small machine, and threads that wait for
# each other there are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from helpers.fake_java import fake_java  # noqa: F401  a fixture
from helpers.gpu_device import DEVICE


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {
        "java": shutil.which("java") is None and "no Java runtime on this machine",
        "gpu": DEVICE == "cuda"
        and not torch.cuda.is_available()
        and "no CUDA device on this machine",
    }
    for marker, reason in missing.items():
        for item in items if reason else ():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq's parsers look for --user-dir in sys.argv, where pytest's own options are."""
    monkeypatch.setattr("sys.argv", ["test"])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


@pytest.fixture(params=["in place", "copied"])
def reading(request, monkeypatch):
    """How K/V of active sentences are read: small models would copy them."""
    from ofa_exit.models import cpu

    monkeypatch.setattr(cpu, "MIN_ELEMENTS_TO_COPY", 0 if request.param == "in place" else 2**62)
    return request.param


@pytest.fixture
def fake():
    """CUDA without a GPU: tensors that have shapes and devices, and no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        yield mode
