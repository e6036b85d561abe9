"""Peak memory of one batch, with each variant in its own process.

On the CPU, the kernel's high-water mark of resident memory is reset after the model is loaded and
read after one generation (Linux: ``/proc/self/clear_refs``). On CUDA, it is the peak of torch's
allocator. Both are relative to the loaded model.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.setting import Setting
from benchmarks.variants import Bench, Depths, Models
from ofa_exit.models.positions import ShapeCache

RESET_PEAK = "5"  # see proc(5)


def peak_bytes(setting: Setting, kind: str, depths: Depths | None) -> int:
    """Measure a variant's peak memory above the loaded model in a new process.

    Args:
        kind: one of ``variants.KINDS``.
        depths: the pattern of exits, if kind is "exits".

    Returns: bytes.

    Raises:
        RuntimeError: with the process's standard error, if it failed.
    """
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.memory"],
        input=json.dumps({"setting": setting.to_json(), "kind": kind, "depths": depths}),
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            f"measuring the memory of {kind} failed; pass --no-memory to skip it. "
            f"Standard error: {done.stderr[-2000:]}"
        )
    return int(done.stdout.splitlines()[-1])


def in_this_process(setting: Setting, kind: str, depths: Depths | None) -> int:
    """Measure the peak in this process; ``peak_bytes`` starts it."""
    torch.set_num_threads(setting.threads)
    models = Models(setting, reference=kind == "reference")
    (run,) = Bench(models, setting).runs([kind], [depths] if depths else []).values()
    for module in models.ours.modules():  # some variants have already run once
        if isinstance(module, ShapeCache):
            module.forget_shapes()
    gc.collect()
    return peak_above(run, setting.device)


def peak_above(run: Callable[[], object], device: str) -> int:
    """Return the peak memory of one call above what is in use before it, in bytes."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        loaded = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - loaded
    trim_heap()
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    loaded = _status("VmRSS")
    run()
    return _status("VmHWM") - loaded


def trim_heap() -> None:
    """Return freed memory to the kernel, since the run would use it without raising the peak."""
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    """Return a number of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def main() -> int:
    given = json.load(sys.stdin)
    depths = given["depths"] and tuple(given["depths"])
    print(in_this_process(Setting(**json.loads(given["setting"])), given["kind"], depths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
