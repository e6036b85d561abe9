"""Host reads, device synchronisations and peak memory of generating one batch, by variant.

A host read stops the CPU until the device has computed the value. torch's profiler counts reads
of single values (``aten::_local_scalar_dense``) and, on CUDA, the runtime's synchronisations and
copies to the host, which include ``tolist()``. On the CPU, reads of whole tensors are not seen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.generate import DEPTHS
from benchmarks.options import device_parser, write_lines
from benchmarks.setting import Setting
from benchmarks.variants import KINDS, Bench, Models

COLUMNS = ("variant", "batch", "host_reads", "synchronisations", "copies_to_host", "peak_mib")
READ = "aten::_local_scalar_dense"


def device_use(run: Callable[[], Any], device: str) -> dict[str, Any]:
    """Count what one call of ``run`` makes the host wait for, and its peak memory.

    Returns:
        Numbers by the names of ``COLUMNS``; "" for what the CPU does not have.
    """
    is_cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    run()  # caches and the allocator are filled
    loaded = 0
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        loaded = torch.cuda.memory_allocated()
    with profile(activities=activities) as profiler:
        run()
    counts = {event.key: event.count for event in profiler.key_averages()}
    used: dict[str, Any] = {"host_reads": counts.get(READ, 0)}
    if is_cuda:
        waits = [n for key, n in counts.items() if key.startswith("cuda") and "Synchronize" in key]
        copies = [n for key, n in counts.items() if key.startswith("Memcpy DtoH")]
        peak = (torch.cuda.max_memory_allocated() - loaded) / 2**20
        # The profiler itself waits for the device once, at its end.
        return {**used, "synchronisations": max(sum(waits) - 1, 0), "copies_to_host": sum(copies),
                "peak_mib": f"{peak:.1f}"}  # fmt: skip
    return {**used, "synchronisations": "", "copies_to_host": "", "peak_mib": ""}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    base = Setting(
        arch=options.arch, image_size=options.image_size, steps=options.steps,
        vocabulary=options.vocabulary, dtype=options.dtype, device=options.device,
    )  # fmt: skip
    models = Models(base)
    rows = []
    for size in options.batch_size:
        bench = Bench(models, replace(base, batch_size=size))
        for name, run in bench.runs(options.only, DEPTHS).items():
            rows.append({"variant": name, "batch": size, **device_use(run, options.device)})
            print(*(f"{key} {value}" for key, value in rows[-1].items() if value != ""), sep=", ")
    write_lines(options.csv, COLUMNS, rows)
    return 0


def parser() -> argparse.ArgumentParser:
    built = device_parser("benchmarks.device_use", __doc__, 17, "decoder calls")
    built.add_argument(
        "--only",
        nargs="+",
        choices=list(KINDS),
        default=["reference", "full", "exits", "gated"],
        metavar="VARIANT",
        help="see python -m benchmarks.generate --help (default: reference full exits gated)",
    )
    return built


if __name__ == "__main__":
    sys.exit(main())
