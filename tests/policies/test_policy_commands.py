"""Every policy through fairseq-generate, on captions and on a closed set of answers."""

from __future__ import annotations

import json

import pytest
from helpers import task_files as files

from ofa_exit.cli.fit_gate import main as fit_gate
from ofa_exit.policies.registry import POLICIES

# Flags of a policy under which words of untrained models exit, and the earliest layer.
CASES = {
    "static": (["--exit-depths", "6,6,3"], 3),
    "similarity": (["--exit-decoder-threshold", "1,0.1,0.1,1,0", "--exit-schedule", "static"], 2),
    "confidence": (["--exit-alpha", "1,0.2,0.2,1,0.1"], 2),
    "entropy": (["--exit-entropy", "0.9", "--exit-normalized", "--exit-active-layers", "2,5"], 2),
    "patience": (["--exit-patience", "1"], 2),
    "softmax": (["--exit-threshold", "0.1", "--exit-schedule", "calm", "--exit-tau", "2"], 1),
    "softmax_diff": (["--exit-threshold", "0.1", "--exit-schedule", "decay"], 1),
    "saturation": (["--exit-threshold", "2,0.3,2,0.2,2"], 2),
    "meta": (["--exit-threshold", "0", "--exit-active-layers", "3"], 3),
    "learned": (["--exit-gate-confidence", "1,0.1,0.1,1,0"], 2),  # and a gate
}
META = ["--criterion", "calm_meta_loss", "--exit-head", "meta", "--exit-layers", "all"]


@pytest.fixture(scope="module", params=["mue_caption", "mue_snli_ve"])
def trained(request, tmp_path_factory):
    """Task, data and a checkpoint."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    make = files.caption_folder if task == "mue_caption" else files.entailment_folder
    data = make(folder / "data")
    return task, data, files.train(task, data, folder / "run", "--disable-validation", updates=6)


@pytest.fixture(scope="module")
def trained_meta(trained, tmp_path_factory):
    """The same with a classifier for ``meta``, trained on the checkpoint."""
    task, data, start = trained
    given = [*META, "--disable-validation", "--finetune-from-model", str(start)]
    return task, data, files.train(task, data, tmp_path_factory.mktemp("meta"), *given, updates=2)


@pytest.fixture(scope="module")
def gate(trained, tmp_path_factory):
    """A gate of ``ofa-exit fit-gate`` for the checkpoint."""
    task, data, checkpoint = trained
    out = tmp_path_factory.mktemp("gate") / "gate.json"
    checkpoint = str(checkpoint)
    rows, *given = files.generate_arguments(task, data / "valid.tsv", checkpoint)
    place = given.index("--path")
    given[place : place + 2] = ["--checkpoint", checkpoint, "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        assert fit_gate([rows, *given]) == 0
    return str(out)


def test_every_policy_has_a_case():
    assert CASES.keys() == POLICIES.keys()


@pytest.mark.parametrize("policy", CASES)
def test_commands_exit_alike_in_any_batch(trained, request, policy, tmp_path):
    flags, earliest = CASES[policy]
    chosen = request.getfixturevalue("trained_meta") if policy == "meta" else trained
    if policy == "learned":
        flags = [*flags, "--exit-gate", request.getfixturevalue("gate")]
    found = []
    for batch_size in ("1", "7"):
        trace = tmp_path / f"trace{batch_size}"
        lines = files.generate(
            *(*chosen, "--batch-size", batch_size),
            *("--exit-policy", policy, "--exit-trace", str(trace)),
            *flags,
        )
        records = [json.loads(line) for line in trace.read_text().splitlines()]
        layers = {
            record["id"]: [hyp["layers"] for hyp in record["hypotheses"]] for record in records
        }
        found.append((lines["H"].keys(), layers))
        assert any("decoder" in line for line in lines["report"])
    assert found[0] == found[1]
    used = {n for hyps in layers.values() for hyp in hyps for n in hyp} - {0}
    assert min(used) == earliest
