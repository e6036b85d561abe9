"""How often do calibrated exits break their promise? Random splits of what calibrate generated.

  python -m benchmarks.coverage exits.rows.jsonl [--keep 0.96] [--confidence 0.95] …

exits.rows.jsonl is what `ofa-exit calibrate` keeps beside its --out, over validation and test rows
in one file. Each split calibrates on half of the images and looks at the other half. Rows of one
image stay together; a file without images, of an earlier version, is split by rows. No model runs.
Prints a line per rule: calibrated, and untested, the cheapest setting whose mean loss seems good
enough. `ofa-exit choose` takes such a one, by the quality of all rows together.

Columns: share of splits in which the promise is broken on the held-out half, and over all rows,
mean saving on the held-out half, and share of splits at full depth.
"""

import argparse
from pathlib import Path

import numpy as np

from ofa_exit.cli.calibrate.metrics import METRICS, OWN_COUNTS, check_metric, losses_of
from ofa_exit.evaluation.calibration.coverage import coverage
from ofa_exit.evaluation.calibration.losses import COSTS, costs_of, read_sentences


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, metavar="FILE.rows.jsonl")
    parser.add_argument("--keep", type=float, default=0.96)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--metric", choices=METRICS, default="consistency")
    parser.add_argument("--save", choices=COSTS, default="layers")
    parser.add_argument("--splits", type=int, default=200)
    args = parser.parse_args(argv)
    run, sentences = read_sentences(args.rows)
    kind = run["task"]["kind"]
    check_metric(args.metric, kind)
    if args.save != "layers" and not run.get("complete"):
        parser.error(f"{args.rows} has no {args.save} that can be compared: calibrate --save flops")
    own_counts = args.metric in OWN_COUNTS
    fixed = None if own_counts else losses_of(sentences, args.metric, kind)

    def measure(finding: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return fixed or losses_of(sentences, args.metric, kind, finding)

    costs = costs_of(sentences, args.save)
    images = [one.image for one in sentences] if all(one.image for one in sentences) else None
    found = coverage(
        *(measure, costs, args.keep, args.confidence, images, args.splits), own_counts=own_counts
    )
    kinds = "" if images is None else f" of {len(set(images))} images"
    print(f"{len(sentences)} rows{kinds}, {len(costs)} settings, {args.splits} splits")
    for name, one in zip(("calibrated", "untested"), found):
        print(
            f"{name:10}  broken {100 * one.broken:5.1f} %  over all rows "
            f"{100 * one.broken_pool:5.1f} %  {args.save} saved {100 * one.saved:5.1f} %  full "
            f"depth {100 * one.full_depth:5.1f} %"
        )


if __name__ == "__main__":
    main()
