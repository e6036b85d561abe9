"""The Java tools: failing, hanging, in odd places, and equal to pycocoevalcap's wrappers."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.caption_samples import PREDICTIONS, REFERENCES, by_library
from helpers.fake_java import is_running
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from ofa_exit.evaluation.metrics import java
from ofa_exit.evaluation.metrics.captions import plain_tokenize, score_captions


def test_without_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = score_captions(PREDICTIONS, REFERENCES)
    assert scores.notes[0] == "plain tokenizer"
    assert scores.values == score_captions(PREDICTIONS, REFERENCES, "plain").values
    assert "no java command" in scores.line()
    assert "METEOR and SPICE missing" in scores.line()
    with pytest.raises(java.JavaError, match="no java command"):
        score_captions(PREDICTIONS, REFERENCES, "ptb")


WAITS = 'sleep 3600; touch "$0.finished"'


@pytest.mark.parametrize("script", [f"exec sh -c '{WAITS}' \"$0\"", f"read line; {WAITS}"])
def test_a_hanging_java_is_killed(fake_java, script, monkeypatch):
    monkeypatch.setattr(java, "START_SECONDS", 0.0)
    folder = fake_java(script)
    with pytest.raises(java.JavaError, match="PTB tokenizer took more than"):
        java.ptb_tokenize(["a"])
    assert not is_running(folder)
    with pytest.raises(java.JavaError, match="METEOR failed: it took more than"):
        java.meteor(["a"], [["a"]])
    assert not is_running(folder)
    assert not (folder / "java.finished").exists()  # nobody waited for its end


def test_a_dying_java_says_why(fake_java):
    fake_java("echo out of memory >&2; exit 3")
    with pytest.raises(java.JavaError, match="status 3: out of memory"):
        java.ptb_tokenize(["a"])
    with pytest.raises(java.JavaError, match="METEOR failed: out of memory"):
        java.meteor(["a"], [["a"]])
    scores = score_captions(PREDICTIONS, REFERENCES)
    assert "plain tokenizer" in scores.notes and "out of memory" in scores.line()


def test_wrong_number_of_lines_raises(fake_java):
    fake_java("cat > /dev/null; echo one; echo two")
    with pytest.raises(java.JavaError, match="2 lines for 1 sentences"):
        java.ptb_tokenize(["a"])


def test_meteor_dialogue(fake_java):
    # SCORE is answered by statistics, EVAL by a number for each sentence and the corpus value.
    folder = fake_java(
        'while read line; do echo "$line" >> "$(dirname "$0")/said"; case "$line" in '
        "SCORE*) echo 1 2.5 ;; EVAL*) echo 0.1; echo 0.2; echo 0.5 ;; esac; done"
    )
    assert java.meteor(["a ||| b", "c"], [["d", "e"], ["f"]]) == 0.5
    assert (folder / "said").read_text().splitlines() == [
        "SCORE ||| d ||| e ||| a b",
        "SCORE ||| f ||| c",
        "EVAL ||| 1 2.5 ||| 1 2.5",
    ]
    assert not is_running(folder)


@pytest.fixture(params=["a space", "100%", "café", "a:b"])
def odd_folder(request, tmp_path):
    """A folder whose path Java's tools cannot read."""
    folder = tmp_path / request.param
    folder.mkdir()
    return folder


def test_files_in_odd_places_are_read_from_a_plain_one(odd_folder):
    (odd_folder / "data").mkdir()
    (odd_folder / "tool.jar").write_text("jar")
    (odd_folder / "data" / "table").write_text("table")
    with java.plain_folder(odd_folder, ["tool.jar", "data/table"]) as folder:
        assert java._PLAIN_PATH.fullmatch(str(folder))
        assert (folder / "tool.jar").read_text() == "jar"
        assert (folder / "data" / "table").read_text() == "table"
        # Java would resolve a link, and be back in the odd place.
        assert not (folder / "tool.jar").is_symlink()
    assert not folder.exists() and (odd_folder / "tool.jar").exists()


def test_a_plain_place_is_used_as_it_is(tmp_path):
    with java.plain_folder(tmp_path, []) as folder:
        assert folder == tmp_path.resolve()


def test_a_plain_path_that_leads_to_an_odd_place_is_odd(odd_folder, tmp_path):
    (tmp_path / "link").symlink_to(odd_folder)
    (odd_folder / "tool.jar").write_text("jar")
    with java.plain_folder(tmp_path / "link", ["tool.jar"]) as folder:
        assert folder not in (tmp_path / "link", odd_folder)


def test_an_odd_temporary_folder_is_avoided(odd_folder, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(odd_folder))
    with java.plain_temporary_folder() as folder:
        assert java._PLAIN_PATH.fullmatch(str(folder))


@pytest.mark.java
def test_metrics_do_not_depend_on_the_place_of_the_environment(tmp_path, monkeypatch):
    """METEOR and the tokenizer in a copy, in the C locale, equal those in their own place."""
    expected = score_captions(PREDICTIONS, REFERENCES).values
    for module in (java.ptb_module, java.meteor_module):
        source = Path(module.__file__).parent
        copy = tmp_path / "a b%20 é" / source.name
        shutil.copytree(source, copy, copy_function=os.link)
        monkeypatch.setattr(module, "__file__", str(copy / "module.py"))
    monkeypatch.setenv("LC_ALL", "C")
    scores = score_captions(PREDICTIONS, REFERENCES)
    assert scores.values == pytest.approx(expected) and "METEOR" in scores.values


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (
            'Picked up JAVA_TOOL_OPTIONS: -Dx=y\nException in thread "main" '
            "java.lang.RuntimeException: no such file\n\tat Meteor.main(Unknown Source)\n",
            "java.lang.RuntimeException: no such file",
        ),
        (
            "OpenJDK 64-Bit Server VM warning: INFO: os::commit_memory failed\nError occurred "
            "during initialization of VM\nToo small maximum heap\n",
            "Error occurred during initialization of VM: Too small maximum heap",
        ),
        ("Error: Could not find or load main class Meteor\nCaused by: java.lang.E: M\n",
         "Error: Could not find or load main class Meteor"),
        ("Traceback (most recent call last):\n  File x\nValueError: bad\n", "ValueError: bad"),
        ("", "no error message"),
    ],
)  # fmt: skip
def test_the_reason_of_a_failure_is_its_first_line(output, line):
    assert java.first_error(output) == line


@pytest.mark.java
def test_ptb_tokens_equal_pycocoevalcaps(capfd):
    captions = [*PREDICTIONS, *(ref for refs in REFERENCES for ref in refs)]
    expected = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    capfd.readouterr()
    assert java.ptb_tokenize(captions) == [expected[i][0] for i in range(len(captions))]
    # Line ends of every kind stay within their sentence.
    odd = ["one\u2028two", "three\r\nfour", "", "five\x85six\x0bseven"]
    assert java.ptb_tokenize(odd) == ["one two", "three four", "", "five six seven"]
    out, err = capfd.readouterr()
    assert not out and not err, "the tools' own messages stay out of ours"


@pytest.mark.java
def test_ptb_does_not_depend_on_the_locale(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    assert java.ptb_tokenize(["Café CÔTE d’Ivoire"]) == ["café côte d’ivoire"]


@pytest.mark.java
def test_plain_tokens_equal_ptbs_for_usual_captions():
    captions = ["A man's dog isn't here!", "Two, snow-covered hills: white.", "he'll don't"]
    assert [plain_tokenize(caption) for caption in captions] == java.ptb_tokenize(captions)


@pytest.mark.java
def test_all_metrics_equal_pycocoevalcaps(capfd):
    scores = score_captions(PREDICTIONS, REFERENCES)
    out, _ = capfd.readouterr()
    assert out == ""
    expected, _ = by_library(PREDICTIONS, REFERENCES, lambda text: java.ptb_tokenize([text])[0])
    # What pycocoevalcap's Meteor class gave for these captions.
    expected["METEOR"] = 31.65953223706663
    assert scores.values == pytest.approx(expected)
    assert scores.notes[0] == "PTB tokenizer"
    assert list(scores.values)[-2:] == ["METEOR", "ROUGE-L"]
    assert "SPICE missing: " in scores.line() and "--spice-jars DIR" in scores.line()
