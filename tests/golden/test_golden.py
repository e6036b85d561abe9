"""What every exit policy generates, against files that an earlier state of the code wrote.

A change that is meant to change them writes them anew: ``golden.make``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .cases import CASES, run_case, write_data
from .make import FOLDER, read

CLOSE = {"rel": 1e-5, "abs": 1e-5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of all cases; every generation collects garbage, of which all else is left out."""
    gc.freeze()
    yield write_data(tmp_path_factory.mktemp("golden"))
    gc.unfreeze()


def decisions(result: dict[str, Any]) -> dict[str, Any]:
    """Of every sentence its layers, and the tokens and layers of its hypotheses."""
    return {
        name: [image, text, [[tokens, layers] for tokens, layers, *_ in hypotheses]]
        for name, (image, text, hypotheses) in result["sentences"].items()
    }


def scores(result: dict[str, Any]) -> dict[str, list[float]]:
    """Of every sentence the scores of its hypotheses, each followed by its positional ones."""
    return {
        name: [score for _, _, *of in hypotheses for score in of]
        for name, (_, _, hypotheses) in result["sentences"].items()
    }


def numbers(summary: dict[str, Any]) -> dict[str, float]:
    """The summary without what was not counted."""
    return {name: value for name, value in summary.items() if value is not None}


def differing(found: dict[str, Any], golden: dict[str, Any]) -> dict[str, Any]:
    """The first three sentences that are not the same, as found and as they were."""
    names = [name for name in golden if found.get(name) != golden[name]][:3]
    return {name: (found.get(name), golden[name]) for name in names}


@pytest.mark.parametrize("name", CASES)
def test_generation_is_as_it_was(name: str, data: Path, tmp_path: Path) -> None:
    golden, found = read(name), run_case(CASES[name], data, tmp_path / "trace.jsonl")
    assert list(found["sentences"]) == list(golden["sentences"])
    assert differing(decisions(found), decisions(golden)) == {}
    found_scores = scores(found)
    for sentence, of_sentence in scores(golden).items():
        assert found_scores[sentence] == pytest.approx(of_sentence, **CLOSE), sentence
    assert found["operations"] == golden["operations"]
    assert numbers(found["summary"]) == pytest.approx(numbers(golden["summary"]), **CLOSE)


@pytest.mark.parametrize("name", [name for name in CASES if "_none_" not in name])
def test_golden_exits_vary(name: str) -> None:
    """Files that hold the same depth everywhere would pin little."""
    golden = read(name)
    reduction = golden["summary"]["flop_reduction"]
    used = {n for *_, of in golden["sentences"].values() for _, layers, *_ in of for n in layers}
    used.discard(0)  # what a closed set of answers forces
    assert reduction != 0 and min(used) < 6
    if "static" not in CASES[name].exits.split()[1]:
        assert len(used) > 1


def test_every_file_has_a_case() -> None:
    assert {file.name for file in FOLDER.iterdir()} == {f"{name}.json.gz" for name in CASES}
