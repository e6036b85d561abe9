"""Annotations read element by element, and texts cleaned for rows."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from ofa_exit.prepare.json_stream import elements
from ofa_exit.prepare.records import PrepareError, clean

NESTED = {
    "info": {"a": [1, [2, {"b": "]}"}]], "c": None},
    "data": {"other": [[1, 2], [3]], "list": [{"x": "ä\n\"'\\"}, 12345, [], "", True, -1.5e3]},
    "tail": "x",
}


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("indent", [None, 2])
def test_elements_equal_those_of_json(tmp_path, start, indent):
    path = tmp_path / "x.json"
    text = start + json.dumps(NESTED, indent=indent, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    found = list(elements(path, "data", "list"))
    assert [value for _, value in found] == NESTED["data"]["list"]
    assert [type(value) for _, value in found] == [type(one) for one in NESTED["data"]["list"]]
    assert [place for place, _ in found] == [str(at) for at in range(6)]
    assert dict(elements(path)) == NESTED
    path.write_text("[12, 34]")
    assert [value for _, value in elements(path)] == [12, 34]
    path.write_text("[]")
    assert list(elements(path)) == []


@pytest.mark.parametrize("depth", [1, 1000, 70_000, 3_000_000])
def test_elements_longer_than_a_read(tmp_path, depth):
    path = tmp_path / "x.json"
    words = ["ä" * depth, {"x": [1.5] * (depth // 100)}]
    path.write_text(json.dumps({"list": words}, ensure_ascii=False), encoding="utf-8")
    assert [value for _, value in elements(path, "list")] == words


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"data": [1, 2', "not JSON.*EOF"),
        (b'{"data": [1, {"a": ', "not JSON.*EOF"),
        (b'{"data": [1]', "not JSON.*EOF"),  # truncated after the elements
        (b'{"data": [1 2]}', "not JSON.*','"),
        (b'{"data": ["\xff"]}', "not JSON.*UTF"),
        (b"<html>not found</html>", "not JSON"),
        (b"", "not JSON.*EOF"),
        (b'{"other": []}', "'data'"),
        (b'{"data": 3}', "'data' is number"),
        (b"[" * 100_000, "over 5,000 lists or objects within each other"),
    ],
)
def test_broken_json_names_file_and_remedy(tmp_path, content, reason):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(PrepareError, match=rf"x\.json.*{reason}.*ownload it again") as error:
        list(elements(path, "data"))
    assert "\n" not in str(error.value)


def test_unreadable_file(tmp_path):
    with pytest.raises(PrepareError, match=r"x\.json.*[Dd]ownload it again"):
        list(elements(tmp_path / "x.json"))


def test_memory_of_one_element(tmp_path):
    """A list of 40 MB before the list that is read, which also has 40 MB."""
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


def test_clean_text_fits_a_field():
    assert clean(" a\tb\r\n c && d &&& e\0") == "a b c & d & e"
