"""The papers' data sets as their scripts train and answer them, and what that costs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ofa_exit.cli.cost.counted import Answer, Lengths, answer_flops, build, hours, sample_cost

GIB = 2**30
SIZE = 480
CAPTION = Lengths(SIZE, source=8, target=12)
ANSWER = Lengths(SIZE, source=9, target=3)
FEW_WORDS = Answer(beam=5, steps=3)


@dataclass(frozen=True)
class DataSet:
    """rows: of training, an epoch; 0 = none. least: there are more, since a question makes a row
    for each of its answers. valid: rows that are answered after each epoch. files: rows of all the
    files that are prepared; 0 = none of its own. searches: a row is answered before it is learnt,
    with a frozen stem (the CIDEr stage).
    """

    name: str
    lengths: Lengths
    answer: Answer
    valid: int
    rows: int = 0
    epochs: int = 5
    files: int = 0
    least: bool = False
    searches: bool = False


# Rows are those that ofa_exit.prepare checks its files by. Lengths in tokens are assumed: the
# data were not at hand. Epochs are those of run_scripts: MuE's 5, and OFA's 3 of the CIDEr stage.
DATA_SETS = (
    DataSet(
        name="coco",
        rows=566_747,
        valid=5_000,
        files=566_747 + 113_287 + 5_000 + 5_000,
        lengths=CAPTION,
        answer=Answer(),
    ),
    DataSet(
        name="coco, CIDEr",
        rows=113_287,
        epochs=3,
        valid=5_000,
        lengths=dataclasses.replace(CAPTION, captions=5),
        answer=Answer(),
        searches=True,
    ),
    DataSet(name="nocaps", valid=4_500, files=9_000, lengths=CAPTION, answer=Answer()),
    DataSet(
        name="snli_ve",
        rows=529_527,
        valid=17_858,
        files=529_527 + 17_858 + 17_901,
        lengths=Lengths(SIZE, source=32, target=33, prompt=31),
        answer=Answer(candidates=1, words=3),
    ),
    DataSet(
        name="vqa",
        rows=443_757,
        least=True,
        valid=214_354,
        files=443_757 + 214_354 + 107_394 + 447_793,
        lengths=Lengths(SIZE, source=9, target=11, prompt=8),
        answer=Answer(candidates=1_000, words=3_000),
    ),
    DataSet(
        name="okvqa",
        rows=9_009,
        least=True,
        valid=5_046,
        files=9_009 + 5_046,
        lengths=ANSWER,
        answer=FEW_WORDS,
    ),
    DataSet(
        name="gqa",
        rows=943_000,
        valid=132_062,
        files=943_000 + 132_062 + 12_578 + 95_336,
        lengths=ANSWER,
        answer=FEW_WORDS,
    ),
    DataSet(
        name="vizwiz",
        rows=20_523,
        least=True,
        valid=4_319,
        files=20_523 + 4_319 + 8_000,
        lengths=ANSWER,
        answer=FEW_WORDS,
    ),
    DataSet(
        name="visdial",
        rows=1_232_870,
        valid=20_640,
        files=1_232_870 + 20_640 + 8_000,
        lengths=Lengths(SIZE, source=120, target=6),
        answer=Answer(candidates=400),
    ),
)


def plan(arch: str, tflops: Sequence[float], row_bytes: int) -> str:
    """A table of the data sets: GFLOPs of a row are counted, hours of one GPU that sustains so many
    TFLOP/s and GiB of the files estimated."""
    rates = [f"h at {rate:g}" for rate in tflops]
    table = [
        ["", "rows", "epochs", "GFLOPs", *rates, "valid", "GFLOPs", *rates[:1], "files, GiB"],
    ]
    models = {frozen: build(arch, freeze_resnet=frozen) for frozen in (False, True)}
    for of in tqdm(DATA_SETS, desc="data sets", leave=False, disable=None):
        model = models[of.searches]
        answer = answer_flops(model, of.lengths, of.answer)
        least = "≥ " * of.least
        line = [of.name]
        if of.rows:
            step = sample_cost(model, of.lengths).training + answer * of.searches
            line += [f"{least}{of.rows:,}", str(of.epochs), f"{step / 1e9:.0f}"]
            line += [f"{hours(step, of.rows, of.epochs, rate, 1):.1f}" for rate in tflops]
        else:
            line += [""] * (3 + len(tflops))
        line += [f"{of.valid:,}", f"{answer / 1e9:.0f}"]
        line += [f"{hours(answer, of.valid, of.epochs if of.rows else 1, tflops[0], 1):.1f}"]
        line += [f"{least}{of.files * row_bytes / GIB:.0f}" if of.files else ""]
        table.append(line)
    return as_text(table)


def as_text(table: Sequence[Sequence[str]]) -> str:
    """Columns side by side, names on the left and numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )
