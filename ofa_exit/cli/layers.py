"""Measure the quality after each decoder layer of a checkpoint, and at each of its exits.

  ofa-exit layers OUT DATA --path CHECKPOINT …

For k = 1…N every word stops after decoder layer k and passes the final norm and the vocabulary
projection. Image and text run in full. If the model has exits, words then leave through each exit
alone. Everything else on the command line goes to fairseq-generate's parser unchanged.

Writes OUT.csv, with the columns of ofa-exit sweep and `layer`, and draws OUT.png and OUT.svg. They
are Figure 2 of BLIPEE: middle layers may know less than those before them (mid-crisis), and so may
the last ones (overthinking). Finally prints the --exit-layers that avoid both. Measure on
validation data. ofa-exit plot-layers draws and suggests again from OUT.csv.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ofa_exit.cli import plot_layers
from ofa_exit.cli.parsing import new_parser
from ofa_exit.evaluation.figures.layer_curve import EXITS, LAYERS

PREFERRED_QUALITY = "CIDEr"


def layer_grid(model: Any) -> list[dict[str, Any]]:
    """Return one setting per decoder layer, the last (full depth) first, and one per exit."""
    encoder, decoder = model.cfg.encoder_layers, model.cfg.decoder_layers

    def stop(run: str, layer: int, **options: Any) -> dict[str, Any]:
        depths = f"{encoder},{encoder},{layer}"
        return {"run": run, "exit_policy": "static", "exit_depths": depths, **options}

    stops = [stop(LAYERS, layer, exit_use_exits="false") for layer in range(1, decoder)]
    heads = model.decoder.exit_heads
    exits = [stop(EXITS, layer) for layer in (heads.layers if heads.trained else [])]
    return [{"run": LAYERS}, *stops, *exits]


def measure(arguments: list[str], table: Path) -> list[str]:
    """Run the sweep over layers and exits, and write its rows: layers in order, then exits.

    Args:
        arguments: those of fairseq-generate.
        table: CSV file to write.
    Returns:
        The names of the scores.
    """
    from ofa_exit.cli.sweep import sweep, write_csv  # slow, so not for --help

    layers: list[int] = []

    def grid(model: Any) -> list[dict[str, Any]]:
        settings = layer_grid(model)
        last = model.cfg.decoder_layers
        layers[:] = [int(s.get("exit_depths", f"{last}").split(",")[-1]) for s in settings]
        return settings

    rows = sweep(grid, arguments)
    # A row starts with run and setting; the scores follow, up to the number of sentences.
    columns = list(rows[0])
    scores = columns[2 : columns.index("sentences")]
    for row, layer in zip(rows, layers, strict=True):
        del row["setting"]
        row["layer"] = layer
    rows.sort(key=lambda row: (row["run"] != LAYERS, row["layer"]))
    rows = [{"run": row.pop("run"), "layer": row.pop("layer"), **row} for row in rows]
    write_csv(rows, table)
    return scores


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(
        "layers",
        __doc__,
        usage="%(prog)s [--quality NAME] [--share SHARE] [--exits COUNT] OUT DATA "
        "--path CHECKPOINT [options of fairseq-generate]",
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="files to write, without extension")
    parser.add_argument(
        "--quality", help=f"score to judge by (default: {PREFERRED_QUALITY}, or the scorer's first)"
    )
    plot_layers.add_options(parser)
    args, arguments = parser.parse_known_args(argv)
    if not any(one.split("=")[0] == "--path" for one in arguments):
        parser.error("give the data and --path CHECKPOINT, as to fairseq-generate")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it logs every font it looks at
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sys.argv = [parser.prog, *arguments]  # fairseq's parser looks for --user-dir there
    table = args.out.with_name(args.out.name + ".csv")
    scores = measure(arguments, table)
    print(table)
    quality = args.quality or (PREFERRED_QUALITY if PREFERRED_QUALITY in scores else scores[0])
    given = ["--quality", quality, "--out", str(args.out), "--share", str(args.share)]
    given += ["--exits", str(args.exits)] if args.exits else []
    return plot_layers.main([str(table), *given])
