"""The numbers that the two papers print: MuE (Tang et al. 2023) and BLIPEE (2024), Tables 1-5.

`paper_numbers.csv` has a line for every row of a table, data set and split, with the row's name as
printed and the name that this package gives the method (empty: it has none). Reductions are
fractions: the "-40.2%" of MuE's Table 1 is 0.402, and its "1" is 0. MuE's Table 2 lacks the first
number of its first line of visual entailment; the others give 6.

Plain is the backbone of the printed BLIPEE: FlanT5 (V-F), but OPT (V-O) in BLIPEE's Table 4, which
has no BLIPEE-V-F. All speed-ups there are against BLIP-2-V-F. DeeBLIP, PABEE-BLIP, LeeBLIP and MuE
use "the better-performing BLIP-2 variant", which the table does not name.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("paper_numbers.csv")
TITLES = {"mue": "MuE", "blipee": "BLIPEE"}
SPLITS = {
    "nocaps": {
        "test_valid": "full-dataset",
        "test_valid_in_domain": "in-domain",
        "test_valid_near_domain": "near-domain",
        "test_valid_out_domain": "out-domain",
    },
    "gqa": {"testdev": "test"},
}
"""Printed names of a data set's splits, where they are not those of compare.sh without test_."""
TEXTS = ("paper", "table", "row", "method", "data_set", "split", "trained_parameters")


@dataclass(frozen=True)
class PaperRow:
    """A row of a table on one split.

    Attributes:
        method: this package's name of the method; empty if it has none.
        values: the printed numbers by this package's columns.
        trained_parameters: as printed, for instance 1.8B; may be empty.
    """

    paper: str
    table: str
    row: str
    method: str
    data_set: str
    split: str
    trained_parameters: str
    values: dict[str, float]

    @property
    def source(self) -> str:
        """Where it is printed."""
        return f"{TITLES[self.paper]}, Table {self.table}"


@cache
def _rows() -> dict[str, list[PaperRow]]:
    found: dict[str, list[PaperRow]] = {}
    with open(FILE, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            values = {k: float(v) for k, v in line.items() if v and k not in TEXTS}
            row = PaperRow(**{name: line[name] for name in TEXTS}, values=values)
            found.setdefault(f"{row.paper}_{row.data_set}", []).append(row)
    return found


def paper_names() -> list[str]:
    """Return the names that ``paper_rows`` takes: PAPER_DATA-SET."""
    return list(_rows())


def paper_rows(names: Sequence[str]) -> list[PaperRow]:
    """Return all rows of the papers' data sets. Raises ValueError for unknown names."""
    for name in names:
        if name not in _rows():
            raise ValueError(f"no numbers of {name!r}: choose from {', '.join(paper_names())}")
    return [row for name in dict.fromkeys(names) for row in _rows()[name]]


def main_rows(rows: list[PaperRow], method: str, split: str) -> list[PaperRow]:
    """Return the rows of a method in the main tables: MuE's Tables 1 and 5, BLIPEE's 1 to 5.

    They are those of the split. A paper that does not print it gives none.
    """
    found = [row for row in rows if row.method == method and is_main(row)]
    return _of_split(found, split)


def table_rows(rows: list[PaperRow], source: str, method: str, split: str) -> list[PaperRow]:
    """Return the rows of a method in one table, such as ``MuE, Table 2``; splits as above."""
    return _of_split([row for row in rows if (row.source, row.method) == (source, method)], split)


def is_main(row: PaperRow) -> bool:
    return row.paper != "mue" or row.table in ("1", "5")


def _of_split(rows: list[PaperRow], split: str) -> list[PaperRow]:
    return [
        row
        for row in rows
        if row.split == SPLITS.get(row.data_set, {}).get(split, split.removeprefix("test_"))
    ]
