"""Damaged index files: the right rows, or an error that names the file."""

from __future__ import annotations

import io
import os
import shutil
from functools import partial

import numpy as np
import pytest
from helpers import fuzzing
from helpers.data_samples import write_tsv
from helpers.fuzzing import BYTE_EDITS, attempt, folder_for_one, fuzz
from hypothesis import given
from hypothesis import strategies as st

from ofa_exit.data.row_index import index_path
from ofa_exit.data.tsv import TsvFile

pytestmark = pytest.mark.slow
ROWS = [[str(n), "x" * (n % 7) + "é"] for n in range(90)]
COLUMNS = ("uniq_id", "text")
NUMBERS = st.one_of(
    st.integers(-3, 3), st.sampled_from((-(2**63), 2**63 - 1, 2**31, 2**40)), st.integers(0, 900)
)
HEADERS = st.sampled_from(
    (
        "{'descr': '<i8', 'fortran_order': False, 'shape': (1152921504606846976,), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<i8', 'fortran_order': True, 'shape': (9, 9), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (), }",
        "{'descr': '>i8', 'fortran_order': False, 'shape': (9,), }",
        "{'descr': '<i8', 'shape': (9,)}",
        "{'descr': (), 'fortran_order': 0, 'shape': (1e3,)}",
        "[" * 3_000,
        "{'descr': '<i8', 'fortran_order': False, 'shape': (9L,), }",
        "é" * 9,
        "\0" * 99,
    )
)
OTHER_FILES = (b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x80\x04K\x01.", b"\x93NUMPY\x09\x09")


def header_of(text: str) -> bytes:
    """A file of numpy.save with another header."""
    content = text.encode("utf-8") + b"\n"
    return b"\x93NUMPY\x02\x00" + len(content).to_bytes(4, "little") + content + bytes(99)


def saved(table: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, table)
    return stream.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file, its index, and what its rows are."""
    path = write_tsv(tmp_path_factory.mktemp("whole") / "a.tsv", ROWS)
    TsvFile(path, None, COLUMNS)
    return path, index_path(path).read_bytes()


def check_rows(tmp_path, whole, index: bytes) -> None:
    """Open the file with an index, twice, since the first may have written another."""
    with folder_for_one(tmp_path) as folder:
        path = folder / "a.tsv"
        shutil.copyfile(whole[0], path)
        status = whole[0].stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        index_path(path).parent.mkdir()
        index_path(path).write_bytes(index)
        for _ in range(2):
            file = attempt(folder, str(path), lambda: TsvFile(path, None, COLUMNS))
            assert file is not None and len(file) == len(ROWS)
            for number, row in enumerate(ROWS):
                found = attempt(folder, f"{path}, line ", partial(file.fields, number))
                assert found in (None, row)


@fuzz(120)
@given(edits=BYTE_EDITS)
def test_damaged_bytes(tmp_path, whole, edits):
    check_rows(tmp_path, whole, fuzzing.damaged(whole[1], edits))


@fuzz(80)
@given(edits=st.lists(st.tuples(st.integers(2, 92), NUMBERS, st.booleans()), max_size=3))
def test_wrong_offsets(tmp_path, whole, edits):
    """Of the right size and time: replaced, or moved by a number."""
    table = np.load(io.BytesIO(whole[1]))
    for place, number, is_moved in edits:
        with np.errstate(over="ignore"):
            table[place] = np.int64(number) + (table[place] if is_moved else 0)
    check_rows(tmp_path, whole, saved(table))


@fuzz(40)
@given(index=st.one_of(
    HEADERS.map(header_of), st.tuples(st.sampled_from(OTHER_FILES), st.binary(max_size=99)).map(
        b"".join), st.binary(max_size=99)))  # fmt: skip
def test_other_files_as_an_index(tmp_path, whole, index):
    check_rows(tmp_path, whole, index)
