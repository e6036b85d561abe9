"""CapFilt's rankers: the dual encoder of the emoji example and its training, and CLIP."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.capfilt_samples import captions, sampled_rows, write_samples
from helpers.paths import ROOT
from helpers.task_files import COLOURS, caption_folder, train, write_dictionary
from PIL import Image

from examples.emoji.capfilt_ranker import training
from examples.emoji.capfilt_ranker.__main__ import main as ranker_command
from examples.emoji.capfilt_ranker.checkpoint import load, load_text_encoder
from examples.emoji.capfilt_ranker.checkpoint import load_ranker as load_dual_encoder
from examples.emoji.capfilt_ranker.dual_encoder import (
    DualEncoder,
    DualEncoderConfig,
    info_nce,
    start_from_ofa,
)
from examples.emoji.capfilt_ranker.recall import recall_at_1
from examples.emoji.capfilt_ranker.training import Training, same_pairs
from ofa_exit.cli.capfilt import main
from ofa_exit.prepare.capfilt.filtering import filter_captions
from ofa_exit.prepare.capfilt.rankers import ClipRanker, load_ranker, similarities

# ------------------------------------------------------------------ the dual encoder


def small(**options) -> DualEncoder:
    sizes = {"resnet_width": 8, "text_dim": 32, "text_heads": 2, "dim": 16, "image_size": 32}
    return DualEncoder(DualEncoderConfig(vocabulary=30, pad=1, **{**sizes, **options})).eval()


def test_info_nce_is_clips_loss():
    images, texts = (torch.nn.functional.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    scale = torch.tensor(7.0)
    logits, right = 7.0 * images @ texts.t(), torch.arange(5)
    expected = sum(torch.nn.functional.cross_entropy(x, right) for x in (logits, logits.t())) / 2
    found = info_nce(images, texts, scale, torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(found, expected)


def test_info_nce_with_equal_captions_against_a_loop():
    images, texts = (torch.nn.functional.normalize(torch.randn(4, 8), dim=1) for _ in range(2))
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    total = 0.0
    for i in range(4):
        for rows, columns in ((images, texts), (texts, images)):
            scores = [3 * float(rows[i] @ column) for column in columns]
            norm = math.log(sum(map(math.exp, scores)))
            fitting = [j for j in range(4) if same[i, j]]
            total -= sum(scores[j] - norm for j in fitting) / len(fitting)
    assert float(info_nce(images, texts, torch.tensor(3.0), same)) == pytest.approx(total / 8)


def test_equal_captions_and_equal_images_are_no_negatives():
    images = torch.randn(4, 3, 4, 4)
    images[3] = images[1]
    found = same_pairs([7, 8, 9, 4], ["a", "b", "a", "c"], images)
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 2] = expected[2, 0] = expected[1, 3] = expected[3, 1] = True
    assert torch.equal(found, expected)


def test_a_row_never_depends_on_its_batch():
    model = small()
    tokens = torch.tensor([[5, 6, 7, 2], [8, 2, 1, 1]])
    together = model.embed_texts(tokens)
    torch.testing.assert_close(together[1:], model.embed_texts(tokens[1:, :2]))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            model.embed_images(images)[1:2], model.embed_images(images[1:2]), atol=1e-5, rtol=1e-4
        )


def test_longer_texts_are_cut():
    model = small(longest=3)
    tokens = torch.tensor([[5, 6, 7, 8, 2]])
    assert torch.equal(model.embed_texts(tokens), model.embed_texts(tokens[:, :3]))


def test_recall():
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0.9, 0.1]])
    owners = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    # Image 2 is nearest to the last text, its own, which in turn is nearer to image 1.
    assert recall_at_1(images, texts, owners) == (1.0, 0.75)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return caption_folder(tmp_path_factory.mktemp("capfilt") / "data")


def options(folder, **more) -> Training:
    files = {"train": folder / "train.tsv", "valid": folder / "valid.tsv", "bpe_dir": folder}
    given = {"epochs": 2, "batch_size": 6, "image_size": 32, "lr": 3e-3, **more}
    return Training(**{name: str(path) for name, path in files.items()}, **given)


def test_training_learns_and_a_killed_run_resumes(folder, tmp_path, monkeypatch):
    run = options(folder, epochs=12)
    unbroken = training.train(run, tmp_path / "unbroken")
    # Colours learnt from 12 images: chance is 1 of 6.
    assert unbroken["recall"] > 0.5
    whole = load(tmp_path / "unbroken" / "checkpoint_last.pt")
    assert whole["log"][-1]["loss"] < 0.7 * whole["log"][0]["loss"]

    original = training.evaluate

    def killed(*arguments, **more):
        if (tmp_path / "broken" / "checkpoint_last.pt").exists():
            raise KeyboardInterrupt
        return original(*arguments, **more)

    monkeypatch.setattr(training, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(run, tmp_path / "broken")
    monkeypatch.setattr(training, "evaluate", original)
    assert training.train(run, tmp_path / "broken") == unbroken
    again = load(tmp_path / "broken" / "checkpoint_last.pt")
    for name, weight in whole["model"].items():
        assert torch.equal(weight, again["model"][name]), name
    with pytest.raises(ValueError, match=r"checkpoint_last\.pt.*\(lr "):
        training.train(options(folder, epochs=12, lr=1e-4), tmp_path / "broken")
    # As a ranker: the right colour before another.
    ranker = load_dual_encoder(tmp_path / "unbroken")
    pictures = [Image.new("RGB", (16, 16), colour) for colour in COLOURS]
    texts = [f"a {colour} square" for colour in COLOURS]
    scores = torch.tensor(similarities(ranker, pictures, [texts] * len(pictures)))
    assert scores.argmax(dim=1).eq(torch.arange(len(COLOURS))).float().mean() > 0.5
    write_dictionary(tmp_path / "other", ("other", "words"))
    with pytest.raises(ValueError, match=r"dict\.txt.*--bpe-dir"):
        load_dual_encoder(
            tmp_path / "broken" / "checkpoint_last.pt", bpe_dir=str(tmp_path / "other")
        )


def test_stem_and_words_of_an_ofa_checkpoint(folder, tmp_path, capsys):
    checkpoint = train("mue_caption", folder, tmp_path / "ofa", updates=1)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    words = load_text_encoder(folder).vocabulary
    model = training.build(options(folder, init_from=str(checkpoint)), len(words), words.pad())
    for name, weight in model.stem.state_dict().items():
        assert torch.equal(weight, state[f"encoder.embed_images.{name}"])
    assert torch.equal(
        model.embed_tokens.weight, state["encoder.embed_tokens.weight"][: len(words)]
    )
    with pytest.raises(ValueError, match=r"embed_images|stem"):
        start_from_ofa(small(resnet_width=16), state)
    with pytest.raises(ValueError, match=r"dict\.txt"):
        training.build(options(folder, init_from=str(folder / "dict.txt")), len(words), words.pad())
    # The command line, from there to recall and filtering.
    out = tmp_path / "ranker"
    files = [str(folder / "train.tsv"), str(folder / "valid.tsv"), str(out)]
    more = ["--bpe-dir", str(folder), "--init-from", str(checkpoint), "--image-size", "32"]
    assert ranker_command(["train", *files, *more, "--epochs", "1", "--batch-size", "4"]) == 0
    assert ranker_command(["recall", str(folder / "test.tsv"), "--ranker", str(out)]) == 0
    recall = capsys.readouterr().out.splitlines()[-1]
    assert "(11 rows)" in recall
    # The previous release's name of the command.
    assert main(["recall", str(folder / "test.tsv"), "--ranker", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == recall
    assert "python -m examples.emoji.capfilt_ranker recall" in printed.err
    samples = write_samples(
        tmp_path / "generate-test.txt",
        {row: ["a red square", "a blue square"] for row in range(11)},
    )
    kept = tmp_path / "kept.tsv"
    given = [str(folder / "test.tsv"), str(samples), "--out", str(kept)]
    package = ROOT / "examples" / "emoji" / "capfilt_ranker"
    own = ["--ranker", str(package), "--ranker-checkpoint", str(out), "--bpe-dir", str(folder)]
    assert main(["filter", *given, *own, "--keep", "1"]) == 0
    expected = kept.read_bytes()
    kept.unlink()
    given += ["--ranker", str(out)]  # its name in the previous release
    assert main(["filter", *given, "--keep", "1"]) == 0
    assert kept.read_bytes() == expected
    assert "11 images with 11 captions of 22 samples" in capsys.readouterr().out
    assert {row[2] for row in captions(kept)} <= {"a red square", "a blue square"}
    assert main(["filter", *given, "--keep", "3"]) == 2
    assert "3 captions of 2" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"warmup": 1.0}])
def test_invalid_training_options_are_rejected(folder, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        options(folder, **wrong)


# ------------------------------------------------------------------ CLIP


def tiny_clip(folder):
    """A CLIP with random weights and the words of COLOURS, as save_pretrained writes it."""
    transformers = pytest.importorskip("transformers", reason="CLIP needs ofa-exit[clip]")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<|startoftext|>", "<|endoftext|>", "<unk>", "a", "square", "of", *COLOURS]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)],
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=words[0], eos_token=words[1], pad_token=words[1],
        unk_token=words[2], model_max_length=8,
    )  # fmt: skip
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    size["num_attention_heads"] = 2
    config = transformers.CLIPConfig(
        text_config={
            **size, "vocab_size": len(words), "max_position_embeddings": 8, "bos_token_id": 0,
            "eos_token_id": 1, "pad_token_id": 1,
        },
        vision_config={**size, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    processor = transformers.CLIPProcessor(
        transformers.CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        tokenizer,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def test_clip_from_a_folder(tmp_path):
    model, processor = tiny_clip(tmp_path / "clip")
    pictures = [Image.new("RGB", (20, 16), colour) for colour in COLOURS[:3]]
    texts = ["a red square", "a square of blue", "green " * 20]
    ranker = load_ranker(str(tmp_path / "clip"))
    found = torch.tensor(similarities(ranker, pictures, [texts] * 3))
    inputs = processor(
        text=texts, images=pictures, return_tensors="pt", padding=True, truncation=True
    )
    with torch.no_grad():
        logits = model(**inputs).logits_per_image / model.logit_scale.exp()
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-4)
    tsv, parts, out = sampled_rows(tmp_path)
    counts = filter_captions(ranker, parts, tsv, out)
    assert counts.kept == 5


def test_a_folder_without_clip_is_named(tmp_path):
    pytest.importorskip("transformers", reason="CLIP needs ofa-exit[clip]")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty.*CLIP"):
        ClipRanker(str(tmp_path / "empty"))


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"ofa-exit\[clip\].*--ranker"):
        ClipRanker("openai/clip-vit-large-patch14")
