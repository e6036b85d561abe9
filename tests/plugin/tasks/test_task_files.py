"""Files of a split, and a vocabulary that prints unknown words."""

import pickle

import pytest
import torch
from helpers.task_files import write_dictionary

from ofa_exit.data.text import TextEncoder, WordCodec
from ofa_exit.plugin.tasks.files import first_folder, split_files
from ofa_exit.plugin.vocabulary import OFADictionary


def names(files):
    return [file.name for file in files]


def test_ofa_lists_end_with_the_file_for_validation_and_generation():
    data = "d/a.tsv,d/b.tsv, d/c.tsv"
    assert names(split_files(data, "train", "caption")) == ["a.tsv", "b.tsv"]
    assert names(split_files(data, "valid", "caption")) == ["c.tsv"]
    assert names(split_files(data, "test", "caption")) == ["c.tsv"]
    assert names(split_files("d/a.tsv,d/test.tsv", "valid", "caption")) == ["test.tsv"]
    assert names(split_files("d/valid.tsv", "test", "caption")) == ["valid.tsv"]
    assert names(split_files("d/one.tsv", "test", "caption")) == ["one.tsv"]
    assert first_folder(data) == "d"


@pytest.mark.parametrize("prefix", ["", "caption_"])
def test_lists_may_name_a_file_for_each_split(prefix):
    data = f"d/a.tsv,d/train.tsv,d/{prefix}valid.tsv,d/{prefix}test.tsv"
    assert names(split_files(data, "train", "caption")) == ["a.tsv", "train.tsv"]
    assert names(split_files(data, "valid", "caption")) == [f"{prefix}valid.tsv"]
    assert names(split_files(data, "test", "caption")) == [f"{prefix}test.tsv"]
    assert names(split_files("a.tsv,val.tsv,test.tsv", "valid", "caption")) == ["val.tsv"]
    assert names(split_files("a.tsv,val.tsv,test.tsv", "val", "caption")) == ["val.tsv"]


def test_folders_hold_files_by_split(tmp_path):
    for name in ("train10", "train2", "caption_valid", "test", "test_artist", "valid1"):
        (tmp_path / f"{name}.tsv").touch()
    data = str(tmp_path)
    assert names(split_files(data, "train", "caption")) == ["train2.tsv", "train10.tsv"]
    assert names(split_files(data, "valid", "caption")) == ["caption_valid.tsv"]
    assert names(split_files(data, "test", "caption")) == ["test.tsv"]
    assert names(split_files(data, "test_artist", "caption")) == ["test_artist.tsv"]
    assert first_folder(data) == data
    with pytest.raises(ValueError, match=r"no valid\.tsv and no snli_ve_valid\.tsv.*test\.tsv"):
        split_files(data, "valid", "snli_ve")


@pytest.mark.parametrize(
    ("data", "split", "message"),
    [
        (None, "train", "no data"),
        (" , ", "train", "no data"),
        ("one.tsv", "train", r"train\.tsv,valid\.tsv"),
        ("valid.tsv,train.tsv,test.tsv", "train", r"valid\.tsv stands before training data"),
        ("valid.tsv,test.tsv", "train", "no file is training data"),
        ("train.tsv,valid.tsv", "test", r"no file is called test\.tsv or caption_test\.tsv"),
        ("train.tsv,valid.tsv,test.tsv", "valid1", r"no file is called valid1\.tsv"),
        ("train.tsv,val.tsv,valid.tsv", "valid", r"val\.tsv and valid\.tsv are both for"),
    ],
)
def test_invalid_lists_of_files_are_rejected(data, split, message):
    with pytest.raises(ValueError, match=message):
        split_files(data, split, "caption")


def test_folders_and_files_cannot_be_mixed(tmp_path):
    with pytest.raises(ValueError, match="folder"):
        split_files(f"{tmp_path},x.tsv", "train", "caption")


def test_vocabulary_is_in_ofa_order(tmp_path):
    folder = write_dictionary(tmp_path / "d", ("zebra", "a"))
    dictionary = OFADictionary.of_folder(folder, code_dict_size=2, num_bins=1)
    expected = "<s> <pad> </s> <unk> zebra a <mask> <code_0> <code_1> <bin_0>"
    assert " ".join(dictionary[i] for i in range(len(dictionary))) == expected


def test_references_are_printed_in_their_own_words(tmp_path):
    dictionary = OFADictionary.of_folder(write_dictionary(tmp_path / "d"), 0, 0)
    before = len(dictionary)
    shown = dictionary.shown_references(WordCodec(), ["a giraffe", "A <pad> square, giraffe"])
    printed = dictionary.string(shown.int(), escape_unk=True)
    assert printed == "a giraffe && a <pad> square, giraffe"
    # The model's side of the dictionary does not know the new words.
    assert len(dictionary) == before
    assert dictionary.index("giraffe") == dictionary.unk()
    tokens = TextEncoder(WordCodec(), dictionary).encode("giraffe")
    assert tokens.tolist() == [dictionary.unk()]
    assert pickle.loads(pickle.dumps(dictionary)).string(shown) == printed
    assert torch.equal(dictionary.shown_references(WordCodec(), ["a giraffe"])[:2], shown[:2])
