"""Annotations read element by element, and texts made fit for rows."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from ofa_exit.prepare import json_stream
from ofa_exit.prepare.json_stream import elements
from ofa_exit.prepare.records import PrepareError, clean

NESTED = {
    "info": {"a": [1, [2, {"b": "]}"}]], "c": None},
    "data": {"other": [[1, 2], [3]], "list": [{"x": "ä\n\"'\\"}, 12345, [], "", True, -1.5e3]},
    "tail": "x",
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_elements_are_those_of_json(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(NESTED, indent=indent, ensure_ascii=False), encoding="utf-8")
    found = list(elements(path, "data", "list"))
    assert [value for _, value in found] == NESTED["data"]["list"]
    assert [place for place, _ in found] == [str(at) for at in range(6)]
    assert dict(elements(path)) == NESTED
    path.write_text("[12, 34]")
    assert [value for _, value in elements(path)] == [12, 34]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"data": [1, 2', "character 14: expected ',', found 'the end of the file'"),
        ('{"data": [1, {"a": ', "not JSON"),
        ('{"data": [1 2]}', "expected ','"),
        ('{"other": []}', "there is no 'data'"),
        ('{"data": 3}', "expected a list or an object"),
        ("", "there is no 'data'"),
    ],
)
def test_broken_json_is_refused(tmp_path, text, told):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(PrepareError, match=r"x\.json") as error:
        list(elements(path, "data"))
    assert told in str(error.value)


def test_memory_is_that_of_an_element(tmp_path):
    """A list of 40 MB before the one that is read, which has 40 MB itself."""
    path = tmp_path / "x.json"
    long = json.dumps([["word " * 200] * 40] * 1000)
    path.write_text(f'{{"before": {long}, "list": {long}}}')
    assert path.stat().st_size > 80_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in elements(path, "list")) == 1000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000


def test_text_that_would_break_a_row():
    assert clean(" a\tb\r\n c && d &&& e\0") == "a b c & d & e"
