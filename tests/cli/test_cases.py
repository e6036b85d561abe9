"""The command cases: words, colours, confidence and cosine of real generations."""

from __future__ import annotations

import gc
import json
import re
import weakref

import pytest
from helpers import vqa_samples as vqa
from helpers.task_files import (
    SMALL,
    caption_folder,
    entailment_folder,
    generate,
    train,
    write_dictionary,
    write_tsv,
)

from ofa_exit.cli import cases
from ofa_exit.cli.generation import Generation
from ofa_exit.plugin.errors import UsageError

HOVER = re.compile(
    r'style="background:(#\w+);[^"]*" title="(end of sentence, )?exit after layer (\d)'
    r'(?:, confidence ([\d.]+), cosine ([-\d.]+))?">([^<]+)</span>'
)
TEST = ["--gen-subset", "test"]


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """Data, a checkpoint, and traces at full depth and with MuE's exits."""
    folder = tmp_path_factory.mktemp("cases")
    data = caption_folder(folder / "data")
    checkpoint = train("mue_caption", data, folder / "run", "--disable-validation", updates=8)
    traces = {}
    for name, exits in (
        ("full", ["--exit-policy", "static", "--exit-depths", "6,6,6"]),
        ("mue", ["--exit-policy", "similarity", "--exit-image-threshold", "0.9",
                 "--exit-text-threshold", "0.9", "--exit-decoder-threshold", "0.9",
                 "--exit-schedule", "static"]),
    ):  # fmt: skip
        traces[name] = folder / f"{name}.jsonl"
        generate("mue_caption", data, checkpoint, *TEST, *exits, "--exit-trace", str(traces[name]))
    return data, checkpoint, traces


def arguments(data, task="mue_caption") -> list[str]:
    return [str(data), "--task", task, "--cpu", *TEST, "--batch-size", "4", *SMALL]


def words(text: str) -> list[tuple]:
    """Colour, end, layer, confidence, cosine and text of every word."""
    return HOVER.findall(text)


def layers_of(trace, rows) -> list[int]:
    records = {r["id"]: r for r in map(json.loads, trace.read_text().splitlines())}
    return [layer for row in rows for layer in records[row]["hypotheses"][0]["layers"]]


def test_captions_of_two_methods(captions, tmp_path, capsys):
    data, checkpoint, traces = captions
    out = tmp_path / "made" / "cases.html"
    given = [str(out), f"full depth={traces['full']}", f"MuE={traces['mue']}", *arguments(data)]
    assert cases.main([*given, "--checkpoint", f"MuE={checkpoint}", "--count", "3"]) == 0
    written = [str(out), f"{out.with_suffix('.png')}", f"{out.with_suffix('.svg')}"]
    assert capsys.readouterr().out.split()[-3:] == written
    text = out.read_text()
    assert text.count("<section>") == text.count("data:image/png;base64,") == 3
    assert f"3 of {len(traces['mue'].read_text().splitlines())} rows: the first." in text
    assert "its confidence (the largest probability)" in text
    assert "a red square" in text and "a square of red paint" in text  # references
    found = words(text)
    full = [word for word in found if not word[3]]
    mue = [word for word in found if word[3]]
    rows = ["c0", "c1", "c2"]
    assert [int(word[2]) for word in full] == layers_of(traces["full"], rows)
    used = [int(word[2]) for word in mue]
    assert used == layers_of(traces["mue"], rows) and min(used) < 6
    # Words left where the cosine exceeded the threshold, and only there.
    for word in mue:
        assert (float(word[4]) > 0.899) == (int(word[2]) < 6), word
        assert 0 < float(word[3]) <= 1
    assert len({word[0] for word in found}) == len({*used, 6})  # a colour per layer


def test_one_model_at_a_time(captions, tmp_path, monkeypatch):
    """The model of a method is released before the next one is loaded."""
    data, checkpoint, traces = captions
    alive, load = [], Generation.load_model

    def count(generation, file):
        gc.collect()
        assert not [model for model in alive if model() is not None]
        model = load(generation, file)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(Generation, "load_model", count)
    out = tmp_path / "cases.html"
    given = [str(out), *(f"{name}={trace}" for name, trace in traces.items()), *arguments(data)]
    checkpoints = [f"--checkpoint={name}={checkpoint}" for name in traces]
    assert cases.main([*given, *checkpoints, "--count", "3"]) == 0
    assert len(alive) == 2
    shown = [int(word[2]) for word in words(out.read_text()) if word[3]]
    rows = [layers_of(traces[name], [row]) for row in ("c0", "c1", "c2") for name in traces]
    assert shown == [layer for layers in rows for layer in layers]


def test_full_depth_measures_agree_with_saturation(captions):
    """The last layer has no gate: its cosine is that of its input and output."""
    from helpers import task_files as files

    from ofa_exit.cli.cases.words import measure_words
    from ofa_exit.cli.saturation.states import layer_states
    from ofa_exit.policies.measures import hidden_saturation, softmax_confidence

    data, checkpoint, traces = captions
    task = files.setup("mue_caption", data)
    model = files.load(task, checkpoint)[0].eval()
    task.load_dataset("test")
    record = json.loads(traces["full"].read_text().splitlines()[1])
    sample = task.dataset("test").collater([task.dataset("test")[1]])
    confidences, cosines = measure_words(model, sample, record, None)
    tokens = record["hypotheses"][0]["tokens"]
    prev = sample["net_input"]["prev_output_tokens"][:, :1]
    net_input = {
        **sample["net_input"],
        "prev_output_tokens": prev.new_tensor([[int(prev), *tokens[:-1]]]),
    }
    states = layer_states(model, net_input)["decoder"]
    assert cosines == pytest.approx(hidden_saturation(states[-2], states[-1])[0].tolist())
    logits, _ = model(**net_input)
    assert confidences == pytest.approx(softmax_confidence(logits[0]).tolist())


def test_chosen_rows_without_checkpoints(captions, tmp_path):
    data, _, traces = captions
    out = tmp_path / "cases.html"
    given = [str(out), f"MuE={traces['mue']}", *arguments(data)]
    assert cases.main([*given, "--rows", "c4,c1"]) == 0
    assert re.findall(r"<h2>(\w+)</h2>", out.read_text()) == ["c4", "c1"]
    assert all(not word[3] for word in words(out.read_text()))
    assert cases.main([*given, "--largest-saving", "--count", "1"]) == 0
    assert out.read_text().count("<section>") == 1


def test_words_that_leave_through_heads(captions, tmp_path):
    """BLIPEE: every word before the last layer left with a confidence above alpha."""
    data, checkpoint, _ = captions
    exits = train(
        "mue_caption", data, tmp_path / "exits", "--exit-layers", "2,4", "--disable-validation",
        "--criterion", "blipee_adversarial", "--finetune-from-model", str(checkpoint), updates=4,
    )  # fmt: skip
    trace, out = tmp_path / "trace.jsonl", tmp_path / "cases.html"
    generate(
        "mue_caption", data, exits, *TEST, "--exit-policy", "confidence", "--exit-alpha", "0.3",
        "--beam", "1", "--exit-trace", str(trace),
    )  # fmt: skip
    given = [str(out), f"BLIPEE={trace}", *arguments(data), "--checkpoint", f"BLIPEE={exits}"]
    assert cases.main(given) == 0
    found = words(out.read_text())
    assert {int(word[2]) for word in found} & {2, 4}
    assert all(float(word[3]) > 0.295 for word in found if int(word[2]) < 6)


def test_answers_of_one_word(tmp_path):
    data = entailment_folder(tmp_path / "data")
    checkpoint = train("mue_snli_ve", data, tmp_path / "run", "--disable-validation", updates=2)
    trace, out = tmp_path / "trace.jsonl", tmp_path / "cases.html"
    generate(
        "mue_snli_ve", data, checkpoint, *TEST, "--exit-policy", "similarity",
        "--exit-decoder-threshold", "0.9", "--exit-trace", str(trace),
    )  # fmt: skip
    given = [str(out), f"MuE={trace}", *arguments(data, "mue_snli_ve")]
    assert cases.main([*given, "--checkpoint", f"MuE={checkpoint}", "--count", "4"]) == 0
    text = out.read_text()
    found = words(text)
    # The end of the answer, which leaves no choice, is not shown.
    assert len(found) == 4 and {word[5] for word in found} <= {"yes", "maybe", "no"}
    assert all(1 / 3 <= float(word[3]) <= 1 for word in found)  # among three answers
    assert "does the image describe &quot; a red square &quot; ?" in text


def test_answers_after_a_prompt(tmp_path):
    """VQA's decoder is fed the question first."""
    data = write_dictionary(tmp_path / "data", vqa.WORDS)
    write_tsv(data / "train.tsv", [vqa.row(n, "train") for n in range(12)])
    write_tsv(data / "valid.tsv", [vqa.row(n) for n in range(9)])
    write_tsv(data / "test.tsv", [vqa.row(n) for n in range(4)])
    checkpoint = train("mue_vqa", data, tmp_path / "run", "--disable-validation", updates=1)
    trace, out = tmp_path / "trace.jsonl", tmp_path / "cases.html"
    generate(
        "mue_vqa", data, checkpoint, *TEST, "--max-len-b", "3", "--exit-policy", "static",
        "--exit-depths", "6,6,6", "--exit-trace", str(trace),
    )  # fmt: skip
    given = [str(out), f"plain={trace}", *arguments(data, "mue_vqa")]
    assert cases.main([*given, "--checkpoint", f"plain={checkpoint}"]) == 0
    text = out.read_text()
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    shown = sum(len(record["hypotheses"][0]["layers"]) for record in records)
    assert len(words(text)) == shown and all(word[3] for word in words(text))
    assert "<p>dark</p>" in text  # each of the ten answers once
    assert "what colour is it ?" in text and "is it dark" in text  # questions differ


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["{mue}"], r"give NAME=TRACE"),
        (["a={mue}", "a={mue}"], "the name 'a' comes twice"),
        (["a=/no/trace"], "/no/trace"),
        (["a={data}/dict.txt"], r"dict\.txt, line 1: no record of --exit-trace"),
    ],
)
def test_errors_of_traces(captions, given, message, tmp_path):
    data, _, traces = captions
    named = [text.format(mue=traces["mue"], data=data) for text in given]
    with pytest.raises(UsageError, match=message):
        cases.main([str(tmp_path / "cases.html"), *named, *arguments(data)])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rows", "c99"], "the trace of MuE has no row c99"),
        (["--checkpoint", "b=x.pt"], "--checkpoint b=…: no trace has that name, they are MuE"),
        (["--checkpoint", "MuE=/no/x.pt"], r"/no/x\.pt: no such checkpoint"),
        (["--gen-subset", "train", "--rows", "c2"], None),
        (["--exit-policy", "similarity"], "--exit-policy: .* Leave it out"),
    ],
)
def test_errors_of_options(captions, more, message, tmp_path):
    data, _, traces = captions
    given = [str(tmp_path / "cases.html"), f"MuE={traces['mue']}", *arguments(data), *more]
    if message is None:
        assert cases.main(given) == 0
    else:
        with pytest.raises(UsageError, match=message):
            cases.main(given)


def test_a_trace_of_other_data(captions, tmp_path):
    data, _, traces = captions
    record = json.loads(traces["mue"].read_text().splitlines()[0])
    (tmp_path / "t").write_text(json.dumps({**record, "id": "elsewhere"}))
    with pytest.raises(UsageError, match=r"test\.tsv has no row elsewhere, which the traces have"):
        cases.main([str(tmp_path / "c.html"), f"MuE={tmp_path / 't'}", *arguments(data)])


def test_a_checkpoint_of_another_depth(captions, tmp_path):
    data, checkpoint, traces = captions
    record = json.loads(traces["mue"].read_text().splitlines()[0])
    record["hypotheses"][0]["layers"][0] = 12
    (tmp_path / "t").write_text(json.dumps(record))
    given = [str(tmp_path / "c.html"), f"MuE={tmp_path / 't'}", *arguments(data)]
    with pytest.raises(UsageError, match="words of layer 12, and the checkpoint has 6"):
        cases.main([*given, "--checkpoint", f"MuE={checkpoint}"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["cases.html", "data"], "at least one trace"),
        (["cases", "a=b", "data"], "ends in .html"),
        (["cases.html", "a=b", "data", "--count", "0"], "--count 0"),
    ],
)
def test_arguments(given, message, capsys):
    with pytest.raises(SystemExit):
        cases.main(given)
    assert message in capsys.readouterr().err
