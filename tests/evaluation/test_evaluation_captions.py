"""Caption metrics: by hand, against pycocoevalcap's wrappers, and with a failing Java."""

import contextlib
import io
import math
import os
import stat

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from ofa_exit.evaluation.metrics import java
from ofa_exit.evaluation.metrics.accuracy import is_correct
from ofa_exit.evaluation.metrics.captions import (
    bleu_from_statistics,
    bleu_statistics,
    plain_tokenize,
    score_captions,
)
from ofa_exit.evaluation.metrics.cider_d import CiderD

PREDICTIONS = ["A man's dog isn't here!", "", "a cat sits on a mat", "café (red) Côte"]
REFERENCES = [
    ["the dog of the man is gone", "a dog is here"],
    ["something odd", "..."],
    ["a cat on a mat", "the cat sat on the mat"],
    ["flag: Côte", "a café"],
]


def by_library(predictions, references, tokenize):
    """The same scores from pycocoevalcap's classes."""
    truth = {i: [tokenize(ref) for ref in refs] for i, refs in enumerate(references)}
    results = {i: [tokenize(prediction)] for i, prediction in enumerate(predictions)}
    bleu, _ = Bleu(4).compute_score(truth, results, verbose=0)
    scores = {f"BLEU-{n}": value for n, value in enumerate(bleu, start=1)}
    scores["CIDEr"], each = Cider().compute_score(truth, results)
    scores["ROUGE-L"], _ = Rouge().compute_score(truth, results)
    return {name: 100 * value for name, value in scores.items()}, each


def test_plain_tokenizer():
    assert plain_tokenize("A man’s DOG: don't run, snow-covered (3)!") == (
        "a man 's dog do n't run snow-covered 3"
    )
    assert plain_tokenize(" ... !") == ""


def test_bleu_by_hand():
    sums = bleu_statistics("the cat the on mat", ["the cat sat on the mat"])
    # "the" may count twice, as it does in the reference; of the pairs only "the cat" matches.
    assert sums == [5, 1, 0, 0, 5, 4, 3, 2, 5, 6]
    brevity = math.exp(1 - 6 / 5)
    expected = [100 * brevity, 100 * brevity * math.sqrt(1 / 4), 0, 0]
    assert bleu_from_statistics(sums) == pytest.approx(expected, abs=1e-2)


def test_bleu_takes_the_closest_reference_and_the_shorter_of_two():
    assert bleu_statistics("a b c", ["a b c d e", "a b"])[-2:] == [3, 2]
    assert bleu_statistics("a b c", ["a b c d", "a b"])[-2:] == [3, 2]


def test_summed_statistics_are_the_corpus_values():
    scores = score_captions(PREDICTIONS, REFERENCES, "plain")
    expected, each = by_library(PREDICTIONS, REFERENCES, plain_tokenize)
    assert list(scores.values) == ["CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]
    assert scores.values == pytest.approx(expected)
    assert expected["CIDEr"] > 10

    # Two workers, samples in another order: BLEU adds up, CIDEr averages.
    pairs = list(zip(PREDICTIONS, REFERENCES, strict=True))
    workers = [pairs[3:0:-2], pairs[0:3:2]]
    counts = [bleu_statistics(*pair) for worker in workers for pair in worker]
    sums = [sum(column) for column in zip(*counts, strict=True)]
    assert bleu_from_statistics(sums) == pytest.approx(
        [scores.values[f"BLEU-{n}"] for n in range(1, 5)]
    )
    cider = CiderD.of_split(REFERENCES)
    totals = [sum(cider.score(*pair) for pair in worker) for worker in workers]
    assert sum(totals) / len(pairs) == pytest.approx(scores.values["CIDEr"])
    assert cider.score(*pairs[2]) == pytest.approx(100 * each[2])


def test_cider_of_one_sample_by_hand():
    # Two documents. "a" is in both (idf ln 2 - ln 2 = 0), "cat", "a cat" and "dog" in one (ln 2).
    cider = CiderD.of_split([["a cat"], ["a dog"]])
    # Equal to its reference: 1 for words, 1 for pairs, nothing for triples and quadruples.
    assert cider.score("a cat", ["a cat"]) == pytest.approx(100 * 10 * (1 + 1 + 0 + 0) / 4)
    # "cat" alone: words agree fully, no pairs; one pair less than the reference costs exp(-1/72).
    assert cider.score("cat", ["a cat"]) == pytest.approx(1000 / 4 * math.exp(-1 / 72))
    assert cider.score("a dog", ["a cat"]) == 0


def test_without_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = score_captions(PREDICTIONS, REFERENCES)
    assert scores.notes[0] == "plain tokenizer"
    assert scores.values == score_captions(PREDICTIONS, REFERENCES, "plain").values
    assert "no java command" in scores.line()
    assert "METEOR and SPICE missing" in scores.line()
    with pytest.raises(java.JavaError, match="no java command"):
        score_captions(PREDICTIONS, REFERENCES, "ptb")


@pytest.fixture
def fake_java(monkeypatch, tmp_path):
    """A function that replaces Java by a shell script."""

    def install(script):
        command = tmp_path / "java"
        command.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\n{script}\n")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return tmp_path

    return install


def is_running(folder):
    """Whether the script is alive; a script that was killed before its first line left no pid."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(int((folder / "pid").read_text()), 0)
        return True
    return False


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


def test_missing_spice_models(monkeypatch):
    monkeypatch.setattr(java, "SPICE_MODELS", ("no-such-models.jar",))
    with pytest.raises(
        java.JavaError, match=r"no-such-models.jar.* not in pycocoevalcap/spice/lib"
    ):
        java.spice(["a"], [["a"]])


def test_spice_answers_are_averaged(monkeypatch, fake_java):
    monkeypatch.setattr(java, "SPICE_MODELS", ())
    answer = '[{"scores": {"All": {"f": 0.25}}}, {"scores": {"All": {"f": 0.75}}}]'
    find_out = 'while [ "$1" != -out ]; do shift; done; '
    folder = fake_java(f"{find_out} echo '{answer}' > \"$2\"")
    assert java.spice(["a", "b"], [["a"], ["b"]]) == 0.5
    with pytest.raises(java.JavaError, match="2 scores for 1 captions"):
        java.spice(["a"], [["a"]])
    (folder / "java").write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(java.JavaError, match="no scores that can be read"):
        java.spice(["a"], [["a"]])


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
    assert "SPICE missing: its models" in scores.line()


def test_metrics_print_nothing():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        score_captions(PREDICTIONS, REFERENCES, "plain")
    assert printed.getvalue() == ""


def test_answers():
    assert is_correct(" yes ", ["no", "yes"])
    assert is_correct("light  blue", ["light blue"])
    assert not is_correct("Yes", ["yes"])
    assert is_correct("Yes", ["yES"], ignore_case=True)
    assert not is_correct("", ["yes"])
