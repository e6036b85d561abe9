"""OFA's scripts: each option that docs/checkpoints.md calls the same runs, on miniatures."""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import re

import fairseq_cli.generate
import fairseq_cli.train
import pytest
import torch
from fairseq import options
from helpers import task_files as files
from helpers.official_recipes import EVALUATIONS, TRAININGS, recipe
from helpers.paths import ROOT
from helpers.vqa_samples import WORDS, row

from ofa_exit.cli.document_frequencies import main as count_frequencies
from ofa_exit.plugin.command_options import OFFICIAL_NAMES, OFFICIAL_OPTIONS
from ofa_exit.plugin.errors import UsageError

KINDS = ("same", "renamed", "unsupported")
EMBEDDING = "encoder.embed_tokens.weight"
COLUMNS = {"caption": "0,4,2", "snli_ve": "0,2,3,4,5", "vqa": "0,5,2,3,4"}
# What the notes of the table add or rename, and what makes a miniature.
SMALL = [*files.NANO[2:], "--code-dict-size=0", "--cpu"]
ADDED = {
    "caption2": ["--criterion=mue_scst", "--scst-baseline=mean"],
    "snli_ve": ["--eval-acc"],
    "vqa": ["--eval-acc"],
    "vqa_base": ["--eval-acc"],
}


def task_of(script: str) -> str:
    return next(task for task in COLUMNS if task in script)


def table() -> dict[str, dict[str, set[str]]]:
    """Options by what they are here and by script."""
    page = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    found: dict = {kind: collections.defaultdict(set) for kind in KINDS}
    for line in page.partition("## Options of OFA's scripts")[2].splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) < 4 or cells[0] in ("here", "---"):
            continue
        for script in cells[2].split(", "):
            scripts = {"train": TRAININGS, "evaluate": EVALUATIONS}.get(script, [script])
            for one in scripts:
                found[cells[0]][one] |= set(re.findall(r"`(--[\w-]+)", cells[1]))
    return found


def options_of(arguments: list[str]) -> set[str]:
    return {word.split("=")[0] for word in arguments if word.startswith("--")}


@pytest.mark.parametrize("script", [*TRAININGS, *EVALUATIONS])
def test_every_option_that_is_the_same_is_run(script):
    values = dict.fromkeys(
        ("cols", "data", "user_dir", "checkpoint", "out", "answers", "inference"), "x"
    )
    arguments = recipe(script, **values, split="test", overrides="{}")
    assert options_of(arguments) == table()["same"][script]


def test_every_option_without_a_counterpart_is_rejected():
    found = table()
    others = set().union(*found["renamed"].values(), *found["unsupported"].values())
    assert others - OFFICIAL_NAMES.keys() == OFFICIAL_OPTIONS.keys()
    for kind in KINDS:
        assert set(found[kind]) <= {*TRAININGS, *EVALUATIONS, "mue"}


def documented_names():
    page = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    yield from (("--task", official) for official in OFFICIAL_NAMES["--task"])
    yield from (
        ("--criterion", name) for name in re.findall(r"renamed \| `--criterion (\w+)`", page)
    )


@pytest.mark.parametrize(("option", "name"), documented_names())
def test_names_of_ofas_scripts_name_what_to_use(option, name, capsys):
    parsers = (options.get_training_parser, options.get_generation_parser)
    for parser in parsers[: 1 if option == "--criterion" else 2]:
        with pytest.raises(UsageError, match=f"{option} {name} is unknown: use .*mue_"):
            options.parse_args_and_arch(parser(), ["data", f"{option}={name}"])
    assert capsys.readouterr().err == ""  # no usage


def test_other_names_are_rejected_on_one_line(capsys):
    for given, message in (
        (["--task", "refcoco"], "the tasks are mue_caption, "),
        (["--task", "mue_captions"], "use mue_caption"),
        (["--criterion", "mue_los"], "use mue_loss"),
        (["--criterion", "clip_scst_reward_criterion"], "add --help"),
    ):
        with pytest.raises(UsageError, match=f"{given[1]} is unknown: {message}"):
            options.parse_args_and_arch(options.get_training_parser(), ["data", *given])
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------ miniatures


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data of each task; official names of the answers' pickle and of the splits."""
    root = tmp_path_factory.mktemp("official")
    vqa = files.write_dictionary(root / "vqa", (*WORDS, "object:"))
    for name, kind in (("train", "train"), ("valid", "valid"), ("test", "valid")):
        rows = [row(number, kind) for number in range(12)]
        for number, fields in enumerate(rows):
            fields[4] = f"{files.COLOURS[number % 6]}&&square"
        files.write_tsv(vqa / f"{name}.tsv", rows)
    labels = {answer: number for number, answer in enumerate((*files.COLOURS, "dark", "no"))}
    (vqa / "trainval_ans2label.pkl").write_bytes(pickle.dumps(labels))
    caption = files.caption_folder(root / "caption")
    assert count_frequencies([str(caption / "train.tsv"), str(root / "df.npz")]) == 0
    return {"caption": caption, "snli_ve": files.entailment_folder(root / "snli_ve"), "vqa": vqa}


@pytest.fixture(scope="module")
def started(folders, tmp_path_factory):
    """The checkpoint that each task starts from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        return {
            task: files.train(
                *(f"mue_{task}", folder, tmp_path_factory.mktemp(task), "--disable-validation"),
                updates=2,
            )
            for task, folder in folders.items()
        }


def trained(script, folders, started, out, **values):
    """Run a training script; its checkpoint."""
    task = task_of(script)
    folder = folders[task]
    arguments = recipe(
        script,
        cols="1,4,2" if script == "caption2" else COLUMNS[task],
        data=folder,
        user_dir=ROOT / "user_dir",
        checkpoint=started[task],
        out=out,
        answers=folder / "trainval_ans2label.pkl",
        **values,
    )
    if script == "caption2":
        arguments.append(f"--cider-frequencies={folder.parent / 'df.npz'}")
    arguments = [
        *[f"{folder}/train.tsv,{folder}/valid.tsv", f"--task=mue_{task}", *arguments],
        *[*ADDED.get(script, ()), *SMALL],
    ]
    # The parser takes --fp16, but only CUDA runs it.
    assert options.parse_args_and_arch(options.get_training_parser(), arguments).arch == "ofa_nano"
    arguments = [word for word in arguments if word != "--fp16"]
    vars(files.checkpoint_utils.save_checkpoint).pop("best", None)
    files.run(options.get_training_parser(), fairseq_cli.train.main, arguments)
    return out / "checkpoint_last.pt"


def evaluated(script, folders, checkpoint, out, *more, split="test"):
    """Run an evaluation script; the hypotheses with their scores."""
    task = task_of(script)
    folder = folders[task]
    overrides = {"data": str(folder), "bpe_dir": str(folder), "selected_cols": COLUMNS[task]}
    if task == "caption":
        overrides["eval_cider"] = False
    if task == "vqa":
        overrides["ans2label_file"] = str(folder / "trainval_ans2label.pkl")
    arguments = [
        *[str(folder / "test.tsv"), f"--task=mue_{task}"],
        *recipe(
            script,
            cols=COLUMNS[task],
            data=folder,
            user_dir=ROOT / "user_dir",
            checkpoint=checkpoint,
            out=out,
            split=split,
            overrides=overrides,
        ),
        *["--patch-image-size=32", "--code-dict-size=0", "--num-bins=0", "--cpu", *more],
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        files.run(options.get_generation_parser(), fairseq_cli.generate.main, arguments)
    lines = (out / f"generate-{split}.txt").read_text().splitlines()
    return sorted(line for line in lines if line.startswith("H-"))


def state(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("script", ["caption1", "caption1_el", "caption2"])
def test_captioning(script, folders, started, tmp_path):
    path = trained(script, folders, started, tmp_path)
    saved, start = state(path), state(started["caption"])
    assert saved["optimizer_history"][-1]["num_updates"] == 4  # two epochs of three batches
    assert list(tmp_path.glob("checkpoint.best_cider_*.pt"))
    for name, is_frozen in ((EMBEDDING, True), ("decoder.layers.0.fc1.weight", False)):
        before, after = (one["model"][name].half() for one in (start, saved))
        assert torch.equal(before, after) == is_frozen
    assert len(evaluated("eval_caption", folders, path, tmp_path / "results")) == 11


def test_entailment(folders, started, tmp_path):
    path = trained("snli_ve", folders, started, tmp_path)
    assert list(tmp_path.glob("checkpoint.best_snli_score_*.pt"))
    embeddings = [state(one)["model"][EMBEDDING] for one in (path, started["snli_ve"])]
    assert not torch.equal(*embeddings)  # OFA's script trains them
    found = evaluated("eval_snli_ve", folders, path, tmp_path / "out", "--add-caption", split="dev")
    assert len(found) == 11


@pytest.mark.parametrize(("script", "inference"), [("vqa", "beamsearch"), ("vqa_base", "allcand")])
def test_question_answering(script, inference, folders, started, tmp_path):
    path = trained(script, folders, started, tmp_path, inference=inference)
    saved = state(path)
    assert (tmp_path / "checkpoint_best.pt").is_file() and saved["extra_state"]["ema"]
    assert torch.equal(saved["model"][EMBEDDING], state(started["vqa"])["model"][EMBEDDING])
    more = ["--prompt-type=prev_output", "--add-object"]
    extra = saved["extra_state"]
    for evaluation in ("eval_vqa", "eval_vqa_allcand"):
        found = {}
        for name, weights in (("average", extra["ema"]), ("plain", saved["model"])):
            # Both in the place of the weights and of the average: --ema-eval changes nothing.
            state_of_one = {**saved, "model": weights, "extra_state": {**extra, "ema": weights}}
            torch.save(state_of_one, tmp_path / "one.pt")
            out = tmp_path / evaluation / name
            found[name] = evaluated(evaluation, folders, tmp_path / "one.pt", out, *more)
        hypotheses = evaluated(evaluation, folders, path, tmp_path / evaluation, *more)
        assert len(hypotheses) == 12
        assert hypotheses == found["average"] != found["plain"]
