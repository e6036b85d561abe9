"""Sentences of a batch that share an image: encoded once, and no number changes."""

import pytest
import torch
from helpers import small_models as helpers
from helpers import task_files as files

from ofa_exit.data.collate import collate
from ofa_exit.data.visdial import DialogExamples
from ofa_exit.evaluation.efficiency.flops import batch_flops
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit

TASK = "mue_visdial"
ROWS = torch.tensor([0, 0, 1, 2, 2, 2])
WORDS = (*files.WORDS, "it", "is", "picture", "square.", "1", "2", "3")


def shared() -> tuple[dict, dict]:
    """Six sentences, three images (the second one absent): each once, and each for itself."""
    once = helpers.batch(6)
    once["patch_masks"] = torch.tensor([True, True, False, True, True, True])
    once["patch_images"] = once["patch_images"][:3]
    every = {**once, "patch_images": once["patch_images"][ROWS]}
    return {**once, "image_rows": ROWS}, every


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("exits", [True, False])
def test_encoding_once_changes_nothing(split, exits):
    model, (once, every) = helpers.nano(split), shared()
    if exits:
        policy = SimilarityExit(0.97, 0.97, 0.97, decoder_threshold=0.9, schedule="static")
        model.configure_exits(policy)
    seen = []
    model.encoder.embed_images.register_forward_hook(lambda *call: seen.append(len(call[2])))
    in_layers: list[torch.Tensor] = []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda *call: in_layers.append(call[2]))
    with torch.no_grad():
        found = model(**once, return_layers=not exits)
        states, in_layers[:] = list(in_layers), []
        trace = model.last_trace
        expected = model(**every, return_layers=not exits)
    assert seen == [3, 6]
    ran, rows = sum(map(len, states)), sum(map(len, in_layers))
    assert ran < rows if split else ran == rows
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    if not exits:
        assert len(states) == len(in_layers) == (12 if split else 6)
        for state, other in zip(states, in_layers, strict=True):
            shown = state[ROWS] if len(state) == 3 else state
            torch.testing.assert_close(shown, other, atol=1e-5, rtol=1e-5)
        ours, theirs = (extra["encoder_out"].states for _, extra in (found, expected))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        return
    assert torch.equal(trace.image_layers, model.last_trace.image_layers)
    assert torch.equal(trace.text_layers, model.last_trace.text_layers)
    assert trace.image_layers[2] == 0 < trace.image_layers[3]
    assert torch.equal(trace.source_tokens, model.last_trace.source_tokens)


@pytest.mark.parametrize("split", [True, False])
def test_flops_are_counted_once(split):
    """Two of the three images are present; one more sentence has the first, two the third."""
    model, (once, every) = helpers.nano(split), shared()
    model.configure_exits(StaticExit((3, 2, 1) if split else (3, 3, 1)))

    def flops(net_input):
        with torch.no_grad():
            model(**net_input)
        return batch_flops(model.last_trace)

    found, expected = flops(once), flops(every)
    stem, image = model.encoder.image_flops(32, 32), model.encoder.layers[0].flops(4)
    for which, layers in (("executed", 3), ("full", 6)):
        saved = {
            part: count - getattr(found, which)[part]
            for part, count in getattr(expected, which).items()
        }
        assert saved.pop("stem") == 3 * stem
        assert saved.pop("encoder") == (3 * layers * image if split else 0)
        assert not any(saved.values())


def dialogue(dialog: int, number: int, image: str) -> list[str]:
    """A round; images of one colour are the same bytes."""
    answers = "&&".join(f"it is {colour}" for colour in files.COLOURS)
    history = "a picture of a square." + " what is it 1?" * (number - 1)
    return [f"{dialog}_{number}", str(dialog), history, f"is it {number}?", answers, "3", "", image]


@pytest.fixture
def data(tmp_path):
    folder = files.write_dictionary(tmp_path / "data", WORDS)
    rows = [
        dialogue(image, number, files.image_field(files.COLOURS[image]) if image != 2 else "")
        for image in range(4)
        for number in (1, 2, 3)
    ]
    files.write_tsv(
        folder / "train.tsv", [[*row[:4], "it is red", "0", "", row[7]] for row in rows]
    )
    files.write_tsv(folder / "valid.tsv", rows)
    files.write_tsv(folder / "test.tsv", rows)
    return folder


class CountedLoader:
    def __init__(self, load):
        self.load, self.count = load, 0

    def __call__(self, field, folder):
        self.count += 1
        return self.load(field, folder)


def test_rounds_of_an_image_decode_it_once(data):
    task = files.setup(TASK, data)
    for split in ("test", "train"):
        task.load_dataset(split)
        rows = task.dataset(split)
        examples = rows.rows.examples
        assert isinstance(examples, DialogExamples)
        loaded = examples.load_image = CountedLoader(examples.load_image)
        batch = collate([rows[row] for row in range(1, 10)], 1, 32)["net_input"]
        if split == "train":
            assert loaded.count == len(batch["patch_images"]) == 9 and "image_rows" not in batch
            continue
        assert loaded.count == 4
        # Rows without an image have each their own zeros.
        assert batch["image_rows"].tolist() == [0, 0, 1, 1, 1, 2, 3, 4, 5]
        assert batch["patch_masks"].tolist() == [True] * 5 + [False] * 3 + [True]
        assert not batch["patch_images"][2:5].any() and batch["patch_images"].size(0) == 6


def test_rankings_do_not_depend_on_sharing(data, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["test"])
    checkpoint = files.train(TASK, data, tmp_path / "model", "--eval-mrr", updates=2)
    found = {}
    for batch_size in (1, 6):
        exits = {f"exit_{part}_threshold": 0.9 for part in ("image", "text", "decoder")}
        task = files.setup(TASK, data, exit_policy="similarity", **exits)
        models = files.load(task, checkpoint)
        found[batch_size] = files.generate_rows(task, models, batch_size=batch_size)
        found[f"summary {batch_size}"] = task.exit_reports[0].summary()
    for number in range(12):
        (alone,), (together,) = found[1][number], found[6][number]
        assert alone["words"] == together["words"]
        torch.testing.assert_close(
            alone["positional_scores"], together["positional_scores"], atol=1e-4, rtol=1e-4
        )
    alone, together = found["summary 1"], found["summary 6"]
    for name in ("image_layers", "text_layers", "decoder_layers", "expected_time_reduction"):
        assert alone[name] == together[name]
    # Of three dialogues' three rounds two need no image any more.
    encoder = models[0].encoder
    tokens = encoder.image_tokens(32, 32)
    image = encoder.image_flops(32, 32) + len(encoder.layers) * encoder.layers[0].flops(tokens)
    saved = alone["gflops_full_per_sentence"] - together["gflops_full_per_sentence"]
    # Not to the digit: position biases are of each length of text, and batches pad theirs to one.
    assert 12e9 * saved == pytest.approx(6 * image, rel=0.05)
    assert together["gflops_per_sentence"] < 0.9 * alone["gflops_per_sentence"]
