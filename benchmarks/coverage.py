"""How often do calibrated exits break their promise? Random splits of what calibrate generated.

  python -m benchmarks.coverage exits.rows.jsonl [--keep 0.96] [--confidence 0.95] …

exits.rows.jsonl is what `ofa-exit calibrate` keeps beside its --out, over validation and test rows
in one file. Each split calibrates on half of the rows and looks at the other half. No model runs.
Prints a line per rule: calibrated, and the cheapest setting that seems good enough, as
`ofa-exit choose` takes it. Columns: share of splits in which the promise is broken on the held-out
half, and over all rows, mean saving on the held-out half, and share of splits at full depth.
"""

import argparse
from pathlib import Path

from ofa_exit.cli.calibrate.metrics import METRICS, check_metric, losses_of
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
    losses, scores = losses_of(sentences, args.metric, kind)
    costs = costs_of(sentences, args.save)
    found = coverage(losses, costs, args.keep, args.confidence, scores, args.splits)
    print(f"{len(sentences)} rows, {len(losses)} settings, {args.splits} splits")
    for name, one in zip(("calibrated", "chosen"), found):
        print(
            f"{name:10}  broken {100 * one.broken:5.1f} %  over all rows "
            f"{100 * one.broken_pool:5.1f} %  {args.save} saved {100 * one.saved:5.1f} %  full "
            f"depth {100 * one.full_depth:5.1f} %"
        )


if __name__ == "__main__":
    main()
