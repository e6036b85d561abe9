"""OFA's tab-separated files: no header, one example per line, columns chosen by number."""

import os
from pathlib import Path
from typing import BinaryIO

from ofa_exit.data.row_index import file_stamp, index_path, is_line, row_offsets
from ofa_exit.regular_files import regular_file


class TsvError(ValueError):
    """An error in a file or one of its rows, with its place (1-based line, field) and the remedy.

    ``line`` is None for an error of the whole file.
    """

    # A data loader raises an error of a worker again with the first argument alone, which is then
    # the whole message.
    def __init__(
        self,
        path: str | os.PathLike,
        line: int | None = None,
        field: str | None = None,
        message: str = "",
        remedy: str = "",
    ):
        super().__init__(path, line, field, message, remedy)
        self.path = str(path)
        self.line = line
        self.field = field
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.path
        if self.line is not None:
            text += f", line {self.line}"
        if self.field is not None:
            text += f", field {self.field!r}"
        if self.message:
            text += f": {self.message}"
        return f"{text}. {self.remedy}" if self.remedy else text


class TsvFile:
    """Rows of a TSV file by number.

    Lines may end in CR LF. Empty lines at the end are not rows. An object is safe to fork and to
    pickle: every process opens the file itself when it first reads.

    Args:
        selected_cols: OFA's option, the numbers of the columns from 0, as in "0,4,2". None selects
            the first columns.
        columns: the names of these columns, in the same order.

    Raises TsvError: no such file, no rows, columns that the first line does not have.
    """

    def __init__(
        self, path: str | os.PathLike, selected_cols: str | None, columns: tuple[str, ...]
    ):
        self.path = Path(path)
        self.columns = columns
        self._file: BinaryIO | None = None
        self._pid = 0
        try:
            self._stamp, self._offsets = row_offsets(self.path)
        except FileNotFoundError:
            raise TsvError(path, message="no such file", remedy="Check the path") from None
        except (OSError, RuntimeError) as error:
            raise TsvError(
                path, message=f"cannot be read ({error})", remedy="Check the file and try again"
            ) from error
        if not len(self):
            raise TsvError(path, message="the file has no rows", remedy="Build it again")
        self._selected = self._parse_selection(selected_cols)
        first = self._line(0)
        if not first:
            raise self._empty_line(0)
        self.width = first.count(b"\t") + 1
        for name, column in zip(self.columns, self._selected, strict=True):
            if self.width == 1 and self.path.suffix.lower() == ".csv":
                remedy = "Make one of a CSV file by ofa-exit tsv"
                raise self.error(0, name, "the line has no tabs, so this is no TSV file", remedy)
            if column >= self.width:
                raise self.error(
                    0,
                    name,
                    f"column {column} is asked for, but the line has {self.width} "
                    f"(0 to {self.width - 1}, separated by tabs)",
                    f"Choose the columns of {', '.join(columns)} with --selected-cols",
                )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def row(self, index: int) -> dict[str, str]:
        """Return the selected fields of row ``index``, from 0. Raises TsvError as `fields` does."""
        fields = self.fields(index)
        return {name: fields[n] for name, n in zip(self.columns, self._selected, strict=True)}

    def fields(self, index: int) -> list[str]:
        """Return all fields of row ``index``.

        Raises TsvError: an empty line, bytes that are not UTF-8, or a number of fields that differs
        from the first line's. Otherwise a stray tab would shift the columns unnoticed.
        """
        line = self._line(index)
        if not line:
            raise self._empty_line(index)
        try:
            # A byte order mark is a mark on the first line only.
            text = line.decode("utf-8" if index else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.error(
                index,
                dict(zip(self._selected, self.columns)).get(line[: error.start].count(b"\t")),
                f"the text is not UTF-8 ({error.reason} at byte {error.start} of the line)",
                "Save the file as UTF-8",
            ) from None
        fields = text.split("\t")
        if len(fields) != self.width:
            raise self.error(
                index,
                None,
                f"the line has {len(fields)} column{'s' * (len(fields) != 1)}, "
                f"the first line {self.width}",
                "Look for a missing field, or for a tab or a line break inside one",
            )
        return fields

    def error(self, index: int, field: str | None, message: str, remedy: str) -> TsvError:
        """Return the error to raise about ``field`` (a name of ``columns``) of row ``index``."""
        return TsvError(self.path, index + 1, field, message, remedy)

    def column_of(self, name: str) -> int:
        """Return the number, from 0, of the column ``name``."""
        return self._selected[self.columns.index(name)]

    def _parse_selection(self, selected_cols: str | None) -> list[int]:
        if selected_cols is None:
            return list(range(len(self.columns)))
        parts = [part.strip() for part in selected_cols.split(",")]
        # isdecimal alone accepts the digits of any script.
        if len(parts) != len(self.columns) or not all(p.isascii() and p.isdecimal() for p in parts):
            raise TsvError(
                self.path,
                message=f"selected columns {selected_cols[:60]!r} are not {len(self.columns)} "
                "column numbers separated by commas",
                remedy=f"Name the columns of {', '.join(self.columns)}, counted from 0",
            )
        return [int(part) for part in parts]

    def _empty_line(self, index: int) -> TsvError:
        return self.error(index, None, "the line is empty", "Remove it")

    def _line(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {self.path}, which has {len(self)}")
        start, end = self._offsets[index : index + 2].tolist()
        descriptor = self._open().fileno()
        pieces = []
        # One byte more, the end of the line before, shows that this is where a line begins.
        place = start - 1 if start else 0
        while place < end:
            # pread, because forked processes share the file's own position.
            piece = os.pread(descriptor, end - place, place)
            if not piece:
                raise self._changed()
            pieces.append(piece)
            place += len(piece)
        line = b"".join(pieces)
        if not is_line(line, start == 0, end == self._stamp.size):
            raise self.error(
                index,
                None,
                f"the row is not one line: {index_path(self.path)} is damaged",
                "Delete that file and start again",
            )
        return line[start > 0 :].rstrip(b"\r\n")

    def _open(self) -> BinaryIO:
        if self._file is None or self._pid != os.getpid():
            try:
                self._file = regular_file(self.path).open("rb")
            except OSError as error:
                raise self._changed() from error
            self._pid = os.getpid()
        if file_stamp(self._file) != self._stamp:
            raise self._changed()
        return self._file

    def _changed(self) -> TsvError:
        self._file = None
        return TsvError(
            self.path, message="the file has changed since it was opened", remedy="Start again"
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_pid": 0}
