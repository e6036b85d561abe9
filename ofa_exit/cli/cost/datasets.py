"""The papers' data sets as their scripts train on them and answer them, and the cost of that."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate
from tqdm import tqdm

from ofa_exit.cli.cost.counted import Answer, Lengths, answer_flops, build, hours, sample_cost

GIB = 2**30
SIZE = 480
CAPTION = Lengths(SIZE, source=8, target=12)
ANSWER = Lengths(SIZE, source=9, target=3)
FEW_WORDS = Answer(beam=5, steps=3)


@dataclass(frozen=True)
class DataSet:
    """A data set as its scripts use it.

    Attributes:
        rows: training rows per epoch; 0 = not trained on.
        is_lower_bound: there are more rows, because a question makes a row for each answer.
        valid: rows answered after each epoch.
        files: rows of all prepared files; 0 = none of its own.
        searches: a row is answered before it is learnt, with a frozen stem (the CIDEr stage).
    """

    name: str
    lengths: Lengths
    answer: Answer
    valid: int
    rows: int = 0
    epochs: int = 5
    files: int = 0
    is_lower_bound: bool = False
    searches: bool = False


# Rows are the counts that ofa-exit prepare checks. Lengths in tokens are assumptions: the data was
# not available. Epochs are those of run_scripts: MuE's 5, and OFA's 3 of the CIDEr stage.
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
        is_lower_bound=True,
        valid=214_354,
        files=443_757 + 214_354 + 107_394 + 447_793,
        lengths=Lengths(SIZE, source=9, target=11, prompt=8),
        answer=Answer(candidates=1_000, words=3_000),
    ),
    DataSet(
        name="okvqa",
        rows=9_009,
        is_lower_bound=True,
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
        is_lower_bound=True,
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
    """Return a table of the data sets: counted GFLOPs per row, estimated hours and GiB.

    Args:
        tflops: TFLOP/s that one GPU sustains; a column of hours for each.
        row_bytes: bytes per row of the prepared files.
    """
    rates = [f"h at {rate:g}" for rate in tflops]
    table = [["", "rows", "epochs", "GFLOPs", *rates, "valid", "GFLOPs", *rates[:1], "files, GiB"]]
    models = {frozen: build(arch, freeze_resnet=frozen) for frozen in (False, True)}
    for data_set in tqdm(DATA_SETS, desc="data sets", leave=False, disable=None):
        model = models[data_set.searches]
        lengths, rows = data_set.lengths, data_set.rows
        answer = answer_flops(model, lengths, data_set.answer)
        bound = "≥ " if data_set.is_lower_bound else ""
        line = [data_set.name]
        if rows:
            step = sample_cost(model, lengths).training + answer * data_set.searches
            line += [f"{bound}{rows:,}", str(data_set.epochs), f"{step / 1e9:.0f}"]
            line += [f"{hours(step, rows, data_set.epochs, rate, 1):.1f}" for rate in tflops]
        else:
            line += [""] * (3 + len(tflops))
        passes = data_set.epochs if rows else 1
        line += [f"{data_set.valid:,}", f"{answer / 1e9:.0f}"]
        line += [f"{hours(answer, data_set.valid, passes, tflops[0], 1):.1f}"]
        line += [f"{bound}{data_set.files * row_bytes / GIB:.0f}" if data_set.files else ""]
        table.append(line)
    return as_text(table)


def as_text(table: Sequence[Sequence[str]]) -> str:
    """Align the columns: names on the left, numbers on the right. The first line is the header."""
    align = ["left", *["right"] * (len(table[0]) - 1)]
    return tabulate(table[1:], table[0], tablefmt="plain", disable_numparse=True, colalign=align)
