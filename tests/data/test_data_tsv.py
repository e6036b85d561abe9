"""TSV files: rows, offsets, and errors of lines."""

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch
from helpers.data_samples import write_tsv

from ofa_exit.data import row_index
from ofa_exit.data.row_index import row_offsets
from ofa_exit.data.tsv import TsvError, TsvFile

COLUMNS = ("uniq_id", "text")


def texts(file: TsvFile) -> list[str]:
    return [file.row(index)["text"] for index in range(len(file))]


def test_selects_columns_in_the_order_of_their_names(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [["1", "x", "eins"], ["2", "y", "zwei"]])
    file = TsvFile(path, "2,0", ("text", "uniq_id"))
    assert [file.row(0), file.row(1)] == [
        {"text": "eins", "uniq_id": "1"},
        {"text": "zwei", "uniq_id": "2"},
    ]
    assert TsvFile(path, None, ("uniq_id", "image_id")).row(1) == {"uniq_id": "2", "image_id": "y"}
    assert file.fields(1) == ["2", "y", "zwei"]
    assert file.column_of("text") == 2


@pytest.mark.parametrize(
    "content",
    [
        b"1\tone\n2\ttwo\n",
        b"1\tone\n2\ttwo",
        b"1\tone\r\n2\ttwo\r\n",
        b"1\tone\n2\ttwo\n\n",
        b"1\tone\r\n2\ttwo\r\n\r\n\n",
        b"\xef\xbb\xbf1\tone\n2\ttwo\n",
    ],
    ids=["plain", "no end", "crlf", "empty end", "empty ends", "byte order mark"],
)
def test_line_ends(tmp_path, content):
    path = tmp_path / "a.tsv"
    path.write_bytes(content)
    for _ in range(2):  # built, then read from the index
        file = TsvFile(path, None, COLUMNS)
        assert [file.row(0)["uniq_id"], *texts(file)] == ["1", "one", "two"]


def test_short_last_lines_are_kept(tmp_path):
    path = tmp_path / "a.tsv"
    for content in (b"a\nb\n", b"a\nb", b"a\nb\n\n", b"a\n\tb\nc"):
        path.write_bytes(content)
        _, offsets = row_offsets(path)
        lines = [content[a:b].rstrip() for a, b in zip(offsets, offsets[1:], strict=False)]
        assert lines == content.rstrip().split(b"\n")


def test_lines_longer_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(row_index, "_CHUNK_BYTES", 7)
    rows = [[str(number), "w" * length] for number, length in enumerate((0, 5, 40, 4, 3, 200, 1))]
    path = write_tsv(tmp_path / "a.tsv", rows)
    assert texts(TsvFile(path, None, COLUMNS)) == [row[1] for row in rows]


def test_a_line_of_many_megabytes(tmp_path):
    rows = [["1", "short"], ["2", "x" * (9 << 20)], ["3", "end"]]
    file = TsvFile(write_tsv(tmp_path / "a.tsv", rows), None, COLUMNS)
    assert len(file.row(1)["text"]) == 9 << 20
    assert file.row(2)["text"] == "end"


def test_pickled_file_reopens_and_holds_no_handle(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"], ["2", "two"]])
    file = TsvFile(path, None, COLUMNS)
    assert file.row(1)["text"] == "two"
    state = file.__getstate__()
    assert state["_file"] is None
    assert not any(hasattr(value, "fileno") for value in state.values())
    assert texts(pickle.loads(pickle.dumps(file))) == ["one", "two"]


def _read_in_child(file: TsvFile, start: int, queue) -> None:
    parents_handle = file._file
    rows = [(index, file.row(index)["text"]) for index in range(start, len(file), 2)]
    queue.put((rows, file._file is not parents_handle))


@pytest.mark.parametrize(("method", "starts"), [("fork", (0, 1)), ("spawn", (0,))])
def test_processes_read_in_parallel(tmp_path, method, starts):
    path = write_tsv(tmp_path / "a.tsv", [[str(n), f"row {n}"] for n in range(200)])
    file = TsvFile(path, None, COLUMNS)
    assert file.row(0)["text"] == "row 0"  # the parent's handle is open
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [
        context.Process(target=_read_in_child, args=(file, start, queue)) for start in starts
    ]
    for child in children:
        child.start()
    rows = [file.row(index)["text"] for index in range(200)]
    answers = [queue.get(timeout=600) for _ in children]
    for child in children:
        child.join()
    assert rows == [f"row {n}" for n in range(200)]
    assert all(reopened for _, reopened in answers)
    read = sorted(row for answer, _ in answers for row in answer)
    assert read == [(n, row) for n, row in enumerate(rows) if n % 2 in starts]


def failure(path: Path, index: int = 0, selected: str | None = None) -> TsvError:
    with pytest.raises(TsvError) as caught:
        TsvFile(path, selected, COLUMNS).row(index)
    return caught.value


def test_empty_line_in_the_middle(tmp_path):
    for blank in (b"\n", b"\r\n"):
        path = tmp_path / "a.tsv"
        path.write_bytes(b"1\tone\n" + blank + b"3\tthree\n")
        assert TsvFile(path, None, COLUMNS).row(2)["text"] == "three"
        error = failure(path, 1)
        assert (error.line, error.path) == (2, str(path))
        assert "empty" in error.message
    path.write_bytes(b"\n1\tone\n")
    assert failure(path, 1).line == 1


def test_missing_file_and_no_rows(tmp_path):
    error = failure(tmp_path / "none.tsv")
    assert error.line is None
    assert "no such file" in str(error)
    assert "none.tsv" in str(error)
    for content in (b"", b"\n\r\n\n"):
        (tmp_path / "a.tsv").write_bytes(content)
        assert "no rows" in str(failure(tmp_path / "a.tsv"))
    assert "cannot be read" in str(failure(tmp_path))


def test_missing_column_raises_before_any_row_is_read(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"]])
    with pytest.raises(TsvError) as caught:
        TsvFile(path, "0,4", COLUMNS)
    error = caught.value
    assert (error.line, error.field) == (1, "text")
    assert "column 4" in error.message
    assert "has 2" in error.message
    assert "--selected-cols" in error.remedy


def test_ragged_lines_name_both_counts(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one", "x"], ["2", "two"], ["3", "th", "ree", "y"]])
    for index, columns in ((1, 2), (2, 4)):
        error = failure(path, index)
        assert error.line == index + 1
        assert f"{columns} columns" in error.message
        assert "first line 3" in error.message


@pytest.mark.parametrize("selected", ["0", "0,1,2", "0,x", "0,-1", "0;1", "0,", "0,²", "1" * 999])
def test_invalid_column_choices_raise(tmp_path, selected):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one", "x"]])
    error = failure(path, 0, selected)
    assert error.line is None
    assert selected[:60] in error.message
    assert "uniq_id, text" in error.remedy
    assert len(str(error)) < 400


def test_bytes_that_are_not_utf8_name_the_field(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"1\tone\n2\tcaf\xe9\n")
    error = failure(path, 1)
    assert (error.line, error.field) == (2, "text")
    assert "UTF-8" in error.message


def test_file_changed_while_in_use(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"], ["2", "two"]])
    file = TsvFile(path, None, COLUMNS)
    write_tsv(path, [["1", "one"], ["2", "two"], ["3", "three"]])
    with pytest.raises(TsvError, match="changed") as caught:
        file.row(0)
    assert caught.value.line is None
    file = TsvFile(path, None, COLUMNS)
    file.row(0)
    os.truncate(path, 8)
    with pytest.raises(TsvError, match="changed"):
        file.row(1)
    file = TsvFile(path, None, COLUMNS)
    path.unlink()
    with pytest.raises(TsvError, match="changed"):
        pickle.loads(pickle.dumps(file)).row(0)


def test_file_that_is_still_being_written(tmp_path, monkeypatch):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"]])
    count = row_index._scan

    def count_and_grow(file):
        offsets = count(file)
        with path.open("ab") as more:
            more.write(b"2\ttwo\n")
        return offsets

    monkeypatch.setattr(row_index, "_scan", count_and_grow)
    with pytest.raises(TsvError, match="being written"):
        TsvFile(path, None, COLUMNS)


def test_rows_out_of_range(tmp_path):
    file = TsvFile(write_tsv(tmp_path / "a.tsv", [["1", "one"]]), None, COLUMNS)
    for index in (-1, 1):
        with pytest.raises(IndexError):
            file.row(index)


def test_error_text_survives_processes():
    error = TsvError("a.tsv", 3, "image", "it is broken", "Mend it")
    assert str(error) == "a.tsv, line 3, field 'image': it is broken. Mend it"
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.line, copy.field) == (str(error), 3, "image")
    # How torch's data loader raises an error of a worker again.
    try:
        raise error
    except TsvError:
        wrapped = torch._utils.ExceptionWrapper(where="in worker 1")
    with pytest.raises(TsvError, match=r"a\.tsv, line 3, field 'image': it is broken\. Mend it"):
        wrapped.reraise()
