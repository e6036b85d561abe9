"""Batches, bad rows, workers."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.data_samples import caption_row, entailment_row, plain_field, word_encoder, write_tsv
from torch.utils.data import DataLoader

from ofa_exit.data.caption import CaptionExamples
from ofa_exit.data.collate import collate
from ofa_exit.data.dataset import OFADataset
from ofa_exit.data.example import Example
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.snli_ve import EntailmentExamples, answer_tokens
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.data.tsv import TsvError

PAD, SIZE = 1, 16


def captions(
    path: Path, rows: list[list[str]], skip: bool = False, train: bool = False
) -> OFADataset:
    file = write_tsv(path / "caption.tsv", rows)
    examples = CaptionExamples(file, word_encoder(), ImageLoader(SIZE), train=train)
    return OFADataset(examples, PAD, SIZE, skip)


def entailment(path: Path, rows: list[list[str]], **options) -> OFADataset:
    encoder = word_encoder()
    trie = AnswerTrie(answer_tokens(encoder).values(), encoder.vocabulary.eos())
    file = write_tsv(path / "ve.tsv", rows)
    examples = EntailmentExamples(file, encoder, ImageLoader(SIZE), trie=trie, **options)
    return OFADataset(examples, PAD, SIZE)


def batch_of(dataset: OFADataset, *rows: int) -> dict:
    return dataset.collater([dataset[row] for row in rows])


def test_caption_batch_is_padded_on_the_right(tmp_path):
    dataset = captions(
        tmp_path,
        [
            caption_row(10, "a dog"),
            caption_row(11, "the cat runs on grass"),
            caption_row(12, image=""),
        ],
    )
    batch = batch_of(dataset, 1, 0, 2)
    encoder = word_encoder()
    assert batch["id"].tolist() == [1, 0, 2]
    assert batch["id"].dtype == torch.long
    assert batch["uniq_ids"] == ["11", "10", "12"]
    assert batch["nsentences"] == 3
    assert batch["ntokens"] == 6 + 3 + 4
    assert [encoder.vocabulary.text(row) for row in batch["target"]] == [
        "the cat runs on grass </s>",
        "a dog </s> <pad> <pad> <pad>",
        "a dog runs </s> <pad> <pad>",
    ]
    net_input = batch["net_input"]
    assert encoder.vocabulary.text(net_input["prev_output_tokens"][1]) == (
        "<s> a dog <pad> <pad> <pad>"
    )
    assert net_input["src_tokens"].shape == (3, 8)
    assert net_input["src_lengths"].tolist() == [8, 8, 8]
    assert net_input["patch_images"].shape == (3, 3, SIZE, SIZE)
    assert net_input["patch_images"].dtype == torch.float32
    assert net_input["patch_masks"].tolist() == [True, True, False]
    assert net_input["patch_masks"].dtype == torch.bool
    assert net_input["patch_images"][2].abs().sum() == 0
    assert net_input["padded"]  # an image is missing
    assert not batch_of(dataset, 0, 1)["net_input"]["padded"]
    assert net_input["patch_images"][0][:, 0, 0].tolist() == [1.0, -1.0, -1.0]
    assert batch["prompt_lengths"].tolist() == [1, 1, 1]
    assert batch["references"] == [["the cat runs on grass"], ["a dog"], ["a dog runs"]]
    assert "constraint_masks" not in batch
    assert "conf" not in batch


@pytest.mark.parametrize("prompt_type", ["none", "src", "prev_output"])
def test_entailment_batch(tmp_path, prompt_type):
    rows = [entailment_row(1, "a dog"), entailment_row(2, "the cat runs on grass", "no")]
    dataset = entailment(tmp_path, rows, prompt_type=prompt_type)
    batch = batch_of(dataset, 0, 1)
    source = batch["net_input"]["src_tokens"]
    assert batch["net_input"]["src_lengths"].tolist() == [11, 14]
    assert source[0, 11:].tolist() == [PAD] * 3
    assert batch["ntokens"] == 4  # an answer word and eos each, prompts not counted
    assert batch["references"] == [["yes"], ["no"]]
    masks = batch["constraint_masks"]
    assert masks.shape == (*batch["target"].shape, len(word_encoder().vocabulary))
    assert masks.dtype == torch.bool
    counted = batch["target"].ne(PAD)
    assert masks[~counted].all()
    assert masks[counted].sum(1).tolist() == [3, 1, 3, 1]
    for row, length in enumerate(batch["prompt_lengths"].tolist()):
        assert counted[row].nonzero()[0] == length - 1
        prompt = batch["net_input"]["prev_output_tokens"][row, :length]
        assert torch.equal(prompt, source[row, :length])


def example(index: int, **options) -> Example:
    tokens = torch.tensor([0, 5])
    return Example(index, str(index), tokens, tokens, tokens + 2, 1, None, ["x"], [], **options)


def test_examples_without_confidence_have_1():
    batch = collate([example(0, conf=0.5), example(1)], PAD, SIZE)
    assert batch["conf"].tolist() == [0.5, 1.0]


def test_constraint_masks_for_all_examples_or_none():
    mask = torch.ones(2, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match="constraint mask"):
        collate([example(0, constraint_mask=mask), example(1)], PAD, SIZE)


def with_image(index: int, value: float | None, image_id: int | None) -> Example:
    image = None if value is None else torch.full((3, SIZE, SIZE), value)
    return replace(example(index), image=image, image_id=image_id)


def test_examples_share_images_by_id():
    """Equal tensors are not enough; rows without an image have separate zeros."""
    rows = [(1.0, 7), (1.0, 7), (1.0, None), (1.0, None), (None, 7), (None, 7), (2.0, 9), (1.0, 7)]
    examples = [with_image(index, *row) for index, row in enumerate(rows)]
    net_input = collate(examples, PAD, SIZE)["net_input"]
    assert net_input["image_rows"].tolist() == [0, 0, 1, 2, 3, 4, 5, 0]
    assert net_input["patch_images"][:, 0, 0, 0].tolist() == [1, 1, 1, 0, 0, 2]
    assert net_input["patch_masks"].tolist() == [value is not None for value, _ in rows]
    assert net_input["padded"]
    net_input = collate(examples[1:4], PAD, SIZE)["net_input"]
    assert "image_rows" not in net_input and not net_input["padded"]
    assert set(net_input) == {
        *("src_tokens", "src_lengths", "patch_images", "patch_masks", "padded"),
        *("prev_output_tokens", "text_keys"),
    }


def test_equal_sources_have_equal_keys():
    other = replace(example(2), source=torch.tensor([0, 55]))
    keys = collate([example(0), example(1), other], PAD, SIZE)["net_input"]["text_keys"]
    assert keys == ["0 5", "0 5", "0 55"]


def test_skipped_rows_are_dropped_from_a_batch():
    batch = collate([None, example(1), None], PAD, SIZE)
    assert batch["id"].tolist() == [1]
    assert batch["nsentences"] == 1
    assert collate([None, None], PAD, SIZE) == {}
    assert collate([], PAD, SIZE) == {}


ROWS = [
    caption_row(0, "a dog"),
    caption_row(1, ""),
    caption_row(2, "a zebra runs"),
    caption_row(3, image="rubbish"),
    caption_row(4, "the cat"),
    caption_row(5, "a lion runs"),
]


def test_bad_rows_are_errors_unless_skipped(tmp_path, caplog):
    dataset = captions(tmp_path, ROWS)
    with pytest.raises(TsvError, match="line 2, field 'caption'"):
        dataset[1]
    with caplog.at_level(logging.WARNING):
        assert dataset[2].unknown == ["zebra"]
        dataset[5]
        dataset[2]
    assert len(caplog.records) == 1
    assert "line 3: 'zebra' is not in the dictionary" in caplog.text
    assert (dataset.bad_rows, dataset.rows_with_unknown_words) == (0, 2)
    assert dataset.summary() == [
        f"{tmp_path / 'caption.tsv'}: 2 of 6 rows hold words that the dictionary lacks (lines 3, 6)"
    ]


def test_skipped_rows_are_counted_once_and_listed(tmp_path):
    dataset = captions(tmp_path, ROWS, skip=True)
    assert dataset.summary() == []
    for _ in range(2):
        batch = batch_of(dataset, *range(6))
    assert batch["id"].tolist() == [0, 2, 4, 5]
    assert (dataset.bad_rows, dataset.rows_with_unknown_words) == (2, 2)
    summary = dataset.summary()
    assert "2 of 6 rows were skipped" in summary[0]
    assert "line 2, field 'caption'" in summary[1]
    assert "line 4, field 'image'" in summary[2]
    assert len(summary) == 4
    assert batch_of(dataset, 1, 3) == {}


def test_good_rows_take_the_place_of_bad_ones_in_training(tmp_path):
    dataset = captions(tmp_path, ROWS, skip=True, train=True)
    for _ in range(2):
        ids = batch_of(dataset, *range(6))["id"].tolist()
        assert len(ids) == 6 and set(ids) == {0, 2, 4, 5}
        assert [ids[row] for row in (0, 2, 4, 5)] == [0, 2, 4, 5]
    assert dataset.bad_rows == 2


def test_substitutes_are_spread_over_the_file(tmp_path):
    """Also where one image makes all neighbours bad."""
    rows = [caption_row(n, "" if n < 20 else "a dog") for n in range(100)]
    dataset = captions(tmp_path, rows, skip=True, train=True)
    assert len(set(batch_of(dataset, *range(20))["id"].tolist())) > 12
    one = captions(tmp_path, [caption_row(n, "" if n != 7 else "a dog") for n in range(60)], True)
    one.examples.train = True
    assert set(batch_of(one, *range(60))["id"].tolist()) == {7}


@pytest.mark.parametrize("train", [True, False])
def test_no_good_row_is_an_error_of_the_file(tmp_path, train):
    dataset = captions(tmp_path, [caption_row(n, "") for n in range(4)], skip=True, train=train)
    with pytest.raises(TsvError, match=r"none of the 4 rows can be used.*line [1-4], field 'cap"):
        batch_of(dataset, *range(4))


def test_summary_lists_the_first_few(tmp_path):
    rows = [caption_row(0), *(caption_row(n, "" if n % 2 else "zebras") for n in range(1, 17))]
    dataset = captions(tmp_path, rows, skip=True)
    batch_of(dataset, *range(17))
    summary = dataset.summary()
    assert "8 of 17 rows were skipped" in summary[0]
    assert [line.split("line ")[1].split(",")[0] for line in summary[1:6]] == [
        "2", "4", "6", "8", "10",
    ]  # fmt: skip
    assert "8 of 17" in summary[6]
    assert "(lines 3, 5, 7, 9, 11, …)" in summary[6]


def test_a_changed_file_is_never_skipped(tmp_path):
    dataset = captions(tmp_path, ROWS, skip=True)
    write_tsv(tmp_path / "caption.tsv", ROWS[:3])
    with pytest.raises(TsvError, match="changed"):
        dataset[0]


def test_other_errors_are_never_skipped(tmp_path, monkeypatch):
    dataset = captions(tmp_path, ROWS, skip=True)

    def fail(field: str, folder: Path):
        raise RuntimeError("a mistake in the program")

    monkeypatch.setattr(dataset.examples, "load_image", fail)
    with pytest.raises(RuntimeError, match="mistake"):
        dataset[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_every_row_once_and_report_to_the_main_process(tmp_path, context):
    colours = ["red", "green", "blue"]
    rows = [
        caption_row(n, "" if n % 10 == 3 else "a zebra" if n % 10 == 5 else "a dog")
        for n in range(40)
    ]
    for number, row in enumerate(rows):
        row[4] = plain_field(colours[number % 3])
    dataset = captions(tmp_path, rows, skip=True)
    dataset[0]  # the parent's handle is open when the workers start
    loader = DataLoader(
        dataset,
        batch_size=3,
        num_workers=4 if context == "fork" else 1,
        collate_fn=dataset.collater,
        multiprocessing_context=context,
    )
    seen = {}
    for batch in loader:
        pixels = batch["net_input"]["patch_images"][:, :, 0, 0].argmax(1)
        seen.update(zip(batch["id"].tolist(), pixels.tolist(), strict=True))
        assert batch["uniq_ids"] == [str(row) for row in batch["id"].tolist()]
    assert seen == {n: n % 3 for n in range(40) if n % 10 != 3}
    assert (dataset.bad_rows, dataset.rows_with_unknown_words) == (4, 4)
    assert "4 of 40 rows were skipped" in dataset.summary()[0]


def test_an_error_in_a_worker_names_the_row(tmp_path):
    dataset = captions(tmp_path, ROWS)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=dataset.collater)
    with pytest.raises(
        TsvError, match=r"caption\.tsv, line 2, field 'caption': the field is empty"
    ):
        list(loader)


def test_dataset_pickles(tmp_path):
    dataset = captions(tmp_path, ROWS, skip=True)
    dataset[1]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[0].target.tolist() == dataset[0].target.tolist()
    assert (len(copy), copy.bad_rows, copy.lengths) == (6, 1, dataset.lengths)
