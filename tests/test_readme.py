"""README and docs stay true: the sample runs; commands, options, verbs and links exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from fairseq import options
from helpers.paths import ROOT
from helpers.small_models import batch, generate, nano, select

import ofa_exit.plugin  # noqa: F401 (tasks and criterions)
from ofa_exit.cli.predict import TASKS as PREDICTED
from ofa_exit.cli.predict import build_parser
from ofa_exit.cli.predict.run import add_exits
from ofa_exit.policies.registry import POLICIES, build_policy

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    [
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").glob("*/README.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")),
    ]
)
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
TASKS = ("mue_caption", "mue_snli_ve", "mue_vqa", "mue_visdial")
CRITERIONS = (
    *("mue_loss", "blipee_adversarial", "mue_scst", "adjust_label_smoothed_encouraging_loss"),
    *("multi_exit_loss", "exit_heads_loss", "leebert_loss", "deecap_loss", "calm_meta_loss"),
)
TRAINING = ("--arch", "ofa_nano", "--lr-scheduler", "polynomial_decay")
OF_THE_SAMPLE = {"--exit-agree"}


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """Commands of the bash blocks that are written out in full."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if "…" not in line and (words := shlex.split(line, comments=True)):
                yield words


# ------------------------------------------------------------------ the sample policy


@torch.no_grad()
def test_sample_policy_runs_in_any_batch(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 20
    module = types.ModuleType("my_exits")
    monkeypatch.setitem(sys.modules, "my_exits", module)
    try:
        exec(code, vars(module))
        policy = build_policy("agreement", agree=2)
    finally:
        POLICIES.pop("agreement", None)
    model = nano()
    model.configure_exits(policy)
    net_input = batch(3)
    tokens, depths = generated(model, net_input)
    used = {layers for sentence in depths for hypothesis in sentence for layers in hypothesis}
    # The first layer has nothing to agree with, so two agreements need three layers.
    assert 3 <= min(used) < 6
    assert model.last_trace.image_layers.tolist() == [6, 6, 0]  # row 2 has no image
    for row in range(3):
        alone, depths_alone = generated(model, select(net_input, row))
        assert alone == [tokens[row]] and depths_alone == [depths[row]]


def generated(model, net_input):
    """Tokens and decoder layers of every hypothesis of every sentence."""
    tokens = [
        [hypothesis["tokens"].tolist() for hypothesis in hyps]
        for hyps in generate(model, net_input)
    ]
    return tokens, model.last_trace.depths(tokens)


# ------------------------------------------------------------------ options, commands, verbs


@pytest.fixture(scope="module")
def known_options() -> set[str]:
    """Every option in the help of training, generation and prediction, over all tasks."""
    cases = [
        (options.get_training_parser, task, [*TRAINING, "--criterion", criterion])
        for task in TASKS
        for criterion in CRITERIONS
    ]
    cases += [(options.get_generation_parser, task, []) for task in TASKS]
    printed = io.StringIO()
    for make_parser, task, others in cases:
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as end:
            options.parse_args_and_arch(make_parser(), ["data", "--task", task, *others, "--help"])
        assert not end.value.code
    for task in PREDICTED:
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
            build_parser().parse_args([task, "--help"])
    return set(re.findall(r"--[a-z0-9-]+", printed.getvalue()))


@pytest.mark.parametrize("page", TEXTS)
def test_documented_options_exist(page, known_options):
    """Options of the first column of tables, and every --exit-… option."""
    text = TEXTS[page]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `--")]
    named = {option for row in rows for option in re.findall(r"`(--[a-z0-9-]+)", row)}
    named |= set(re.findall(r"--exit-[a-z0-9-]+(?![a-z0-9…-])", text))
    assert named - OF_THE_SAMPLE - known_options == set()


@pytest.mark.parametrize("page", ["README.md", "docs/predict.md", "docs/own_data.md"])
def test_commands_are_accepted(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    parsers = {
        "fairseq-train": options.get_training_parser,
        "fairseq-generate": options.get_generation_parser,
    }
    found = []
    for program, *arguments in commands(TEXTS[page]):
        if program == "ofa-exit" and arguments[0] == "predict":
            found.append((program, build_parser(add_exits).parse_args(arguments[1:]).task))
            continue
        if program == "ofa-exit" and arguments[0] != "sweep":  # run by test_own_data_page
            assert page == "docs/own_data.md" and arguments[0] in ("tsv", "dict", "check")
            continue
        if program == "ofa-exit":
            _, grid, _, *arguments = arguments
            assert (ROOT / grid).is_file()
            program = "fairseq-generate"
        monkeypatch.setattr("sys.argv", [program, *arguments])
        args = options.parse_args_and_arch(parsers[program](), arguments)
        found.append((program, args.task))
    if page == "README.md":
        assert found == [
            *[("ofa-exit", "caption")] * 2,
            ("fairseq-train", "mue_caption"),
            *[("fairseq-generate", "mue_caption")] * 2,
        ]
    assert len(found) >= 3


@pytest.mark.parametrize("page", TEXTS)
def test_documented_verbs_and_scripts_exist(page):
    from ofa_exit.cli.main import VERBS

    code = "\n".join(re.findall(r"```.*?```|`[^`]+`", TEXTS[page], re.DOTALL))
    verbs = set(re.findall(r"(?:`|\(|^)ofa-exit ([a-z][a-z-]*)", code, re.MULTILINE))
    assert verbs <= VERBS.keys()
    for path in re.findall(r"\brun_scripts/[a-z_/]+\.(?:sh|json)\b", TEXTS[page]):
        assert (ROOT / path).is_file(), path
    for name in re.findall(r"\brun_scripts/NAME/([a-z_]+\.sh)\b", TEXTS[page]):
        assert (ROOT / "run_scripts" / "vqa" / name).is_file(), name


# ------------------------------------------------------------------ links and form


def test_paths_of_the_change_table_exist():
    table = README.partition("## To change X")[2].partition("\n## ")[0]
    paths = [path for path in re.findall(r"`(\w+/[\w./]+)`", table) if "NAME" not in path]
    assert len(paths) >= 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def anchors(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(TEXTS[page])):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", TEXTS)
def test_lines_are_wrapped(page):
    lines = without_code(TEXTS[page]).splitlines()
    limits = [120 if line.startswith("|") else 100 for line in lines]
    assert [line for line, limit in zip(lines, limits) if len(line) > limit] == []
