"""Resident memory of a long generation: is it flat?

  python -m benchmarks.soak DATA.tsv [options of fairseq-generate]

Starts fairseq-generate in a process of its own, and reads its resident memory (Linux:
``/proc/PID/status``) each time another --every sentences are in its exit trace. The kernel may drop
pages of files (libraries, weights) at any time, so they are printed but not judged. Of the others
(RssAnon), the first reading after --warm-up sentences is what the later ones are compared with.
Exit status 1 if one of them differs by more than --tolerance percent, or if the generation fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GENERATE = "from fairseq_cli.generate import cli_main; cli_main()"
SECONDS_BETWEEN_LOOKS = 0.05


Reading = tuple[int, int, int]
"""Sentences so far, bytes of RssAnon, and bytes of all resident pages."""


def resident_bytes(pid: int) -> tuple[int, int]:
    """Return the bytes of a process's own pages, and of all its pages that are in memory.

    Raises:
        OSError: it has ended.
    """
    fields = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name] = value
    try:
        own, whole = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))
    except KeyError as error:  # a zombie has none
        raise ProcessLookupError(f"process {pid} has ended") from error
    return own, whole


def soak(arguments: list[str], every: int, folder: Path) -> list[Reading]:
    """Generate, and return the readings.

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
    found: list[Reading] = []
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
                found.append((sentences, *resident_bytes(process.pid)))
            except OSError:  # ended since
                break
    if process.wait():
        raise RuntimeError(f"fairseq-generate failed: {log.read_text()[-1000:]}")
    return found


def drift(readings: list[Reading], warm_up: int) -> float:
    """Return the largest difference from the first reading after the warm-up, as a share of it.

    Raises:
        ValueError: there are not two readings after the warm-up.
    """
    sizes = [own for sentences, own, _ in readings if sentences >= warm_up]
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
    for sentences, own, whole in readings:
        print(f"{sentences:>7} sentences  {own / 2**20:.1f} MiB  {whole / 2**20:.1f} with files")
    worst = 100 * drift(readings, args.warm_up)
    is_flat = abs(worst) <= args.tolerance
    print(f"{worst:+.2f} % since {args.warm_up} sentences: {'flat' if is_flat else 'NOT FLAT'}")
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
