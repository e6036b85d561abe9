"""Pipes where the verbs of ofa-exit read files: a message, no endless wait."""

import json
import os
import signal

import pytest

from ofa_exit.cli.main import main
from ofa_exit.data.text import dictionary_path
from ofa_exit.evaluation.metrics.cider_d import DocumentFrequencies
from ofa_exit.plugin.vocabulary import OFADictionary

LIMIT_SECONDS = 20


@pytest.fixture(autouse=True)
def time_limit():
    """Raise within the waiting ``open``."""

    def stop(*_):
        raise TimeoutError("it waits for a writer")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"question_id": 1, "answer": "yes"}]))
    return str(path)


def rejected(capsys, arguments, *names) -> None:
    """Check that one of the files is named, as commands read theirs in different orders."""
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    message = capsys.readouterr().err
    assert status not in (0, None)
    assert any(f"{name}: it is a " in message for name in names), message
    assert "not a regular file" in message
    assert len(message.strip().splitlines()[-1]) < 300


@pytest.mark.parametrize("benchmark", ["vqa", "vqa_rad", "gqa", "coco", "snli_ve"])
@pytest.mark.parametrize("annotations", ["pipe", "/dev/zero"])
def test_score(capsys, pipe, benchmark, annotations):
    other = annotations.replace("pipe", pipe)
    given = ["--results", pipe, "--annotations", other]
    rejected(capsys, ["score", benchmark, *given], pipe, other)


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "coco", "PIPE", "RESULTS", "OUT"],
        ["plot", "--quality", "CIDEr", "--out", "OUT", "PIPE"],
        ["choose", "PIPE"],
        ["plot-layers", "--quality", "CIDEr", "PIPE"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_files_of_evaluation(capsys, tmp_path, pipe, results, arguments):
    places = {"PIPE": pipe, "RESULTS": results, "OUT": str(tmp_path / "out")}
    rejected(capsys, [places.get(one, one) for one in arguments], pipe)


@pytest.mark.parametrize("verb", ["table", "merge"])
@pytest.mark.parametrize("name", ["generate-test.txt", "log.txt"])
def test_folders_of_generations(capsys, tmp_path, verb, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "generate-test.txt").write_text("")
    (folder / "log.txt").write_text("")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    given = [f"a={folder}"] if verb == "table" else [str(tmp_path / "out"), str(folder)]
    if (verb, name) == ("merge", "log.txt"):
        assert main([verb, *given]) == 2
        assert "has no log.txt" in capsys.readouterr().err
    else:
        rejected(capsys, [verb, *given], folder / name)


def test_document_frequencies(pipe):
    with pytest.raises(ValueError, match=r"it is a pipe, .*ofa-exit document-frequencies"):
        DocumentFrequencies.load(pipe)


def test_a_dictionary(tmp_path):
    with pytest.raises(FileNotFoundError, match="no dictionary"):
        dictionary_path(tmp_path)
    os.mkfifo(tmp_path / "dict.txt")
    with pytest.raises(OSError, match=r"dict\.txt: it is a pipe, not a regular file"):
        OFADictionary.of_folder(tmp_path, 0, 0)


def test_a_dictionary_with_a_word_twice(tmp_path):
    (tmp_path / "dict.txt").write_text("a 1\ncat 1\na 1\n")
    with pytest.raises(ValueError, match=r"dict\.txt: the word 'a' comes twice.* Give the dict"):
        OFADictionary.of_folder(tmp_path, 0, 0)


def test_a_dictionary_of_another_encoding(tmp_path):
    (tmp_path / "dict.txt").write_bytes("käse 1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"dict\.txt: .*encoding.* Give the dict"):
        OFADictionary.of_folder(tmp_path, 0, 0)
