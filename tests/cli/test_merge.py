"""Shards of a generation by fairseq-generate, merged, equal the single run."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import fairseq_cli.generate
import pytest
import torch
from fairseq import options
from helpers import task_files as files
from helpers.small_disk import disk_of, held_elsewhere

from ofa_exit.cli import merge
from ofa_exit.evaluation.figures.table import SUMMARY, read_run

# 11 rows in batches of 4: no multiple of the batch, nor of the shards.
CAPTION = "--beam 3 --scoring coco_caption --coco-tokenizer plain"
SIMILARITY = (
    "--exit-policy similarity --exit-image-threshold 0.9 --exit-text-threshold 0.9 "
    "--exit-decoder-threshold 0.9"
)
# Task → shards, options of search and scoring, and of exits.
RUNS = {
    "mue_caption": (2, CAPTION.split(), [*SIMILARITY.split(), "--reference-layers", "8,9"]),
    "mue_snli_ve": (
        3,
        ["--scoring", "accuracy"],
        ["--exit-policy", "static", "--exit-depths", "3,2,4"],
    ),
}


def generate(task, data, checkpoint, folder: Path, *more: str) -> Path:
    """fairseq-generate with its results, trace and all that it prints in ``folder``."""
    folder.mkdir(parents=True)
    arguments = files.generate_arguments(task, data, checkpoint, "--results-path", str(folder))
    arguments += ["--exit-trace", str(folder / "trace.jsonl"), *more]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        files.run(options.get_generation_parser(), fairseq_cli.generate.main, arguments)
    (folder / "log.txt").write_text(printed.getvalue())
    return folder


@pytest.fixture(scope="module", params=RUNS)
def made(request, tmp_path_factory):
    """Task, data and checkpoint."""
    task, tmp_path = request.param, tmp_path_factory.mktemp("made")
    make = files.caption_folder if task == "mue_caption" else files.entailment_folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        data = make(tmp_path / "data")
        return task, data, files.train(task, data, tmp_path / "model", updates=2)


def generate_shard(task, data, checkpoint, folder: Path, shard: int, *more: str) -> Path:
    count, scoring, exits = RUNS[task]
    return generate(
        *(task, data, checkpoint, folder, *scoring, *exits),
        *("--num-shards", str(count), "--shard-id", str(shard), *more),
    )


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    """Task, the folder of a single run, and those of its shards."""
    tmp_path = tmp_path_factory.mktemp("merge")
    count, scoring, exits = RUNS[made[0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        single = generate(*made, tmp_path / "single", *scoring, *exits)
        shards = [generate_shard(*made, tmp_path / f"shard{n}", n) for n in range(count)]
    return made[0], single, shards


def scoring(task: str) -> list[str]:
    """The scorer's options alone."""
    given = RUNS[task][1]
    return given[given.index("--scoring") :]


def lines(folder: Path) -> list[str]:
    """What was generated, without what fairseq logs into the same file."""
    text = (folder / "generate-test.txt").read_text().splitlines()
    return [line for line in text if line[1:2] == "-" or line.startswith("Generate ")]


def summary(folder: Path) -> dict[str, float]:
    log = (folder / "log.txt").read_text().splitlines()
    (found,) = [json.loads(one[1]) for line in log if (one := SUMMARY.match(line))]
    return {name: value for name, value in found.items() if not name.startswith("seconds")}


def test_shards_merged_are_the_single_run(runs, tmp_path, capsys):
    task, single, shards = runs
    folders = list(map(str, reversed(shards)))
    out = tmp_path / "whole"
    arguments = [str(out), *folders, *scoring(task), "--trace", "trace.jsonl"]
    assert merge.main(arguments) == 0
    printed = capsys.readouterr().out
    assert lines(out) == lines(single)
    assert len([line for line in lines(out) if line.startswith("D-")]) == 11
    assert (out / "trace.jsonl").read_bytes() == (single / "trace.jsonl").read_bytes()
    found, alone = summary(out), summary(single)
    reference = "8+9" if task == "mue_caption" else None
    assert found.pop("reference_layers", None) == alone.pop("reference_layers", None) == reference
    assert found == pytest.approx(alone, rel=1e-12)
    assert 0 < found["expected_time_reduction"] < 1
    assert lines(out)[-1] in printed and "mean decoder layers" in printed
    # Commands that read a single run's folder read this one.
    values, expected = read_run(out), read_run(single)
    quality = "CIDEr" if task == "mue_caption" else "accuracy"
    assert values[quality] == expected[quality]
    assert values["seconds"] == pytest.approx(sum(read_run(one)["seconds"] for one in shards))
    # A mean of the shards' scores differs: document frequencies, sizes.
    parts = [read_run(folder)[quality] for folder in shards]
    assert values[quality] != pytest.approx(sum(parts) / len(parts), abs=1e-3)

    assert merge.main(arguments) == 2
    assert "generate-test.txt" in capsys.readouterr().err


def test_without_a_scorer_nothing_is_scored(runs, tmp_path, capsys):
    _, single, shards = runs
    assert merge.main([str(tmp_path / "whole"), *map(str, shards)]) == 0
    assert lines(tmp_path / "whole")[:-1] == lines(single)[:-1]
    assert lines(tmp_path / "whole")[-1].endswith(": not scored")


@pytest.fixture
def copies(runs, tmp_path):
    """Copies of the shards, to damage."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in runs[2]]


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def missing(folders):
    del folders[0]
    return "--num-shards"


def repeated(folders):
    folders[1] = folders[0]
    return "shard 0"


def overlapping(folders):
    """Row 4 is the first of shard 1; it says that it is row 3, which is in shard 0."""
    path = folders[1] / "generate-test.txt"
    text, changed = re.subn(r"^([A-Z])-4\t", r"\1-3\t", path.read_text(), flags=re.MULTILINE)
    assert changed == 5
    path.write_text(text)
    return r"row 3\b"


def other_batches(folders):
    replace(folders[0] / "log.txt", '"rows": ', '"rows": 1')
    return "--batch-size"


def other_exits(folders):
    replace(folders[1] / "log.txt", '"--exit-policy": "s', '"--exit-policy": "a s')
    return r"--exit-policy.*\bs"


def older(folders):
    replace(folders[1] / "log.txt", '"run": ', '"exits": ')
    return r"log\.txt.*Exit shard"


def other_number(folders):
    replace(folders[1] / "log.txt", '"of": ', '"of": 1')
    return r"\b1[23]\b"


def torn(folders):
    text = (folders[1] / "generate-test.txt").read_text()
    (folders[1] / "generate-test.txt").write_text(text[: text.index("Generate ")])
    return r"generate-test\.txt"


def quiet(folders):
    text = (folders[1] / "generate-test.txt").read_text().splitlines(keepends=True)
    (folders[1] / "generate-test.txt").write_text("".join(one for one in text if one[1:2] != "-"))
    return "--quiet"


def no_log(folders):
    (folders[1] / "log.txt").unlink()
    return r"log\.txt"


def one_folder(folders):
    shutil.copy(folders[1] / "generate-test.txt", folders[1] / "generate-valid.txt")
    return "shard1"


def short_trace(folders):
    text = (folders[0] / "trace.jsonl").read_bytes()
    (folders[0] / "trace.jsonl").write_bytes(text[: text.rindex(b"\n{") + 1])
    return r"trace\.jsonl"


SPOILED = [missing, repeated, overlapping, other_batches, other_exits, other_number, torn, quiet]


def swapped_traces(folders):
    """Of the same number of lines."""
    first, second = (folder / "trace.jsonl" for folder in folders[:2])
    lines = [file.read_bytes().splitlines(keepends=True) for file in (first, second)]
    first.write_bytes(b"".join([*lines[1], *lines[0]][: len(lines[0])]))
    return r"trace\.jsonl is not the trace that .*log.txt reports"


def changed_trace(folders):
    text = (folders[1] / "trace.jsonl").read_bytes()
    (folders[1] / "trace.jsonl").write_bytes(
        text.replace(b'"image_layers": ', b'"image_layers": 1')
    )
    return r"trace\.jsonl is not the trace that .*log.txt reports"


def log_without_a_trace(folders):
    log = folders[0] / "log.txt"
    log.write_text(re.sub(r', "trace": "\w+"', "", log.read_text()))
    return r"names no trace, so that .*trace\.jsonl may be of another generation"


SPOILED += [no_log, one_folder, short_trace, older, swapped_traces, changed_trace]
SPOILED += [log_without_a_trace]


@pytest.mark.parametrize("spoil", SPOILED)
def test_incomplete_or_mixed_shards_are_named(copies, spoil, tmp_path, capsys):
    message = spoil(copies)
    folders = list(map(str, copies))
    out = tmp_path / "out"
    assert merge.main([str(out), *folders, "--trace", "trace.jsonl"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    if spoil not in (missing, other_batches):  # which have no one folder to name
        assert any(folder in error for folder in folders)
    assert not list(out.glob("*"))


def test_a_full_disk_is_one_line_and_leaves_no_result(runs, tmp_path, capsys):
    out, folders = tmp_path / "out", list(map(str, runs[2]))
    size = (runs[1] / "generate-test.txt").stat().st_size
    with disk_of(size // 2):
        assert merge.main([str(out), *folders, "--trace", "trace.jsonl"]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"{out}/\S+ cannot be written: File too large", error)
    assert not list(out.glob("generate-*")) and not list(out.glob(".*"))
    assert merge.main([str(out), *folders]) == 0


def test_a_second_merge_into_the_same_folder_is_rejected(runs, tmp_path, capsys):
    out = tmp_path / "out"
    with held_elsewhere(out / ".generate-test.lock"):
        assert merge.main([str(out), *map(str, runs[2])]) == 2
        assert "generate-test.txt: another process writes it" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == [".generate-test.lock"]


def without_references(folders, cut):
    """What a split without references leaves: no T- lines and no result."""
    path = folders[1] / "generate-test.txt"
    kept = [one for one in path.read_text().splitlines(True) if one[:2] in ("S-", "H-", "D-", "P-")]
    path.write_text("".join(kept)[:-cut] if cut else "".join(kept))
    return path


@pytest.mark.parametrize("cut", [1, 20])
def test_a_row_without_its_end_is_named(copies, cut, tmp_path, capsys):
    path = without_references(copies, cut)
    assert merge.main([str(tmp_path / "out"), *map(str, copies)]) == 2
    assert re.search(rf"{path} ends within row \d+\. Generate", capsys.readouterr().err)


def test_rows_without_references_are_merged(copies, tmp_path):
    without_references(copies, 0)
    assert merge.main([str(tmp_path / "out"), *map(str, copies)]) == 0


def other_checkpoint(data, checkpoint, folder):
    """The same file except for one weight."""
    state = torch.load(checkpoint)
    state["model"]["decoder.layer_norm.weight"][0] += 1e-3
    torch.save(state, folder / "other.pt")
    return data, folder / "other.pt"


def other_data(data, checkpoint, folder):
    """The same number of bytes, one other word."""
    copied = Path(shutil.copytree(data, folder / "copied"))
    replace(copied / "test.tsv", "red", "tan")
    return copied, checkpoint


def with_options(*given):
    return lambda data, checkpoint, folder: (data, checkpoint, *given)


DIFFERENT = {
    "checkpoints: ": other_checkpoint,
    "data: ": other_data,
    r"--model-overrides.*\{\}.*\{'attn_scale_factor': 3\.0\}": with_options(
        "--model-overrides", "{'attn_scale_factor': 3.0}"
    ),
    r"--lenpen.*2\.0": with_options("--lenpen", "2"),
    r"--no-repeat-ngram-size.*2": with_options("--no-repeat-ngram-size", "2"),
    r"--exit-decoder-threshold.*0\.9.*0\.8": with_options("--exit-decoder-threshold", "0.8"),
    r"--reference-layers.*8,9.*6,6": with_options("--reference-layers", "6,6"),
    r"--seed.*7": with_options("--sampling", "--nbest", "3", "--seed", "7"),
    "beam": with_options("--beam", "2"),
    r"--patch-image-size.*32.*48": with_options(
        *("--patch-image-size", "48", "--model-overrides", "{'patch_image_size': 48}")
    ),
}


@pytest.mark.parametrize("made", ["mue_caption"], indirect=True)
@pytest.mark.parametrize("message", DIFFERENT)
def test_shards_of_different_generations_are_rejected(message, made, runs, tmp_path, capsys):
    task, data, checkpoint = made
    given = DIFFERENT[message](data, checkpoint, tmp_path)
    folder = generate_shard(task, *given[:2], tmp_path / "shard1", 1, *given[2:])
    assert merge.main([str(tmp_path / "out"), str(runs[2][0]), str(folder)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and str(folder) in error
    if message == "checkpoints: ":
        assert f"{checkpoint} (sha256 " in error and f"{given[1]} (sha256 " in error
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("made", ["mue_caption"], indirect=True)
def test_copies_are_the_same_checkpoint_and_data(made, runs, tmp_path):
    """Machines may keep their own copies under other paths."""
    task, data, checkpoint = made
    copied = Path(shutil.copytree(data, tmp_path / "copied"))  # keeps times
    shutil.copy(checkpoint, tmp_path / "copy.pt")
    folder = generate_shard(task, copied, tmp_path / "copy.pt", tmp_path / "shard1", 1)
    assert merge.main([str(tmp_path / "out"), str(runs[2][0]), str(folder)]) == 0
    assert lines(tmp_path / "out")[:-1] == lines(runs[1])[:-1]


def test_a_shard_without_rows_is_rejected(tmp_path):
    data = files.caption_folder(tmp_path / "data")
    task = files.setup("mue_caption", data, num_shards=5, shard_id=4)
    with pytest.raises(ValueError, match=r"\b3 batches"):
        files.generate_rows(task, [])
