"""Quality after each decoder layer of a checkpoint, and of each of its exits alone.

    ofa-exit layers OUT DATA --path CHECKPOINT …

For k = 1…N the decoder stops behind layer k, through the final norm and the vocabulary projection,
for every word; image and text run in full. Where the model has exits, words then leave through each
of them alone. Everything else on the command line goes to fairseq-generate's parser unchanged.

Writes OUT.csv, with the columns of ``ofa-exit sweep`` and `layer`, and draws OUT.png and
OUT.svg: Figure 2 of BLIPEE, whose middle layers know less than those before them (mid-crisis) and
whose last ones may, too (overthinking). Then prints the ``--exit-layers`` that avoid both: choose
them on validation data. ``ofa-exit plot-layers`` draws and chooses again from
OUT.csv.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from ofa_exit.cli.sweep import Grid, sweep, write_csv
from ofa_exit.evaluation.figures.layer_curve import (
    EXITS,
    LAYERS,
    add_options,
    describe,
    plot_layers,
    read_curves,
)

PREFERRED = "CIDEr"


def layer_grid(model: Any) -> Grid:
    """One setting a decoder layer, the last (full depth) first, and one an exit."""
    encoder, decoder = model.cfg.encoder_layers, model.cfg.decoder_layers

    def stop(run: str, layer: int, **options: Any) -> dict[str, Any]:
        depths = f"{encoder},{encoder},{layer}"
        return {"run": run, "exit_policy": "static", "exit_depths": depths, **options}

    stops = [
        stop(LAYERS, layer, exit_options='{"use_exits": false}') for layer in range(1, decoder)
    ]
    exits = [stop(EXITS, layer) for layer in sorted(map(int, model.decoder.exits))]
    return [{"run": LAYERS}, *stops, *exits]


def measure(arguments: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The CSV's lines in the order of layers, exits behind them; and the names of the scores.

    arguments: fairseq-generate's.
    """
    layers: list[int] = []

    def grid(model: Any) -> Grid:
        settings = layer_grid(model)
        last = model.cfg.decoder_layers
        layers[:] = [int(s.get("exit_depths", f"{last}").split(",")[-1]) for s in settings]
        return settings

    rows = sweep(grid, arguments)
    scores = list(rows[0])[2:]
    scores = scores[: scores.index("sentences")]
    for row, layer in zip(rows, layers, strict=True):
        del row["setting"]
        row["layer"] = layer
    rows.sort(key=lambda row: (row["run"] != LAYERS, row["layer"]))
    return [{"run": row.pop("run"), "layer": row.pop("layer"), **row} for row in rows], scores


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="ofa-exit layers",
        usage="%(prog)s [--quality NAME] [--share SHARE] [--exits COUNT] OUT DATA "
        "--path CHECKPOINT [options of fairseq-generate]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="files to write, without extension")
    parser.add_argument(
        "--quality", help=f"the score to judge by (default: {PREFERRED}, or the scorer's first)"
    )
    add_options(parser)
    given, arguments = parser.parse_known_args()
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # tells of every font it looks at
    given.out.parent.mkdir(parents=True, exist_ok=True)
    sys.argv = ["fairseq-generate", *arguments]  # where fairseq's parser looks for --user-dir
    rows, scores = measure(arguments)
    table = given.out.with_name(given.out.name + ".csv")
    write_csv(rows, table)
    print(table)
    quality = given.quality or (PREFERRED if PREFERRED in scores else scores[0])
    try:
        curves = read_curves(table, quality)
        print(*plot_layers(curves, quality, given.out, given.share), sep="\n")
        print(describe(curves, quality, given.share, given.exits))
    except (ValueError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
