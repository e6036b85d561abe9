"""Captioning and entailment rows: their examples and their errors."""

import base64
from pathlib import Path

import pytest
import torch
from helpers.data_samples import (
    caption_row,
    encoded,
    entailment_row,
    plain_field,
    word_encoder,
    write_tsv,
)
from PIL import Image

from ofa_exit.data.caption import CaptionExamples
from ofa_exit.data.example import Example, answer_sequences, source_prompt
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.row_examples import Row, RowExamples, RowTokens
from ofa_exit.data.snli_ve import EntailmentExamples, answer_tokens
from ofa_exit.data.text import TextEncoder
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.data.tsv import TsvError

PROMPT = "<s> what does the image describe ? </s>"
LOADER = ImageLoader(16)


class SpacedCodec:
    """A codec that keeps case and marks a leading space, as GPT-2's does."""

    def encode(self, text: str) -> str:
        return text.replace(" ", " _").strip()

    def decode(self, symbols: str) -> str:
        return symbols.replace(" _", " ")


def captions(tmp_path: Path, *rows: list[str], train: bool = True, **options) -> CaptionExamples:
    path = write_tsv(tmp_path / "caption.tsv", rows)
    return CaptionExamples(path, word_encoder(), LOADER, train=train, **options)


def entailment(tmp_path: Path, *rows: list[str], **options) -> EntailmentExamples:
    path = write_tsv(tmp_path / "ve.tsv", rows)
    return EntailmentExamples(path, word_encoder(), LOADER, **options)


def text(examples: CaptionExamples | EntailmentExamples, tokens: torch.Tensor) -> str:
    return examples.encoder.vocabulary.text(tokens.tolist())


def test_caption_in_training(tmp_path):
    examples = captions(tmp_path, caption_row(7, "A dog, runs on grass!"), caption_row(8))
    example = examples[0]
    assert (len(examples), example.index, example.uniq_id) == (2, 0, "7")
    assert examples[1].uniq_id == "8"
    assert text(examples, example.source) == PROMPT
    assert text(examples, example.prev_output) == "<s> a dog runs on grass"
    assert text(examples, example.target) == "a dog runs on grass </s>"
    assert example.prompt_length == 1
    assert example.image.shape == (3, 16, 16)
    assert example.image[:, 3, 3].tolist() == [1.0, -1.0, -1.0]
    assert example.references == ["A dog, runs on grass!"]
    assert (example.unknown, example.constraint_mask, example.conf) == ([], None, None)


def test_captions_keep_their_case_and_begin_with_a_space(tmp_path):
    words = ["_what", "_does", "_the", "_image", "_describe?", "_A", "_Dog", "_dog", "_a"]
    encoder = TextEncoder(SpacedCodec(), word_encoder(words).vocabulary)
    path = write_tsv(tmp_path / "caption.tsv", [caption_row(1, "A-  Dog.")])
    example = CaptionExamples(path, encoder, LOADER, train=True)[0]
    assert encoder.vocabulary.text(example.target) == "_A _Dog </s>"
    assert encoder.vocabulary.text(example.source) == (
        "<s> _what _does _the _image _describe? </s>"
    )
    assert example.unknown == []


def test_captions_are_cut_in_training_only(tmp_path):
    row = caption_row(1, "a dog -- runs on the grass")
    cut = captions(tmp_path, row, max_tgt_length=3)
    assert text(cut, cut[0].target) == "a dog runs </s>"
    assert cut[0].references == ["a dog -- runs on the grass"]
    whole = captions(tmp_path, row, train=False, max_tgt_length=3)
    assert text(whole, whole[0].target) == "a dog runs on the grass </s>"


def test_several_captions_are_references_and_the_first_is_the_target(tmp_path):
    row = caption_row(1, "A dog, runs. && the  cat &&Runs on\u00a0grass")
    example = captions(tmp_path, row, train=False)[0]
    assert example.references == ["A dog, runs.", "the cat", "Runs on grass"]
    assert text(captions(tmp_path, row, train=False), example.target) == "a dog runs </s>"


@pytest.mark.parametrize("train", [True, False])
def test_captions_may_be_missing_on_request(tmp_path, train):
    rows = [caption_row(1, " "), caption_row(2, "a dog")]
    examples = captions(tmp_path, *rows, train=train, captions_optional=True)
    assert (text(examples, examples[0].target), examples[0].references) == ("</s>", [])
    assert text(examples, examples[0].prev_output) == "<s>"
    assert text(examples, examples[1].target) == "a dog </s>"


def test_columns_are_chosen_by_number(tmp_path):
    row = ["the cat", plain_field(), "9"]
    examples = captions(tmp_path, row, selected_cols="2,1,0")
    assert (examples[0].uniq_id, examples[0].references) == ("9", ["the cat"])


def test_empty_image_field_is_a_sample_without_image(tmp_path):
    assert captions(tmp_path, caption_row(1, image=""))[0].image is None
    assert entailment(tmp_path, entailment_row(1, image=" "))[0].image is None


def test_unknown_words_are_named(tmp_path):
    example = captions(tmp_path, caption_row(1, "a zebra runs on Mars"))[0]
    assert example.unknown == ["zebra", "mars"]
    assert (example.target == 3).sum() == 2


def failure(examples: CaptionExamples | EntailmentExamples, index: int = 1) -> TsvError:
    examples[0]
    with pytest.raises(TsvError) as caught:
        examples[index]
    error = caught.value
    assert error.line == index + 1
    assert error.path == str(examples.file.path)
    assert error.remedy
    return error


@pytest.mark.parametrize(
    ("caption", "train", "message"),
    [
        ("", True, "empty"),
        (" \u00a0 ", False, "empty"),
        ("...!", True, "caption 1 of 1 has no words"),
        ("a dog && - && a cat", False, "caption 2 of 3 has no words"),
        ("a dog&&", False, "caption 2 of 2 has no words"),
        ("a dog&&a cat", True, "2 captions joined by && in training"),
        (plain_field(), True, "column 2 holds an image, not text"),
    ],
)
def test_invalid_captions_raise(tmp_path, caption, train, message):
    error = failure(captions(tmp_path, caption_row(1), caption_row(2, caption), train=train))
    assert error.field == "caption"
    assert message in error.message


def test_a_caption_without_words_is_no_reference_of_generation(tmp_path):
    rows = [caption_row(n, text) for n, text in enumerate(("a dog", ".", "a cat && - &&a fox"))]
    examples = captions(tmp_path, *rows, train=False, references_optional=True)
    assert examples[1].references == [] and examples[1].target.tolist() == [2]
    assert examples[2].references == ["a cat", "a fox"]
    assert examples[0].references == ["a dog"]


BROKEN_IMAGES = {
    "text": ("a dog runs", "not base64"),
    "no image": (base64.b64encode(b"hello " * 20).decode(), "not an image"),
    "cut": (encoded(Image.effect_noise((64, 64), 40))[:1200], "broken"),
    "huge": (plain_field(size=(2000, 10)), "more than 10,000"),
}


@pytest.mark.parametrize("name", BROKEN_IMAGES)
def test_broken_images_name_the_row(tmp_path, name):
    field, message = BROKEN_IMAGES[name]
    loader = ImageLoader(16, max_pixels=10_000)
    rows = [caption_row(1), caption_row(2, image=field)]
    path = write_tsv(tmp_path / "caption.tsv", rows)
    error = failure(CaptionExamples(path, word_encoder(), loader, train=True))
    assert error.field == "image"
    assert message in error.message
    path = write_tsv(tmp_path / "ve.tsv", [entailment_row(1), entailment_row(2, image=field)])
    error = failure(EntailmentExamples(path, word_encoder(), loader))
    assert error.field == "image"
    assert message in error.message


@pytest.mark.parametrize(
    ("selected", "field"), [("0,2,2", "image"), ("0,3,2", "image"), ("0,4,4", "caption")]
)
def test_wrong_columns_name_the_likely_one(tmp_path, selected, field):
    # Column 3, the predicted objects, is often empty: no reason to go on without images.
    rows = [[*caption_row(1)[:3], "", plain_field()]]
    with pytest.raises(TsvError) as caught:
        captions(tmp_path, *rows, selected_cols=selected)[0]
    error = caught.value
    assert error.field == field
    assert "--selected-cols" in error.remedy
    if field == "image":
        assert f"Column {selected[2]} was read; column 4 looks like an image" in error.remedy


def test_missing_column_of_the_official_layout(tmp_path):
    with pytest.raises(TsvError, match="column 4 is asked for, but the line has 3"):
        captions(tmp_path, ["1", plain_field(), "a dog"])


def test_texts_longer_than_the_model_raise(tmp_path):
    examples = captions(tmp_path, caption_row(1), caption_row(2, "a dog " * 9), train=False)
    examples.max_target_positions = 12
    error = failure(examples)
    assert "19 tokens, more than the 12 positions" in error.message
    assert "--max-target-positions" in error.remedy
    with pytest.raises(ValueError, match=r"8 tokens.*--max-source-positions"):
        captions(tmp_path, caption_row(1), max_source_positions=7)
    long = entailment_row(2, "a dog " * 9)
    examples = entailment(tmp_path, entailment_row(1), long, max_source_positions=20)
    assert "--max-source-positions" in failure(examples).remedy
    examples = entailment(
        tmp_path, entailment_row(1), long, prompt_type="src", max_target_positions=20
    )
    assert "--max-target-positions" in failure(examples).remedy


@pytest.mark.parametrize(
    ("label", "word"),
    [
        ("entailment", "yes"),
        ("neutral", "maybe"),
        ("contradiction", "no"),
        ("yes", "yes"),
        ("maybe", "maybe"),
        ("no", "no"),
        (" Neutral", "maybe"),
    ],
)
def test_labels(tmp_path, label, word):
    examples = entailment(tmp_path, entailment_row(1, label=label))
    assert text(examples, examples[0].target) == f"{word} </s>"
    assert examples[0].references == [word]


def test_entailment_source_with_and_without_premise(tmp_path):
    row = entailment_row(3, "#A dog/cat-Runs.", premise="TWO  dogs run")
    plain = entailment(tmp_path, row)
    example = plain[0]
    # "runs." is no word of the vocabulary: hypotheses keep their later punctuation.
    assert example.unknown == ["runs."]
    assert text(plain, example.source) == '<s> does the image describe " a dog cat <unk> " ? </s>'
    assert example.uniq_id == "3#1"
    assert example.image.shape == (3, 16, 16)
    both = entailment(tmp_path, row, add_caption=True, max_src_length=2)
    assert text(both, both[0].source) == (
        '<s> can image and text1 " two dogs " imply text2 " a dog " ? </s>'
    )


def test_source_text_equals_ofas(tmp_path):
    spelt = []

    class Recorder:
        def encode(self, text: str) -> str:
            spelt.append(text)
            return "a"

        def decode(self, symbols: str) -> str:
            return symbols

    encoder = TextEncoder(Recorder(), word_encoder().vocabulary)
    path = write_tsv(tmp_path / "ve.tsv", [entailment_row(1, "A dog", premise="Two dogs")])
    EntailmentExamples(path, encoder, LOADER)[0]
    assert spelt[-1] == ' does the image describe " a dog "?'
    assert " maybe" in spelt
    EntailmentExamples(path, encoder, LOADER, add_caption=True)[0]
    assert spelt[-1] == ' can image and text1 " two dogs " imply text2 " a dog "?'


@pytest.mark.parametrize("prompt_type", ["none", "src", "prev_output"])
def test_prompt_types(tmp_path, prompt_type):
    examples = entailment(tmp_path, entailment_row(1, label="neutral"), prompt_type=prompt_type)
    example = examples[0]
    source = '<s> does the image describe " a dog runs " ?'
    prompt = {"none": "<s>", "src": source + " </s>", "prev_output": source}[prompt_type]
    assert text(examples, example.prev_output) == f"{prompt} maybe"
    assert example.prompt_length == len(prompt.split())
    pads = "<pad> " * (example.prompt_length - 1)
    assert text(examples, example.target) == f"{pads}maybe </s>"
    assert len(example.target) == len(example.prev_output)


def test_answer_of_several_tokens_follows_its_prompt():
    vocabulary = word_encoder().vocabulary
    source, answer = torch.tensor([0, 5, 6, 2]), torch.tensor([7, 8])
    prompt = source_prompt(source, "src")
    prev, target, prompt_length = answer_sequences(prompt, answer, vocabulary)
    assert prev.tolist() == [0, 5, 6, 2, 7, 8]
    assert target.tolist() == [1, 1, 1, 7, 8, 2]
    assert prompt_length == 4


@pytest.mark.parametrize("prompt_type", ["none", "src", "prev_output"])
def test_constraint_mask_allows_the_answers(tmp_path, prompt_type):
    encoder = word_encoder()
    answers = answer_tokens(encoder)
    trie = AnswerTrie(answers.values(), encoder.vocabulary.eos())
    examples = entailment(
        tmp_path, entailment_row(1, label="no"), prompt_type=prompt_type, trie=trie
    )
    example = examples[0]
    mask = example.constraint_mask
    assert mask.shape == (len(example.target), len(encoder.vocabulary))
    first, last = mask[-2], mask[-1]
    assert set(first.nonzero().flatten().tolist()) == {ids[0] for ids in answers.values()}
    assert last.nonzero().flatten().tolist() == [encoder.vocabulary.eos()]
    assert mask[: example.prompt_length - 1].all()
    assert mask.gather(1, example.target[:, None])[example.prompt_length - 1 :].all()


def test_answers_missing_from_the_dictionary_raise(tmp_path):
    path = write_tsv(tmp_path / "ve.tsv", [entailment_row(1)])
    encoder = word_encoder(["does", "the", "image", "describe", "yes", "no"])
    with pytest.raises(ValueError, match="lacks the answer 'maybe'"):
        answer_tokens(encoder)
    with pytest.raises(ValueError, match="lacks the answer 'maybe'"):
        EntailmentExamples(path, encoder, LOADER)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"label": "perhaps"}, "label", "unknown label 'perhaps'"),
        ({"label": ""}, "label", "empty"),
        ({"hypothesis": ""}, "hypothesis", "empty"),
        ({"hypothesis": "!?"}, "hypothesis", "no words"),
        ({"premise": " "}, "premise", "empty"),
        ({"premise": plain_field()}, "premise", "holds an image"),
        ({"label": plain_field()}, "label", "holds an image"),
    ],
)
def test_invalid_entailment_rows_raise(tmp_path, change, field, message):
    rows = [entailment_row(1), entailment_row(2, **change)]
    error = failure(entailment(tmp_path, *rows, add_caption=True))
    assert error.field == field
    assert message in error.message


def test_premise_may_be_missing_where_it_is_not_read(tmp_path):
    example = entailment(tmp_path, entailment_row(1, premise=""))[0]
    assert isinstance(example, Example)


def test_wrong_label_column_names_the_likely_one(tmp_path):
    examples = entailment(tmp_path, entailment_row(1), selected_cols="0,2,3,4,4")
    with pytest.raises(TsvError) as caught:
        examples[0]
    assert caught.value.field == "label"
    assert "column 5 looks like a label" in caught.value.remedy


class ColourExamples(RowExamples):
    """A new data set: which colour is the thing?"""

    COLUMNS = ("uniq_id", "image", "thing", "colour")
    SELECTED_COLS = "0,3,1,2"
    SOURCE_FIELD, ANSWER_FIELD = "thing", "colour"
    lengths = (8, 2)

    def read(self, row: Row, unknown: list[str]) -> RowTokens:
        colour = row.text("colour")
        source = self.encode_source(f" what does the {row.text('thing')} describe?", unknown)
        return RowTokens(source, self.encoder.encode(f" {colour}", unknown), [colour])


def test_a_new_data_set_is_a_short_class(tmp_path):
    path = write_tsv(tmp_path / "c.tsv", [["7", "cat", "grass", plain_field()], ["8", "", "x", ""]])
    examples = ColourExamples(path, word_encoder(), LOADER)
    example = examples[0]
    assert (example.uniq_id, example.references, example.unknown) == ("7", ["grass"], [])
    assert text(examples, example.source) == "<s> what does the cat describe ? </s>"
    assert text(examples, example.target) == "grass </s>"
    assert (example.image_id, example.constraint_mask, example.conf) == (None, None, None)
    assert failure(examples).field == "thing"
    short = ColourExamples(path, word_encoder(), LOADER, max_target_positions=1)
    with pytest.raises(TsvError, match=r"'colour'.* 2 tokens.* 1 positions.*max-target-positions"):
        short[0]


def test_length_estimates_hold_for_words(tmp_path):
    row = entailment_row(1, "a dog " * 5, premise="two dogs " * 5)
    for options in ({}, {"add_caption": True}, {"prompt_type": "src"}):
        examples = entailment(tmp_path, row, max_src_length=10, **options)
        source, target = examples.lengths
        assert source == len(examples[0].source)
        assert target >= len(examples[0].target)
    examples = captions(tmp_path, caption_row(1, "a dog " * 5), max_tgt_length=10)
    assert examples.lengths == (len(examples[0].source), len(examples[0].target))
