"""SPICE: pycocoevalcap's own scorer, with a Java that answers by its protocol; missing models."""

import json
import os
import sys
from pathlib import Path

import pycocoevalcap.spice
import pytest
from fairseq import scoring
from fairseq.data import Dictionary
from omegaconf import OmegaConf

import ofa_exit.plugin  # noqa: F401
from ofa_exit.evaluation.metrics import java
from ofa_exit.evaluation.metrics.captions import score_captions
from ofa_exit.evaluation.metrics.spice import MODELS, find_models, spice

# Reads the captions as SPICE's jar does, and notes how it was called. A caption's F is the share
# of its words that a reference has.
JAR = """
import json, os, sys
jar, captions = sys.argv[sys.argv.index("-jar") + 2], sys.argv[sys.argv.index("-jar") + 3]
out = sys.argv[sys.argv.index("-out") + 1]
items = json.load(open(captions))
said = {"arguments": sys.argv[1:], "items": items, "jar": os.path.isfile(jar),
        "lib": sorted(os.listdir("lib")), "folder": os.getcwd(),
        "options": os.environ["JDK_JAVA_OPTIONS"]}
json.dump(said, open(os.path.join(os.path.dirname(__file__), "said.json"), "w"))
def f(item):
    words, known = item["test"].split(), set(" ".join(item["refs"]).split())
    return sum(word in known for word in words) / len(words)
scores = [{"image_id": item["image_id"], "scores": {"All": {"f": f(item)}}} for item in items]
json.dump(scores, open(out, "w"))
"""


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models é"
    folder.mkdir()
    for name in MODELS:
        (folder / name).write_text("model")
    return folder


@pytest.fixture
def jar(fake_java):
    """Java as a script in Python; returns what it noted."""
    folder = fake_java(f'exec {sys.executable} "$(dirname "$0")/jar.py" "$@"')
    (folder / "jar.py").write_text(JAR)
    return lambda: json.loads((folder / "said.json").read_text())


def test_the_library_s_scorer_is_run_with_the_models(jar, models):
    before = sorted(Path(pycocoevalcap.spice.__file__).parent.rglob("*"))
    score = spice(["a red cat", "ein café ||| x"], [["a cat", "the cat"], ["café"]], str(models))
    assert score == pytest.approx((2 / 3 + 1 / 4) / 2)
    said = jar()
    assert said["items"] == [
        {"image_id": "0", "test": "a red cat", "refs": ["a cat", "the cat"]},
        {"image_id": "1", "test": "ein café ||| x", "refs": ["café"]},
    ]
    assert said["arguments"][:3] == ["-jar", "-Xmx8G", "spice-1.0.jar"] and said["jar"]
    assert {"-cache", "-out", "-subset", "-silent"} <= set(said["arguments"])
    assert {*MODELS, "Meteor-1.5.jar"} <= set(said["lib"])
    assert "--add-opens=java.base/java.math=ALL-UNNAMED" in said["options"]
    # Nothing is left, and nothing was written into the library.
    assert not os.path.exists(said["folder"])
    library = Path(pycocoevalcap.spice.__file__).parent
    assert sorted(p for p in library.rglob("*") if "__pycache__" not in p.parts) == [
        p for p in before if "__pycache__" not in p.parts
    ]


def test_more_than_ten_captions_keep_their_order(jar, models):
    """The scorer sorts the captions' numbers as texts."""
    predictions = [f"w{n} x" for n in range(12)]
    references = [[f"w{n}" if n % 3 else "other"] for n in range(12)]
    assert spice(predictions, references, str(models)) == pytest.approx(8 * 0.5 / 12)


def test_a_failing_jar_says_why(fake_java, models):
    fake_java('echo "Picked up X" >&2; echo "java.lang.OutOfMemoryError: heap" >&2; exit 1')
    with pytest.raises(java.JavaError, match=r"SPICE ended with .*: java.lang.OutOfMemoryError"):
        spice(["a"], [["a"]], str(models))


def test_missing_models_are_explained_in_one_message(tmp_path):
    with pytest.raises(java.JavaError) as raised:
        find_models(str(tmp_path))
    message = str(raised.value)
    assert str(tmp_path) in message and "--spice-jars DIR" in message and "\n" not in message
    assert all(name in message for name in MODELS)
    (tmp_path / MODELS[0]).write_text("model")
    with pytest.raises(java.JavaError, match=f"{tmp_path} lacks {MODELS[1]}"):
        find_models(str(tmp_path))


def build(**config):
    defaults = {"_name": "coco_caption", "coco_tokenizer": "ptb", "spice_jars": None}
    return scoring.build_scorer(OmegaConf.create({**defaults, **config}), Dictionary())


def test_models_are_checked_before_the_generation(jar, tmp_path, models):
    with pytest.raises(ValueError, match=f"--spice-jars {tmp_path}: .* lacks"):
        build(spice_jars=str(tmp_path))
    with pytest.raises(ValueError, match="--coco-tokenizer ptb"):
        build(spice_jars=str(models), coco_tokenizer="plain")
    build(spice_jars=str(models))


def test_spice_is_among_the_metrics(jar, models, monkeypatch):
    monkeypatch.setattr(java, "ptb_tokenize", lambda sentences: list(sentences))
    monkeypatch.setattr(java, "meteor", lambda *captions: 0.25)
    scores = score_captions(["a cat"], [["a dog"]], "ptb", str(models))
    assert scores.values["SPICE"] == pytest.approx(50) and scores.values["METEOR"] == 25
