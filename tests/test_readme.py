"""README stays true: its policy runs, and the options that it names exist."""

from __future__ import annotations

import re
import sys
import types

import pytest
import torch
from fairseq import options
from helpers.paths import ROOT
from helpers.small_models import batch, generate, nano

from ofa_exit.policies.registry import POLICIES, build_policy

README = (ROOT / "README.md").read_text(encoding="utf-8")


@torch.no_grad()
def test_the_policy_in_readme_runs(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    module = types.ModuleType("my_exits")
    monkeypatch.setitem(sys.modules, "my_exits", module)
    try:
        exec(code, vars(module))
        policy = build_policy("norm", share=0.8)
    finally:
        POLICIES.pop("norm", None)
    model = nano()
    model.configure_exits(policy)
    hypotheses = generate(model, batch(3))
    tokens = [[h["tokens"].tolist() for h in of] for of in hypotheses]
    depths = {d for of in model.last_trace.depths(tokens) for h in of for d in h}
    assert min(depths) < 6 and model.last_trace.image_layers.max() == 6


@pytest.mark.parametrize("task", ["mue_caption", "mue_snli_ve"])
def test_options_in_readme_exist(task, monkeypatch, capsys):
    """Every option of the tables is in the help of training or of generation."""
    tables = "\n".join(line for line in README.splitlines() if line.startswith("| `--"))
    named = set(re.findall(r"`(--[a-z0-9-]+)", tables))
    known: set[str] = set()
    for parser, arguments in (
        *(
            (options.get_training_parser(), ["--arch", "ofa_nano", "--criterion", criterion])
            for criterion in ("mue_loss", "blipee_adversarial")
        ),
        (options.get_generation_parser(), []),
    ):
        full = ["data", "--task", task, *arguments]
        with pytest.raises(SystemExit):
            options.parse_args_and_arch(parser, [*full, "--help"])
        known |= set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    missing = named - known
    other = {"--eval-cider", "--eval-bleu"} if task == "mue_snli_ve" else {"--eval-acc"}
    other |= {"--prompt-type", "--add-caption"} if task == "mue_caption" else set()
    assert missing <= other
