"""Measure how alike the states of consecutive layers are, and how alike all layers are to the last.

  ofa-exit saturation --out saturation plain=plain.pt MuE=mue.pt DATA --task mue_caption …

Give the checkpoints as NAME=FILE, then DATA; everything else goes to fairseq-generate's parser
unchanged (--task, --gen-subset, --bpe-dir, --batch-size, …). Every checkpoint reads the split once,
at full depth. The decoder is fed the reference (the first, where a row has several), so that all
checkpoints are measured on the same words.

Writes saturation.csv, and draws saturation.png and saturation.svg (MuE Figure 3): the cosine
similarity of the states before and after a layer, and below it that of the states after the layer
and after the last one. Layers that self-distillation makes alike show there. There is a column for
image and text of a split encoder, for the joint pass of others, and for the decoder. A line is the
mean over samples (encoder) or words (decoder), its band reaches from the first to the third
quartile. The cosines are those of --exit-policy similarity.
"""

import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import new_parser, prints_errors

SUFFIXES = (".png", ".svg", ".csv")


def measure(verb: str, checkpoints: list[str], arguments: list[str], out: Path) -> list[Path]:
    """Measure the checkpoints and write OUT.csv, OUT.png and OUT.svg; return their paths.

    Args:
        verb: the program's name in errors.
        checkpoints: NAME=FILE each.
        arguments: those of fairseq-generate.

    Raises:
        UsageError: options or files that do not fit.
    """
    # Slow, so not for --help.
    from fairseq.logging import progress_bar

    from ofa_exit.cli.generation import Generation, named_files
    from ofa_exit.cli.saturation.states import cosines, layer_states
    from ofa_exit.evaluation.figures.saturation import (
        plot_saturation,
        summarise,
        write_saturation,
    )
    from ofa_exit.plugin.errors import UsageError

    files = named_files(checkpoints, "CHECKPOINT")
    generation = Generation(verb, arguments, list(files.values()))
    pad, rows = generation.task.dictionary.pad(), []
    for name, file in files.items():
        model, found = generation.load_model(file), defaultdict(list)
        batches = progress_bar.progress_bar(
            generation.batches(model), prefix=name, default_log_format="tqdm"
        )
        for sample in generation.on_device(batches, model):
            states = layer_states(model, sample["net_input"])
            for key, values in cosines(states, sample, pad):
                found[key].append(values.cpu().numpy())
        rows += summarise(name, found)
    if not rows:
        raise UsageError(f"no row of {generation.subset} could be used: nothing was measured")
    out.parent.mkdir(parents=True, exist_ok=True)
    table = write_saturation(rows, out.with_name(f"{out.name}.csv"))
    return [table, *plot_saturation(rows, out)]


@prints_errors("saturation", ImportError)  # matplotlib is missing
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(
        "saturation",
        __doc__,
        usage="%(prog)s [--out OUT] NAME=CHECKPOINT… DATA [options of fairseq-generate]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoints", nargs="+", metavar="NAME=CHECKPOINT… DATA", help="checkpoints, then the data"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("saturation"),
        help="files to write; an extension is ignored (default: %(default)s)",
    )
    args, arguments = parser.parse_known_args(argv)
    *checkpoints, data = args.checkpoints
    if not checkpoints:
        parser.error("give at least one checkpoint as NAME=FILE, and then the data")
    out = args.out.with_suffix("") if args.out.suffix in SUFFIXES else args.out
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it logs every font it looks at
    arguments = [data, *arguments]
    sys.argv = [parser.prog, *arguments]  # fairseq's parser looks for --user-dir there
    print(*measure(parser.prog, checkpoints, arguments, out), sep="\n")
    return 0
