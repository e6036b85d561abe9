"""The command predict: lines, JSON, the page, broken images, wrong arguments."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import tqdm
from helpers import task_files as files
from helpers.paths import ROOT
from helpers.photos import write_photos

import ofa_exit
from ofa_exit.cli.main import main
from ofa_exit.cli.predict import run
from ofa_exit.policies.registry import POLICIES

BUILT_IN = [name for name, cls in POLICIES.items() if cls.__module__.startswith("ofa_exit.")]
STATIC = ["--exit-policy", "static", "--exit-depths", "2,3,4"]
# Prints nothing but registers a policy, as a folder for --user-dir.
USER_DIR = """
from dataclasses import dataclass
from ofa_exit.policies.base import ExitPolicy, option
from ofa_exit.policies.registry import register_policy

@register_policy("from_user_dir")
@dataclass
class Stop(ExitPolicy):
    last: int = option(1, "layer", at_least=1)

    def decoder_gate(self, seen):
        return seen.layer >= self.last
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of three images."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 3)
    return folder


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    data = files.caption_folder(folder / "data")
    return files.train("mue_caption", data, folder / "run", "--disable-validation", updates=8)


@pytest.fixture
def predict(captions, capsys):
    """Run the command on the CPU: its status, and the lines of stdout and of stderr."""

    def run(task, *arguments, checkpoint=captions):
        given = [task, *map(str, arguments), "--checkpoint", str(checkpoint), "--device", "cpu"]
        capsys.readouterr()
        status = main(["predict", *given])
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err.splitlines()

    return run


def test_help_names_the_exit_policies(capsys):
    for task in ("caption", "vqa", "entailment"):
        with pytest.raises(SystemExit):
            main(["predict", task, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert "IMAGE [IMAGE ...] [--exit-policy NAME …]" in shown
        assert f"by one of {', '.join(BUILT_IN)}," in shown


def test_images_of_phones_in_a_folder_are_reported(predict, photos, tmp_path):
    write_photos(tmp_path, 1)
    (tmp_path / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    status, lines, errors = predict("caption", tmp_path)
    assert status == 1 and len(lines) == 1
    assert f"{tmp_path}/phone.HEIC: HEIC images are unsupported. Convert it to JPEG" in errors[0]


def test_a_line_per_image(predict, captions, photos):
    status, lines, errors = predict("caption", photos, *STATIC)
    assert status == 0 and errors == []
    found = ofa_exit.load(captions, device="cpu").caption(
        sorted(photos.iterdir()), exits="static", depths="2,3,4"
    )
    assert [line.split("\t")[:3] for line in lines] == [
        [one.image, one.text, "image 2, text 3, decoder 4.0"] for one in found
    ]
    assert all(re.fullmatch(r"\d+\.\d ms", line.split("\t")[3]) for line in lines)


def test_exits_that_never_happen_are_said(predict, photos):
    status, lines, (note,) = predict(
        "caption", photos, "--exit-policy", "static", "--exit-depths", "6,6,6"
    )
    assert status == 0 and all("image 6, text 6, decoder 6.0" in line for line in lines)
    assert "--exit-policy static: nothing exited early" in note
    never = [f"--exit-{part}-threshold=1" for part in ("image", "text", "decoder")]
    status, _, (note,) = predict("caption", photos, "--exit-preset", "mue-paper", *never)
    assert "--exit-policy similarity: nothing exited early" in note


def test_a_user_dir_that_is_missing(predict, photos, tmp_path):
    status, _, (error,) = predict("caption", photos, "--user-dir", tmp_path / "none")
    assert status == 2 and "none: no such module. Check the path" in error


def test_json(predict, captions, photos):
    status, lines, _ = predict("caption", photos, *STATIC, "--json", "--beam", "1")
    rows = list(map(json.loads, lines))
    assert status == 0 and [row["image"] for row in rows] == [
        str(photos / f"0{number}.png") for number in range(3)
    ]
    for row in rows:
        assert set(row["layers"]) == {4} and len(row["layers"]) == len(row["words"])
        assert (row["image_layers"], row["text_layers"]) == (2, 3)
        assert row["text"].split() == row["words"][:-1] and row["milliseconds"] > 0


def test_exit_options_before_the_images(predict, photos):
    before = predict("caption", "--exit-policy", "static", "--exit-depths=2,3,4", photos / "00.png")
    after = predict("caption", photos / "00.png", *STATIC)
    assert before[0] == 0 and before[1][0].split("\t")[:3] == after[1][0].split("\t")[:3]


def test_a_page_that_needs_nothing_else(predict, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no image")
    out = tmp_path / "made" / "page.html"
    try:
        status, lines, errors = predict("caption", photos, *STATIC, "--html", out)
    finally:
        (photos / "broken.png").unlink()
    # The rest is captioned, and the page is written.
    assert status == 1 and len(lines) == 3
    assert errors == [
        f"ofa-exit predict: {photos}/broken.png: the bytes are not an image. Use one of JPEG, PNG, "
        "GIF, WEBP, BMP, TIFF, PPM",
        "ofa-exit predict: 1 of 4 images could not be read",
    ]
    text = out.read_text()
    assert text.count("<section>") == text.count("data:image/png;base64,") == 3
    assert "http" not in text.replace("http-equiv", "") and "broken.png" not in text
    assert "confidence" not in text  # which is not measured
    words = re.findall(r'title="(?:end of sentence, )?exit after layer (\d)">', text)
    assert set(words) == {"4"} and len(words) == sum(
        len(line.split("\t")[1].split()) + 1 for line in lines
    )


def test_questions_and_hypotheses(predict, photos):
    (photos / "broken.png").write_bytes(b"no image")
    try:
        asked = ["--question", "what square", "--question", "what paint"]
        status, lines, errors = predict("vqa", photos, *asked)
    finally:
        (photos / "broken.png").unlink()
    pairs = [tuple(line.split("\t")[:2]) for line in lines]
    texts = ("what square", "what paint")
    assert status == 1 and pairs == [
        (str(photos / f"0{n}.png"), text) for n in range(3) for text in texts
    ]
    # Each broken image is reported once.
    assert sum("the bytes are not an image" in line for line in errors) == 1
    assert errors[-1].endswith("1 of 4 images could not be read")
    status, lines, _ = predict("entailment", photos, "--hypothesis", "a red square")
    assert status == 0 and {line.split("\t")[1] for line in lines} <= {"yes", "maybe", "no"}
    given = ["--hypothesis", "a red square", "--premise", "red paint"]
    assert predict("entailment", photos / "00.png", *given)[0] == 0


def test_an_image_that_is_removed_meanwhile(predict, photos, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    paths = write_photos(folder / "deep", 2)

    def remove(results, **options):
        for result in results:
            Path(result.image).unlink(missing_ok=True)
            yield result

    write = tqdm.tqdm.write
    monkeypatch.setattr(run, "tqdm", remove)
    remove.write = write
    out = tmp_path / "page.html"
    given = ["--html", out, "--recursive"]
    status, lines, errors = predict("caption", folder, *given)
    assert (status, len(lines), errors) == (0, 2, [])
    assert not any(map(os.path.exists, paths))
    assert out.read_text().count("data:image/png;base64,") == 2


def test_snli_ve_is_entailment(predict, photos):
    given = [photos / "00.png", "--hypothesis", "a red square", "--labels", "red,green"]
    status, lines, _ = predict("snli_ve", *given)
    assert status == 0 and lines[0].split("\t")[1] in ("red", "green")


def test_policies_of_a_user_dir(predict, photos, tmp_path):
    folder = tmp_path / "exits_for_predict"
    folder.mkdir()
    (folder / "__init__.py").write_text(USER_DIR)
    given = ["--user-dir", folder, "--exit-policy", "from_user_dir", "--exit-last", "2"]
    try:
        status, lines, _ = predict("caption", photos, *given, "--json")
    finally:
        POLICIES.pop("from_user_dir", None)
    assert status == 0 and {n for line in lines for n in json.loads(line)["layers"]} == {2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photos}/none.png"], "none.png: no such file or folder"),
        (["{tmp}"], "the folder holds no image"),
        (["{photos}/*.gif"], "no file matches it"),
        (["{photos}", "--exit-policy", "unheard"], "unknown --exit-policy 'unheard'"),
        (["{photos}", "--exit-alpha", "0.5"], "--exit-alpha without an exit policy"),
        (["{photos}", "--exit-policy", "static", "--exit-depths", "9,9,9"], "--exit-depths"),
        (["{photos}", *STATIC, "--exit-trace", "x.jsonl"], "--exit-trace: only fairseq-generate"),
        (["{photos}", "--beam", "0"], "beam 0: give a whole number"),
        (["{photos}", "--bpe-dir", "{tmp}"], "no dictionary"),
        (["{photos}", "--user-dir", "{tmp}/none"], "none"),
        (["{photos}", "--ema-eval"], "holds no moving average"),
        (["{photos}", "--html", "{photos}/00.png/page.html"], "page.html: cannot be written ("),
        (["{photos}", "--html", "/proc/none/page.html"], "page.html: cannot be written ("),
        (["{photos}", "--max-image-pixels", "0"], "--max-image-pixels is 0: give at least 1"),
        (["{photos}", "--caption-prompt", "unheard words"], "the dictionary lacks 'unheard'"),
    ],
)
def test_errors_take_a_line(predict, photos, arguments, message, tmp_path):
    given = [text.format(photos=photos, tmp=tmp_path) for text in arguments]
    status, lines, errors = predict("caption", *given)
    assert status == 2 and lines == [] and len(errors) == 1
    assert errors[0].startswith("ofa-exit predict: error: ") and message in errors[0]


def test_exits_are_checked_before_the_checkpoint_is_read(predict, photos, tmp_path):
    (tmp_path / "text.pt").write_text("no checkpoint")
    given = ["caption", photos, "--exit-policy", "unheard"]
    assert "unheard" in predict(*given, checkpoint=tmp_path / "text.pt")[2][0]
    wrong = predict("caption", photos, checkpoint=tmp_path / "text.pt")
    assert wrong[0] == 2 and "text.pt is not a checkpoint of torch" in wrong[2][0]
    missing = predict("caption", photos, checkpoint=tmp_path / "none.pt")
    assert missing[0] == 2 and "none.pt: no such checkpoint" in missing[2][0]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["captions", "x.png", "--checkpoint", "x.pt"],
        ["caption", "--checkpoint", "x.pt"],
        ["caption", "x.png"],
        ["vqa", "x.png", "--checkpoint", "x.pt"],
        ["caption", "x.png", "--checkpoint", "x.pt", "--question", "a"],
        ["caption", "x.png", "--checkpoint", "x.pt", "--html", "page.txt"],
        ["caption", "--checkpoint", "x.pt", "--exit-policy", "static"],  # no image
        ["caption", "x.png", "--checkpoint", "x.pt", "--exit-unheard", "1"],
    ],
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(["predict", *arguments])
    assert end.value.code == 2 and "ofa-exit predict" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--exit-decoder-treshold 0.9", "--exit-decoder-treshold: did you mean --exit-decoder-thr"),
        ("--bpe-dri folder", "--bpe-dri: did you mean --bpe-dir?"),
        ("--question a", "--question: ofa-exit predict caption --help lists all options"),
    ],
)
def test_unknown_options_take_a_line(given, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["predict", "caption", "x.png", "--checkpoint", "x.pt", *given.split()])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("ofa-exit predict: error: unknown option ")
    assert message in line


def test_the_bar_goes_to_the_terminal_of_stderr(captions, photos):
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # its size
    command = [sys.executable, "-m", "ofa_exit", "predict", "caption", str(photos)]
    done = subprocess.run(
        [*command, "--checkpoint", str(captions), "--device", "cpu"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=terminal, text=True,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += (part := os.read(main_end, 65536))
        except OSError:  # the other end is closed
            break
        if not part:
            break
    os.close(main_end)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3
    assert b"3/3" in shown and b"image" in shown


def test_the_shipped_checkpoint(predict, tmp_path):
    """The commands of README, on images of the emoji data."""
    checkpoint = ROOT / "examples/checkpoints/ofa_nano_caption.pt"
    rows = (ROOT / "examples/emoji/caption_valid.tsv").read_text().splitlines()[:12]
    for number, row in enumerate(rows):
        field = row.split("\t")[4]
        data = base64.urlsafe_b64decode(field + "=" * (-len(field) % 4))
        Path(tmp_path / f"{number:02}.webp").write_bytes(data)
    given = ["--bpe-dir", ROOT / "examples/emoji", "--exit-policy", "similarity"]
    given += ["--exit-decoder-threshold", "0.9", "--json"]
    status, lines, _ = predict("caption", tmp_path, *given, checkpoint=checkpoint)
    found = list(map(json.loads, lines))
    assert status == 0 and len(found) == 12
    assert "middle finger medium dark skin tone" in [row["text"] for row in found]
    assert 2 <= min(min(row["layers"]) for row in found) < 6
