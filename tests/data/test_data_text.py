"""Normalisation, codecs, vocabulary and the answer tree."""

import json
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from helpers.data_samples import WordList, word_encoder
from helpers.paths import ROOT

from ofa_exit.data.text import (
    Gpt2Codec,
    TextEncoder,
    WordCodec,
    dictionary_path,
    dictionary_symbols,
    load_codec,
    normalise_sentence,
    strip_punctuation,
)
from ofa_exit.data.trie import AnswerTrie

OFA_BPE = ROOT.parent / "shared" / "data" / "ofa_bpe"
# A folder with GPT-2's encoder.json and vocab.bpe.
GPT2_FILES = Path(os.environ.get("GPT2_BPE_DIR", OFA_BPE))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog, running.", "A dog running"),
        ("  Two\tdogs   - run!  ", "Two dogs run"),
        ("a man's well-known T-shirt", "a mans wellknown Tshirt"),
        ("Café “quoted”", "Café “quoted”"),
        ("...", ""),
    ],
)
def test_strip_punctuation(caption, expected):
    assert strip_punctuation(caption) == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("A Dog RUNS.", "a dog runs."),
        ("?!#well-known  black/white\tcat", "well known black white cat"),
        ("<person> and <person> sit", "person and person sit"),
        ("trailing , stays !", "trailing , stays !"),
        ("*:;~", ""),
    ],
)
def test_normalise_sentence(sentence, expected):
    assert normalise_sentence(sentence) == expected


def test_normalised_sentences_are_cut_by_words_after_normalising():
    assert normalise_sentence("one-two three four", 3) == "one two three"
    assert normalise_sentence("one two", 2) == "one two"


def test_word_codec():
    codec = WordCodec()
    text = ' Does the image  "A Dog" &&runs?'
    assert codec.encode(text) == 'does the image " a dog " && runs ?'
    assert codec.decode(codec.encode(text)) == 'does the image " a dog " && runs ?'
    assert codec.encode("one & two") == "one & two"
    assert codec.encode("  ") == ""


def no_encoder(encoder_json: str, vocab_bpe: str):
    raise AssertionError("GPT-2's encoder is not wanted here")


def test_codec_is_chosen_by_the_files_of_the_folder(tmp_path):
    assert isinstance(load_codec(tmp_path, no_encoder), WordCodec)
    (tmp_path / "dict.txt").write_text("dog 1\n")
    assert isinstance(load_codec(tmp_path, no_encoder), WordCodec)
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"vocab\.bpe"):
        load_codec(tmp_path, no_encoder)
    (tmp_path / "vocab.bpe").write_text("#version\n")
    assert isinstance(load_codec(tmp_path, fairseq_encoder()), Gpt2Codec)
    (tmp_path / "a.model").write_text("")
    with pytest.raises(ValueError, match=r"encoder\.json, vocab\.bpe, a\.model are several"):
        load_codec(tmp_path, fairseq_encoder())
    (tmp_path / "encoder.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"encoder\.json"):
        load_codec(tmp_path, no_encoder)


def fairseq_encoder():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fairseq.data.encoders.gpt2_bpe_utils import get_encoder
    return get_encoder


@pytest.fixture
def tiny_bpe(tmp_path) -> Path:
    """A BPE over bytes with two merges: "do" and "dog"."""
    from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

    symbols = [*bytes_to_unicode().values(), "do", "dog"]
    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    (tmp_path / "encoder.json").write_text(json.dumps(numbers))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nd o\ndo g\n", encoding="utf-8")
    return tmp_path


def test_gpt2_codec_round_trips_and_pickles(tiny_bpe):
    codec = load_codec(tiny_bpe, fairseq_encoder())
    dog = codec.encode("dog")
    assert dog == "257"
    for text in (" dogs && do", "café 🙂", " a  b", ""):
        assert codec.decode(codec.encode(text)) == text
        assert pickle.loads(pickle.dumps(codec)).encode(text) == codec.encode(text)
    assert codec.decode(f"{dog} <unk> {dog} <code_3>") == "dog <unk>dog <code_3>"
    # A letter of several bytes may be parted among symbols.
    assert codec.encode("🙂").count(" ") == 3


def test_invalid_gpt2_files_raise(tmp_path):
    (tmp_path / "encoder.json").write_text("not json")
    (tmp_path / "vocab.bpe").write_text("#version\n")
    with pytest.raises(ValueError, match=r"encoder\.json.*not GPT-2"):
        load_codec(tmp_path, fairseq_encoder())


@pytest.mark.skipif(not (GPT2_FILES / "vocab.bpe").is_file(), reason="GPT-2's BPE is not here")
def test_official_bpe():
    codec = load_codec(GPT2_FILES, fairseq_encoder())
    assert codec.encode(" what does the image describe?") == "644 857 262 2939 6901 30"
    for text in (" yes", ' does the image describe " a dog "?', " Über 42 naïve 犬 & && 🙂"):
        assert codec.decode(codec.encode(text)) == text


@pytest.mark.skipif(not (OFA_BPE / "dict.txt").is_file(), reason="OFA's dictionary is not here")
def test_official_vocabulary_has_its_size():
    from fairseq.data import Dictionary

    vocabulary = Dictionary.load(str(dictionary_path(OFA_BPE)))
    for symbol in dictionary_symbols():
        vocabulary.add_symbol(symbol)
    assert len(vocabulary) == 59457
    assert vocabulary.index("<mask>") == 50264
    assert vocabulary.index("<code_0>") == 50265
    assert vocabulary.index("<bin_999>") == 59456
    # " what does" of GPT-2, as rows of dict.txt shifted by fairseq's four symbols.
    encoder = TextEncoder(WordCodec(), vocabulary)
    assert encoder.encode("644 857").tolist() == [vocabulary.index("644"), vocabulary.index("857")]
    assert vocabulary.index("644") > 3


def test_dictionary_symbols_and_path(tmp_path):
    assert dictionary_symbols(2, 1) == ["<mask>", "<code_0>", "<code_1>", "<bin_0>"]
    assert dictionary_symbols(0, 0) == ["<mask>"]
    with pytest.raises(FileNotFoundError, match=r"dict\.txt.*--bpe-dir"):
        dictionary_path(tmp_path)


def test_sentencepiece(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a dog runs on the grass\ntwo dogs run\nthe cat sleeps\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "m"),
        vocab_size=40,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    codec = pickle.loads(pickle.dumps(load_codec(tmp_path, no_encoder)))
    pieces = codec.encode(" a dog sleeps")
    assert pieces.startswith("\u2581")
    assert len(pieces.split()) > 2
    assert codec.decode(pieces) == "a dog sleeps"


def test_missing_sentencepiece(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    (tmp_path / "m.model").write_text("")
    with pytest.raises(ImportError, match="pip install sentencepiece"):
        load_codec(tmp_path, no_encoder)


def test_encoder_collects_unknown_symbols_and_reserves_its_own():
    encoder = word_encoder()
    unknown: list[str] = []
    tokens = encoder.encode(" A zebra runs <pad> </s> <s> ?", unknown)
    assert tokens.dtype == torch.long
    assert encoder.vocabulary.text(tokens) == "a <unk> runs <unk> <unk> <unk> ?"
    assert unknown == ["zebra", "<pad>", "</s>", "<s>"]
    assert encoder.encode("zebra").tolist() == [3]
    assert encoder.encode("").shape == (0,)


def test_fairseqs_dictionary_is_a_vocabulary():
    from fairseq.data import Dictionary

    theirs = Dictionary()
    for symbol in WordList().symbols[4:]:
        theirs.add_symbol(symbol)
    text = " what does the zebra describe?"
    ours = word_encoder().encode(text)
    assert torch.equal(TextEncoder(WordCodec(), theirs).encode(text), ours)


EOS = 2


def test_trie_allowed_next():
    trie = AnswerTrie([[7], [7, 8], [5, 9]], EOS)
    assert trie.allowed_next([]) == [5, 7]
    assert trie.allowed_next([7]) == [EOS, 8]
    assert trie.allowed_next([7, 8]) == [EOS]
    assert trie.allowed_next([5]) == [9]
    assert trie.allowed_next([8]) == trie.allowed_next([7, EOS]) == []


def test_trie_mask():
    trie = AnswerTrie([[7], [7, 8], [5, 9]], EOS)
    mask = trie.mask(torch.tensor([1, 1, 5, 9, EOS]), prompt_length=3, vocabulary_size=11)
    assert mask.shape == (5, 11)
    assert mask.dtype == torch.bool
    assert mask[:2].all()
    assert [row.nonzero().flatten().tolist() for row in mask[2:]] == [[5, 7], [9], [EOS]]
    first = trie.mask(torch.tensor([7, EOS]), prompt_length=1, vocabulary_size=11)
    assert [row.nonzero().flatten().tolist() for row in first] == [[5, 7], [EOS, 8]]


@pytest.mark.parametrize("target", [[5, EOS], [7, 8], [7, 8, EOS, EOS], [EOS], []], ids=str)
def test_trie_rejects_other_answers(target):
    trie = AnswerTrie([[7], [7, 8], [5, 9]], EOS)
    with pytest.raises(ValueError, match="not one of the answers"):
        trie.mask(torch.tensor(target, dtype=torch.long), 1, 11)


@pytest.mark.parametrize("answers", [[], [[]], [[4], []], [[4], [4]], [[4, EOS]]], ids=str)
def test_trie_rejects_invalid_answers(answers):
    with pytest.raises(ValueError, match="answer"):
        AnswerTrie(answers, EOS)
