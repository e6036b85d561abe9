"""Resident memory of a long generation: is it flat?

  python -m benchmarks.soak DATA.tsv [options of fairseq-generate]

Starts fairseq-generate in a process of its own, and reads its resident memory (Linux:
``/proc/PID/statm``) each time another --every sentences are in its exit trace. The first reading
after --warm-up sentences is what the others are compared with. Exit status 1 if one of them
differs by more than --tolerance percent, or if the generation fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GENERATE = "from fairseq_cli.generate import cli_main; cli_main()"
SECONDS_BETWEEN_LOOKS = 0.05


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process. Raises OSError if it has ended."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def soak(arguments: list[str], every: int, folder: Path) -> list[tuple[int, int]]:
    """Generate, and return the sentences so far and the resident bytes, reading after reading.

    Args:
        arguments: those of fairseq-generate, without --results-path and --exit-trace.
        every: sentences between two readings.
        folder: for what it writes.

    Raises:
        RuntimeError: the generation failed.
    """
    trace, log = folder / "trace.jsonl", folder / "log.txt"
    own = ["--results-path", str(folder), "--exit-trace", str(trace)]
    command = [sys.executable, "-W", "ignore", "-c", GENERATE, *arguments, *own]
    found: list[tuple[int, int]] = []
    sentences = read = 0
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    while process.poll() is None:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        if not trace.exists():
            continue
        with trace.open("rb") as lines:
            lines.seek(read)
            block = lines.read()
        sentences, read = sentences + block.count(b"\n"), read + len(block)
        if sentences >= (found[-1][0] if found else 0) + every:
            try:
                found.append((sentences, resident_bytes(process.pid)))
            except (OSError, IndexError):  # ended since
                break
    if process.wait():
        raise RuntimeError(f"fairseq-generate failed: {log.read_text()[-1000:]}")
    return found


def drift(readings: list[tuple[int, int]], warm_up: int) -> float:
    """Return the largest difference from the first reading after the warm-up, as a share of it.

    Raises:
        ValueError: there are not two readings after the warm-up.
    """
    sizes = [size for sentences, size in readings if sentences >= warm_up]
    if len(sizes) < 2:
        raise ValueError(f"no two readings after {warm_up} sentences: give more rows")
    return max(sizes[1:], key=lambda size: abs(size - sizes[0])) / sizes[0] - 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--warm-up", type=int, default=1000, help="sentences (default: %(default)s)")
    add("--every", type=int, default=500, help="sentences (default: %(default)s)")
    add("--tolerance", type=float, default=2.0, help="percent (default: %(default)s)")
    args, arguments = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        readings = soak(arguments, args.every, Path(folder))
    for sentences, size in readings:
        print(f"{sentences:>7} sentences  {size / 2**20:.1f} MiB")
    worst = 100 * drift(readings, args.warm_up)
    is_flat = abs(worst) <= args.tolerance
    print(f"{worst:+.2f} % since {args.warm_up} sentences: {'flat' if is_flat else 'NOT FLAT'}")
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
