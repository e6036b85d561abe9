"""ofa-exit tsv, dict and check: from a user's images and texts to files that training reads."""

import argparse
import base64
import os
import subprocess
import sys

import pytest
from helpers import data_samples as samples
from PIL import Image

from ofa_exit.cli import check
from ofa_exit.cli.main import main
from ofa_exit.data.dictionary import CountingVocabulary, dictionary_lines, read_dictionary
from ofa_exit.data.images import decode_image
from ofa_exit.data.tsv import TsvFile
from ofa_exit.plugin.vocabulary import OFADictionary

CAPTION_COLUMNS = ("uniq_id", "caption", "image")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.JPG", "trip/c d.webp")):
        Image.new("RGB", (9, 7), ("red", "green", "blue")[number]).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def run(*arguments):
    return main([str(argument) for argument in arguments])


def rows(path, columns=CAPTION_COLUMNS, selected="0,2,4"):
    file = TsvFile(path, selected, columns)
    return [list(file.row(index).values()) for index in range(len(file))]


def colour(field, folder):
    return decode_image(field, folder).getpixel((2, 2))


# ------------------------------------------------------------------ tsv


def test_a_folder_becomes_rows_to_generate_for(photos, tmp_path):
    out = tmp_path / "out" / "test.tsv"
    assert run("tsv", photos, out) == 0
    found = rows(out)
    assert [(name, caption) for name, caption, _ in found] == [
        ("a.JPG", ""), ("b.png", ""), ("trip/c d.webp", ""),
    ]  # fmt: skip
    assert base64.urlsafe_b64decode(found[1][2]) == (photos / "b.png").read_bytes()
    assert run("check", out, "--task", "caption", "--use", "generation") == 0
    assert run("check", out, "--task", "caption") == 1


def test_paths_are_relative_to_the_tsv_file(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    out = tmp_path / "out" / "test.tsv"
    assert run("tsv", ".", out, "--paths") == 0
    assert [image for *_, image in rows(out)][2] == "../photos/trip/c d.webp"
    assert colour(rows(out)[1][2], out.parent) == (255, 0, 0)
    monkeypatch.chdir(tmp_path)
    assert run("check", out, "--task", "caption", "--use", "generation") == 0


def test_broken_images_are_listed_and_left_out(photos, tmp_path, capsys):
    whole = (photos / "b.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert run("tsv", photos, tmp_path / "test.tsv") == 1
    shown = capsys.readouterr()
    assert f"{photos}/cut.png: the bytes are not an image" in shown.out + shown.err
    assert f"{tmp_path}/test.tsv: 3 rows, 1 left out" in shown.out
    (photos / "cut.png").unlink()
    assert run("tsv", photos, tmp_path / "test.tsv", "--max-image-pixels", 62) == 2
    assert "9x7 pixels, more than 62. Scale it down, or raise --max" in "".join(capsys.readouterr())
    assert run("tsv", photos, tmp_path / "test.tsv", "--max-image-pixels", 63) == 0
    assert len(rows(tmp_path / "test.tsv")) == 3


def test_images_of_phones_are_listed(photos, tmp_path, capsys):
    (photos / "trip" / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    assert run("tsv", photos, tmp_path / "test.tsv") == 1
    shown = capsys.readouterr().out
    assert f"{photos}/trip/x.heic: HEIC images are unsupported. Convert it to JPEG" in shown
    assert f"{tmp_path}/test.tsv: 3 rows, 1 left out" in shown


def test_a_csv_of_captions(photos, tmp_path, capsys):
    table = photos / "captions.csv"
    table.write_text(
        '\ufeffImage,caption,source\nb.png,"A ""red"" square&&one, red\n\tthing",x\n'
        "none.png,a cat,x\n\na.JPG,a green square,x\ntoo,few\n"
    )
    assert run("tsv", table, tmp_path / "valid.tsv") == 1
    assert [row[:2] for row in rows(tmp_path / "valid.tsv")] == [
        ["1", 'A "red" square&&one, red thing'],
        ["4", "a green square"],
    ]
    out = "".join(capsys.readouterr())
    assert (
        f"{table}:4: {photos}/none.png: the image file 'none.png' cannot be read from {photos} (No"
        in out
    )
    assert f"{table}:7: 2 columns, the header has 3" in out
    assert run("check", tmp_path / "valid.tsv", "--task", "caption") == 0
    assert run("check", tmp_path / "valid.tsv", "--task", "caption", "--use", "training") == 1
    assert run("tsv", table, tmp_path / "train.tsv", "--split-captions") == 1
    assert [row[0] for row in rows(tmp_path / "train.tsv")] == ["1#1", "1#2", "4"]
    assert run("check", tmp_path / "train.tsv", "--task", "caption") == 0


def test_csv_files_of_questions_and_hypotheses(photos, tmp_path, capsys):
    table = photos / "questions.csv"
    table.write_text("id;question;image;answer\nq7;What colour?;b.png;Red\nq8;And now?;a.JPG;\n")
    out = tmp_path / "vqa" / "valid.tsv"
    assert run("tsv", table, out) == 2 and not out.exists()
    assert "has a question and no caption. Give --task vqa" in capsys.readouterr().err
    assert run("tsv", table, out, "--task", "mue_vqa") == 0
    assert [row[:3] for row in rows(out, ("id", "question", "answers", "image"), "0,2,3,5")] == [
        ["q7", "What colour?", "1.0|!+Red"],
        ["q8", "And now?", ""],
    ]
    assert run("check", out, "--task", "vqa", "--use", "generation") == 0
    assert run("check", out, "--task", "vqa") == 1  # the second row has no answer
    table.write_text("hypothesis\timage\tlabel\tpremise\nIt is red.\tb.png\ttrue\tA square\n")
    out = tmp_path / "ve" / "train.tsv"
    labels = ("--labels", "true,false")
    assert run("tsv", table, out, "--task", "snli_ve", "--dict", *labels) == 0
    assert run("check", out, "--task", "snli_ve", "--add-caption", *labels) == 0
    assert run("check", out, "--task", "entailment") == 1
    words = [line.split()[0] for line in read_dictionary(out.parent / "dict.txt")]
    assert {"true", "false", "yes", "maybe", "no", "square", "red.", "text1", '"'} <= set(words)


@pytest.mark.parametrize(
    ("task", "columns", "bad", "message"),
    [
        ("caption", "caption", ".", "caption '.' has no words"),
        ("caption", "caption", "a cat&&-", "caption '-' has no words"),
        ("vqa", "question,answer", ",no", "question '' has no words"),
        ("vqa", "question,answer", "?,no", "question '?' has no words"),
        ("vqa", "question,answer", "why?,1.5|!+no", "confidence"),
        ("vqa", "question,answer", "why?,x|!+no", "malformed"),
        ("snli_ve", "hypothesis,premise", ",a cat", "hypothesis '' has no words"),
        ("snli_ve", "hypothesis,premise", "it runs,!", "premise '!' has no words"),
    ],
)
def test_texts_that_no_data_set_reads_are_left_out(photos, capsys, task, columns, bad, message):
    table, good = photos / "t.csv", {"caption": "a cat"}.get(task, "it runs,")
    table.write_text(f"image,{columns}\nb.png,{good}\nb.png,{bad}\n")
    assert run("tsv", table, photos / "test.tsv", "--task", task) == 1
    shown = capsys.readouterr()
    assert f"{table}:3: the " in shown.out and message in shown.out and "it/s" not in shown.err
    assert run("check", photos / "test.tsv", "--task", task, "--use", "generation") == 0


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("caption\na cat\n", (), "has no column image"),
        ("image\nb.png\n", ("--task", "vqa"), "has no column question"),
        ("image,image\nb.png,a.JPG\n", (), "has the column image twice"),
        ("image\nnone.png\n", (), "none of the 1 rows can be used"),
        (b"image\n\xff\xfe\n", (), "is not a CSV file in UTF-8"),
    ],
)
def test_unusable_csv_files_end_on_one_line(photos, tmp_path, capsys, text, arguments, message):
    table = photos / "t.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run("tsv", table, tmp_path / "out.tsv", *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out.tsv").exists()


def test_sources_that_do_not_fit(photos, tmp_path, capsys):
    assert run("tsv", photos, tmp_path / "o.tsv", "--task", "vqa") == 2
    assert "a folder has no texts for --task vqa" in capsys.readouterr().err
    assert run("tsv", tmp_path / "none", tmp_path / "o.tsv") == 2
    (tmp_path / "empty").mkdir()
    assert run("tsv", tmp_path / "empty", tmp_path / "o.tsv") == 2
    (tmp_path / "dict.txt").write_text("precious 1\n")
    assert run("tsv", photos, tmp_path / "o.tsv", "--dict") == 2
    assert (tmp_path / "dict.txt").read_text() == "precious 1\n"


# ------------------------------------------------------------------ dict


def test_dict_has_texts_prompts_and_answers(tmp_path):
    file = samples.write_tsv(
        tmp_path / "train.tsv",
        [samples.caption_row(1, "A dog-like Dog, dog!&&two cats"), samples.caption_row(2, "")],
    )
    assert run("dict", tmp_path / "dict.txt", file, "--task", "caption") == 0
    lines = read_dictionary(tmp_path / "dict.txt")
    words = [line.split()[0] for line in lines]
    assert lines[0] == "dog 2" and len(set(words)) == len(words)
    assert {"doglike", "a", "two", "cats", "what", "does", "?", '"', "&&", "yes"} <= set(words)
    loaded = OFADictionary.of_folder(tmp_path, 2, 1)
    assert loaded.index(words[0]) == 4 and loaded.index("<mask>") == 4 + len(words)


def test_dict_keeps_the_words_of_a_checkpoint_first(tmp_path):
    old = tmp_path / "old.txt"
    old.write_text("zebra 7\nyes 3\nthe 1\n")
    file = samples.write_tsv(tmp_path / "v.tsv", [samples.entailment_row(1, "The zebra - sleeps")])
    arguments = ("--task", "snli_ve", "--start-from", old)
    assert run("dict", tmp_path / "dict.txt", file, *arguments) == 0
    lines = (tmp_path / "dict.txt").read_text().splitlines()
    assert lines[:3] == ["zebra 7", "yes 3", "the 1"]
    words = [line.split()[0] for line in lines]
    assert words.count("zebra") == words.count("the") == 1 and "sleeps" in words
    assert "runs" not in words  # a premise, without --add-caption


def test_dict_leaves_out_bad_rows_and_reserved_words(tmp_path, capsys):
    rows = [["q1", "i", "<mask> <code_3> <pad> lion", "1.0|!+Big cat", "", ""], ["q2", "i"]]
    file = samples.write_tsv(tmp_path / "v.tsv", rows)
    assert run("dict", tmp_path / "dict.txt", file, "--task", "vqa") == 1
    words = [line.split()[0] for line in read_dictionary(tmp_path / "dict.txt")]
    assert {"lion", "big", "cat"} <= set(words)
    assert not {"<mask>", "<code_3>", "<pad>"} & set(words)
    assert "1 rows were left out" in capsys.readouterr().err


@pytest.mark.parametrize("text", [b"", b"word\n", b"word x\n", b"\xff 1\n"])
def test_dict_rejects_what_is_no_dictionary(tmp_path, capsys, text):
    (tmp_path / "old.txt").write_bytes(text)
    file = samples.write_tsv(tmp_path / "v.tsv", [samples.caption_row(1)])
    arguments = ("--task", "caption", "--start-from", tmp_path / "old.txt")
    assert run("dict", tmp_path / "dict.txt", file, *arguments) == 2
    assert "old.txt" in capsys.readouterr().err and not (tmp_path / "dict.txt").exists()


def test_lines_are_ordered_by_count_then_by_word():
    vocabulary = CountingVocabulary()
    for word in ("b", "a", "a", "c", "b"):
        vocabulary.index(word)
    assert dictionary_lines(vocabulary.counts, ["?", "a"]) == ["a 2", "b 2", "? 1", "c 1"]


# ------------------------------------------------------------------ check


def test_check_lists_every_bad_row_by_line(tmp_path, capsys):
    rows = [samples.caption_row(n) for n in range(1, 41)]
    rows[16][2] = "."
    rows[30][4] = "missing/cat.jpg"
    rows[39] = rows[39][:3]
    rows[4][2] = "a zebra"
    file = samples.write_tsv(tmp_path / "train.tsv", rows)
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in samples.WORDS.split()))
    assert run("check", file, "--task", "caption") == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[:3]] == [f"{file}:{n}" for n in (17, 31, 40)]
    assert "caption: caption 1 of 1 has no words" in lines[0]
    assert "'missing/cat.jpg' cannot be read" in lines[1] and "3 columns" in lines[2]
    assert lines[3].startswith(f"{file}: 40 rows for training, 3 of them bad")
    assert lines[4].endswith("unknown: 1")


def test_check_needs_the_words_of_the_prompt(tmp_path, capsys):
    file = samples.write_tsv(tmp_path / "train.tsv", [samples.caption_row(1)])
    (tmp_path / "dict.txt").write_text("a 1\nwhat 1\n")
    assert run("check", file, "--task", "caption") == 2
    assert "lacks 'does', 'the', 'image', 'describe', '?' of the task's prompt" in "".join(
        capsys.readouterr()
    )


def test_check_says_that_the_bpe_of_ofa_is_missing(tmp_path, capsys):
    file = samples.write_tsv(tmp_path / "train.tsv", [samples.caption_row(1)])
    (tmp_path / "dict.txt").write_text("13 1\n262 1\n257 1\n286 1\n")
    assert run("check", file, "--task", "caption") == 2
    error = "".join(capsys.readouterr())
    assert "numbers of GPT-2's BPE, and its folder lacks encoder.json and vocab.bpe" in error


def test_check_says_what_to_do_with_csv(tmp_path, capsys):
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in samples.WORDS.split()))
    file = tmp_path / "captions.csv"
    file.write_text("image,caption\na.jpg,a dog\n")
    assert run("check", file, "--task", "caption") == 2
    assert "no TSV file" in (error := "".join(capsys.readouterr())) and "ofa-exit tsv" in error


def test_check_knows_the_list_of_answers(tmp_path, capsys):
    rows = [[f"q{n}", "i", "What?", f"1.0|!+{answer}", "", ""] for n, answer in enumerate("ab")]
    file = samples.write_tsv(tmp_path / "train.tsv", rows)
    (tmp_path / "answers.txt").write_text("a\nc\n")
    answers = ("--answers", tmp_path / "answers.txt")
    assert run("check", file, "--task", "vqa", *answers) == 1
    assert f"{file}:2: answers: 'b' is none of the 2" in capsys.readouterr().out
    assert run("check", file, "--task", "caption", *answers) == 2


def test_rows_are_checked_in_order_whatever_the_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "ROWS_PER_JOB", 2)
    monkeypatch.setattr(check, "THREADS", 3)
    rows = [samples.caption_row(n, "a dog" if n % 5 else "") for n in range(1000)]
    file = samples.write_tsv(tmp_path / "train.tsv", rows)
    args = argparse.Namespace(
        task="caption", selected_cols=None, bpe_dir=None, file=file, add_object=False
    )
    encoder, _ = check.make_encoder(args)
    examples = check.open_examples(file, args, encoder)
    found = list(check.check_rows(examples, range(1000)))
    assert [row for row, *_ in found] == list(range(1000))
    assert [row for row, problem, _ in found if problem] == list(range(0, 1000, 5))


def test_helps_need_no_torch():
    for verb in ("tsv", "dict", "check"):
        code = (
            f"import sys; from ofa_exit.cli import {verb} as v\n"
            "try: v.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ)
        assert done.returncode == 0, done.stderr
