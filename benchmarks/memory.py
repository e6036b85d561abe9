"""Peak memory of one batch, each variant in a process of its own.

On the CPU the kernel's high-water mark of resident memory is reset once the model is loaded and
read after one generation (Linux: ``/proc/self/clear_refs``), so what loading took beforehand hides
nothing. On CUDA it is what torch's allocator gave out at most. Both are above the loaded model.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.setting import Setting
from benchmarks.variants import Bench, Depths, Models
from ofa_exit.models.positions import ShapeCache

RESET_PEAK = "5"  # of proc(5): forget the high-water mark


def peak_bytes(setting: Setting, kind: str, depths: Depths | None) -> int:
    """Memory that a variant needs above the loaded model's, measured in a fresh process.

    kind, depths: a kind of variant and, for "exits", its pattern. Raises RuntimeError with what the
    process said where it failed.
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
            f"the process that measures {kind}'s memory failed; --no-memory leaves that out. "
            f"It said: {done.stderr[-2000:]}"
        )
    return int(done.stdout.splitlines()[-1])


def in_this_process(setting: Setting, kind: str, depths: Depths | None) -> int:
    """What ``peak_bytes`` runs in the child."""
    torch.set_num_threads(setting.threads)
    models = Models(setting, reference=kind == "reference")
    (run,) = Bench(models, setting).runs([kind], [depths] if depths else []).values()
    for module in models.ours.modules():  # some variants have run once by now, others not
        if isinstance(module, ShapeCache):
            module.forget_shapes()
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        loaded = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - loaded
    give_back_freed()
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    loaded = _status("VmRSS")
    run()
    return _status("VmHWM") - loaded


def give_back_freed() -> None:
    """Freed memory that the C library still holds would hide as much of the run's own."""
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    """A number of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status tells no {field}")


def main() -> int:
    given = json.load(sys.stdin)
    depths = given["depths"] and tuple(given["depths"])
    print(in_this_process(Setting(**json.loads(given["setting"])), given["kind"], depths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
