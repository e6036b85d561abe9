"""The Python API: the same captions, answers and layers as fairseq-generate's."""

import inspect
import json
import re
import subprocess
import sys
import threading
from dataclasses import dataclass

import pytest
import torch
from helpers import task_files as files
from helpers import vqa_samples as vqa
from helpers.paths import ROOT
from helpers.photos import write_photos
from PIL import Image

import ofa_exit
from ofa_exit.plugin.predict.exits import CALL_OPTIONS
from ofa_exit.policies.base import ExitPolicy, GateInput, option
from ofa_exit.policies.registry import POLICIES, register_policy

EXITS = {"image_threshold": 0.9, "text_threshold": 0.9, "decoder_threshold": 0.9}
ROWS = 11


def flags(options: dict) -> list[str]:
    return [
        word
        for name, value in options.items()
        for word in (f"--exit-{name.replace('_', '-')}", str(value))
    ]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), ROWS)


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    data = files.caption_folder(folder / "data", ROWS)
    return data, files.train("mue_caption", data, folder / "run", "--disable-validation", updates=8)


@pytest.fixture(scope="module")
def captioner(captions):
    """Its vocabulary, image size and dictionary are those of the training."""
    return ofa_exit.load(captions[1], device="cpu")


def generated(task, data, checkpoint, tmp_path, *more):
    """Texts, scores and trace records of fairseq-generate, by row."""
    trace = tmp_path / "trace.jsonl"
    given = ["--gen-subset", "test", *more, "--exit-trace", str(trace)]
    lines = files.generate(task, data, checkpoint, *given)
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    texts = [lines["D"][number][0] for number in sorted(lines["D"])]
    return texts, records


def assert_same(found, texts, records):
    assert len(found) == len(texts)
    for one, (score, text), record in zip(found, texts, records):
        assert one.text == text.strip()
        # fairseq prints scores to the base 2.
        assert one.score / torch.tensor(2.0).log().item() == pytest.approx(float(score), abs=1e-3)
        best = record["hypotheses"][0]["layers"]
        assert one.layers == best[: len(one.layers)] and not any(best[len(one.layers) :])
        assert one.image_layers == record["image_layers"]
        assert one.text_layers == record["text_layers"]
        assert one.seconds > 0 and one.error is None


@pytest.mark.parametrize("exits", ["similarity", "static"])
def test_captions_are_those_of_fairseq_generate(captions, captioner, photos, exits, tmp_path):
    options = EXITS if exits == "similarity" else {"depths": "2,3,4"}
    given = ["--exit-policy", exits, *flags(options), "--max-len-b", "16"]
    expected = generated("mue_caption", *captions, tmp_path, *given)
    found = captioner.caption(photos, exits=exits, batch_size=4, **options)
    assert_same(found, *expected)
    assert {one.image for one in found} == set(photos)
    used = {layer for one in found for layer in one.layers}
    assert used == {4} if exits == "static" else min(used) < 6


def test_full_depth_after_exits(captioner, photos):
    """A call's exits end with it, and calls in turn do not disturb each other."""
    full = captioner.caption(photos[:3])
    early = captioner.caption(photos[:3], exits="static", depths="1,1,1")
    assert {layer for one in full for layer in one.layers} == {6}
    turns = [
        captioner.predict("caption", photos[:3], batch_size=1, **options)
        for options in ({}, {"exits": "static", "depths": "1,1,1"})
    ]
    pairs = list(zip(*turns))
    assert [[one.text, one.layers] for one, _ in pairs] == [[o.text, o.layers] for o in full]
    assert [[one.text, one.layers] for _, one in pairs] == [[o.text, o.layers] for o in early]


def test_words_make_the_text(captioner, photos):
    (one,) = captioner.caption(photos[0])
    assert "".join(word.text for word in one.words).strip() == one.text
    assert one.words[-1].text == "" and len(one.layers) == len(one.text.split()) + 1
    assert one.as_dict()["words"] == [*one.text.split(), ""]
    assert json.loads(json.dumps(one.as_dict()))["layers"] == one.layers


def test_paths_and_images_mixed(captioner, photos, tmp_path):
    mixed = [photos[0], Image.open(photos[1]), Image.open(photos[2]).convert("RGB")]
    found = captioner.caption(mixed)
    assert [one.image for one in found] == [photos[0], photos[1], "image 3"]
    assert [one.text for one in found] == [one.text for one in captioner.caption(photos[:3])]
    assert captioner.caption([]) == []


def test_search_options(captioner, photos):
    (short,) = captioner.caption(photos[0], max_length=1, beam=1)
    assert len(short.layers) <= 2
    for batch_size in (1, 16):
        again = captioner.caption(photos, batch_size=batch_size)
        assert [one.text for one in again] == [one.text for one in captioner.caption(photos)]


def test_images_are_read_ahead_in_threads(captioner, photos, tmp_path):
    """Batches and their errors keep their order, and texts do not depend on the threads."""
    expected = [[one.text, one.layers] for one in captioner.caption(photos)]
    threads: set[int] = set()
    results = captioner.predict(
        "caption",
        photos,
        batch_size=2,
        on_read=lambda name, image: threads.add(threading.get_ident()),
    )
    found = list(results)
    assert [[one.text, one.layers] for one in found] == expected
    assert [one.image for one in found] == photos
    assert threads and threading.get_ident() not in threads
    opened = Image.open(photos[0])  # in every batch
    texts = {one.text for one in captioner.caption([opened] * 7, batch_size=2)}
    assert texts == {expected[0][0]}
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    several = captioner.predict("caption", [*photos[:2], broken], batch_size=2)
    assert [next(several).text, next(several).text] == [text for text, _ in expected[:2]]
    with pytest.raises(ofa_exit.PredictionError, match=r"broken\.png: the bytes"):
        next(several)


def test_options_are_written_out():
    search = {"exits", "beam", "max_length", "batch_size", "skip_unreadable", "on_read"}
    for name in ("caption", "answer", "entail", "predict"):
        given = inspect.signature(getattr(ofa_exit.Predictor, name)).parameters
        assert search == set(CALL_OPTIONS) <= given.keys()
        defaults = {one: given[one].default for one in CALL_OPTIONS}
        assert defaults["batch_size"] == 16 and defaults["exits"] == "none"


def test_unreadable_images(captioner, photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    given = [photos[0], broken, photos[1]]
    with pytest.raises(ofa_exit.PredictionError, match=r"broken\.png: the bytes are not an image"):
        captioner.caption(given)
    found = captioner.caption(given, skip_unreadable=True)
    assert [one.error is None for one in found] == [True, False, True]
    assert found[1].text == "" and "error" in found[1].as_dict()
    assert [found[0].text, found[2].text] == [o.text for o in captioner.caption(photos[:2])]
    (only,) = captioner.caption(broken, skip_unreadable=True)
    assert "not an image" in only.error


def test_policies_registered_later(captioner, photos):
    @register_policy("stop")
    @dataclass
    class Stop(ExitPolicy):
        stop_after: int = option(1, "layer", at_least=1)

        def decoder_gate(self, seen: GateInput) -> bool:
            return seen.layer >= self.stop_after

    try:
        found = captioner.caption(photos[:2], exits="stop", stop_after=2)
    finally:
        POLICIES.pop("stop")
    assert {layer for one in found for layer in one.layers} == {2}


@pytest.mark.parametrize("prompt", ["none", "prev_output"])
def test_questions(photos, prompt, tmp_path):
    data = files.write_dictionary(tmp_path / "data", vqa.WORDS)
    for name, rows in (("train", 12), ("valid", 9), ("test", 6)):
        kind = "train" if name == "train" else "test"
        files.write_tsv(data / f"{name}.tsv", [vqa.row(n, kind) for n in range(rows)])
    checkpoint = files.train(
        "mue_vqa", data, tmp_path / "run", "--disable-validation", "--prompt-type", prompt
    )
    given = ["--prompt-type", prompt, "--unnormalized", "--max-len-b", "20"]
    given += ["--exit-policy", "similarity", *flags(EXITS)]
    texts, records = generated("mue_vqa", data, checkpoint, tmp_path, *given)
    model = ofa_exit.load(str(checkpoint), device="cpu")
    questions = ["What colour is it?", "is it dark"] * 3
    found = model.answer(photos[:6], questions, exits="similarity", **EXITS)
    assert_same(found, texts, records)
    assert [one.source for one in found] == questions
    # Several questions about one image.
    one_image = model.answer(photos[0], questions[:2], exits="similarity", **EXITS)
    assert [one.image for one in one_image] == [photos[0]] * 2
    assert one_image[0].text == found[0].text
    answers = tmp_path / "answers.txt"
    answers.write_text("dark\nred\nno\n")
    closed = ofa_exit.load(checkpoint, device="cpu", answers=str(answers))
    assert {one.text for one in closed.answer(photos, "is it dark")} <= {"dark", "red", "no"}
    with pytest.raises(ofa_exit.PredictionError, match=r"--beam is not supported: .* closed set"):
        closed.answer(photos, "is it dark", beam=2)


@pytest.mark.parametrize("add_caption", [False, True])
def test_hypotheses(photos, add_caption, tmp_path):
    data = files.entailment_folder(tmp_path / "data", ROWS)
    more = ["--prompt-type", "prev_output", *(["--add-caption"] if add_caption else [])]
    checkpoint = files.train("mue_snli_ve", data, tmp_path / "run", "--disable-validation", *more)
    given = [*more, "--exit-policy", "similarity", *flags(EXITS)]
    texts, records = generated("mue_snli_ve", data, checkpoint, tmp_path, *given)
    model = ofa_exit.load(checkpoint, device="cpu")
    colours = [files.COLOURS[n % 6] for n in range(ROWS)]
    hypotheses = [f"a {colour} square" for colour in colours]
    premises = [f"{colour} paint" for colour in colours] if add_caption else None
    found = model.entail(photos, hypotheses, premises, exits="similarity", **EXITS)
    assert_same(found, texts, records)
    assert {one.text for one in found} <= {"yes", "maybe", "no"}
    wrong = None if add_caption else "red paint"
    with pytest.raises(ofa_exit.PredictionError, match="premises"):
        model.entail(photos, hypotheses, wrong)


def test_importing_the_package_imports_no_torch():
    code = "import sys, ofa_exit; print('torch' in sys.modules, 'load' in dir(ofa_exit))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = ofa_exit.lod


def test_the_example_of_the_docs(photos, tmp_path, monkeypatch, capsys):
    code, _ = re.findall(  # the other is of notebooks
        r"```python\n(.*?)```", (ROOT / "docs/predict.md").read_text(encoding="utf-8"), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "caption.pt").symlink_to(ROOT / "examples/checkpoints/ofa_nano_caption.pt")
    (tmp_path / "BPE").symlink_to(ROOT / "examples/emoji")
    for name in ("a.jpg", "b.jpg"):
        Image.open(photos[0]).save(tmp_path / name)
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["a.jpg", "b.jpg"]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2 and "<th>similarity</th>" in page


def test_a_page_of_images_without_a_file(captioner, photos, tmp_path):
    images = [Image.open(photo).resize((640, 480)) for photo in photos[:2]]  # without a name
    found = captioner.caption(images, exits="static", depths="2,3,4")
    out = tmp_path / "page.html"
    ofa_exit.write_page(out, found, images)
    assert [image.size for image in images] == [(640, 480)] * 2
    page = out.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert page.count("<th>static</th>") == 2 and "layers: image 2, text 3, decoder 4.0" in page
    for given, message in (
        ((out, found), "image 1: the file cannot be read"),
        ((out, found, images[:1]), "1 images for 2 predictions"),
        ((tmp_path / "none" / "page.html", found, images), "page.html: the page cannot be written"),
    ):
        with pytest.raises(ofa_exit.PredictionError, match=message):
            ofa_exit.write_page(*given)


def test_a_page_leaves_out_what_could_not_be_read(captioner, photos, tmp_path):
    images = [photos[0], tmp_path / "missing.png"]
    found = captioner.caption(images, skip_unreadable=True)
    ofa_exit.write_page(tmp_path / "page.html", found)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 1 and "missing.png" not in page
    assert "<th>full depth</th>" in page
