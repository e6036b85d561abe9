"""Values that no generation can use, and commands that do not fit, are rejected at once."""

from __future__ import annotations

import json
from argparse import Namespace

import fairseq_cli.interactive
import pytest
from helpers import task_files as files

from ofa_exit.plugin.command_options import OFFICIAL_OPTIONS, check_precision
from ofa_exit.plugin.errors import UsageError

TASK = "mue_caption"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return files.caption_folder(tmp_path_factory.mktemp("options"))


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        folder = tmp_path_factory.mktemp("checkpoint")
        return files.train(TASK, data, folder, "--disable-validation", updates=1)


@pytest.fixture
def unread(monkeypatch):
    """Whatever reads weights fails."""
    monkeypatch.setattr("fairseq.checkpoint_utils.load_model_ensemble", None)


NUMBERS = [
    (["--min-len", "7"], r"--min-len is 7, above --max-len-b 6: lower it"),
    (["--max-len-b", "0"], r"--max-len-b is 0: give at least 1"),
    (["--max-len-b", "-3"], r"--max-len-b is -3: give at least 0"),
    (["--max-len-a", "-1"], r"--max-len-a is -1\.0: give at least 0"),
    (["--max-len-a", "inf"], r"--max-len-a is inf: give a finite number"),
    (["--nbest", "6"], r"--nbest is 6, but a beam of 5 finds 5 hypotheses: raise --beam"),
    (["--nbest", "0"], r"--nbest is 0: give at least 1"),
    (["--beam", "0"], r"--beam is 0: give at least 1"),
    (["--beam", "-5"], r"--beam is -5: give at least 1"),
    (["--min-len", "-1"], r"--min-len is -1: give at least 0"),
    (["--no-repeat-ngram-size", "-3"], r"--no-repeat-ngram-size is -3: give at least 0"),
    (["--prefix-size", "-1"], r"--prefix-size is -1: give at least 0"),
    (["--lenpen", "nan"], r"--lenpen is nan: give a finite number"),
    (["--unkpen", "inf"], r"--unkpen is inf: give a finite number"),
    (["--temperature", "0"], r"--temperature is 0\.0: give more than 0"),
    (
        ["--sampling", "--nbest", "5", "--sampling-topk", "0"],
        r"--sampling-topk is 0: give at least 1",
    ),
    (
        ["--sampling", "--nbest", "5", "--sampling-topp", "1.5"],
        r"--sampling-topp is 1\.5: give at most 1",
    ),
    (["--batch-size", "0"], r"--batch-size is 0: give at least 1"),
    (["--batch-size", "-4"], r"--batch-size is -4: give at least 1"),
    (["--max-tokens", "-1"], r"--max-tokens is -1: give at least 1"),
    (["--num-workers", "-1"], r"--num-workers is -1: give at least 0"),
    (["--num-shards", "0"], r"--num-shards is 0: give at least 1"),
    (["--max-image-pixels", "0"], r"--max-image-pixels is 0: give at least 1"),
]


@pytest.mark.parametrize(("more", "message"), NUMBERS)
def test_generation_rejects_it_before_weights_are_read(data, checkpoint, more, message, unread):
    with pytest.raises(UsageError, match=message):
        files.generate(TASK, data / "test.tsv", checkpoint, *more)


@pytest.mark.parametrize(
    "more",
    [
        ["--min-len", "6", "--nbest", "5"],
        ["--max-len-b", "0", "--max-len-a", "1", "--min-len", "2"],
        ["--score-reference", "--max-len-b", "0"],
    ],
)
def test_the_limits_themselves_run(data, checkpoint, more):
    found = files.generate(TASK, data / "test.tsv", checkpoint, *more)["H"]
    assert len(found) == 11
    if "--nbest" in more:
        assert {len(hyps) for hyps in found.values()} == {5}
        assert {len(words.split()) for hyps in found.values() for _, words in hyps} == {6}


def test_candidates_have_no_beam(tmp_path):
    """Entailment has three answers; --nbest is compared with them, not with a beam."""
    data = files.entailment_folder(tmp_path / "data")
    path = files.train("mue_snli_ve", data, tmp_path / "run", "--disable-validation", updates=1)
    found = files.generate("mue_snli_ve", data / "test.tsv", path, "--nbest", "3")["H"]
    assert {len(hyps) for hyps in found.values()} == {3}
    with pytest.raises(UsageError, match="--nbest is 0: give at least 1"):
        files.generate("mue_snli_ve", data / "test.tsv", path, "--nbest", "0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_len": 30}, "--eval-args: min_len is 30, above --eval-args: max_len_b 20"),
        ({"beam": 2, "nbest": 3}, "--eval-args: nbest is 3, but a beam of 2"),
        ({"lenpen": float("nan")}, "--eval-args: lenpen is nan: give a finite number"),
        ({"beam": "5"}, "--eval-args: beam is '5': give a number"),
        ({"max_len_b": 0}, "--eval-args: max_len_b is 0: give at least 1"),
    ],
)
def test_options_of_validation_as_json(data, options, message):
    with pytest.raises(UsageError, match=message):
        files.setup(TASK, data, eval_cider=True, eval_args=json.dumps(options))


# ------------------------------------------------------------------ --exit-trace


def test_a_file_that_is_no_trace_is_not_overwritten(data, checkpoint, tmp_path, unread):
    path = tmp_path / "other.pt"
    path.write_bytes(checkpoint.read_bytes())
    for victim in (path, data / "test.tsv", data / "dict.txt"):
        before = victim.read_bytes()
        with pytest.raises(UsageError, match="is also an input, which would be overwritten"):
            files.generate(TASK, data / "test.tsv", path, "--exit-trace", str(victim))
        assert victim.read_bytes() == before


def test_the_traces_of_further_models_are_checked(data, checkpoint, tmp_path, unread):
    (tmp_path / "trace.jsonl.2").write_text("my notes\n")
    pair, trace = f"{checkpoint}:{checkpoint}", str(tmp_path / "trace.jsonl")
    with pytest.raises(UsageError, match=r"trace\.jsonl\.2' exists and is no exit trace"):
        files.generate(TASK, data / "test.tsv", pair, "--exit-trace", trace)


def test_a_trace_is_written_again(data, checkpoint, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.touch()
    for _ in range(2):
        policy = ["--exit-policy", "similarity", "--exit-trace", str(trace)]
        files.generate(TASK, data / "test.tsv", checkpoint, *policy)
        assert len(trace.read_text().splitlines()) == 11


# ------------------------------------------------------------------ commands and scripts


@pytest.mark.parametrize("more", [[], ["--task", TASK], ["--task", TASK, "--help"]])
def test_interactive_names_what_to_use(data, more, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fairseq-interactive", str(data), "--path", "m.pt", *more])
    with pytest.raises(UsageError, match="ofa-exit predict TASK IMAGE"):
        fairseq_cli.interactive.cli_main()


@pytest.mark.parametrize("option", OFFICIAL_OPTIONS)
def test_options_of_ofas_scripts_name_what_to_use(data, option, tmp_path):
    with pytest.raises(UsageError, match=f"^OFA's option {option} is unsupported: "):
        files.train(TASK, data, tmp_path, f"{option}=1")


def test_a_larger_image_can_be_allowed(data, checkpoint, tmp_path):
    row = files.caption_row(0, image=files.image_field("red", side=20))
    path = files.write_tsv(tmp_path / "large.tsv", [row])
    more = ["--bpe-dir", str(data), "--max-image-pixels"]
    with pytest.raises(UsageError, match=r"20x20 pixels, more than 399.*--max-image-pixels"):
        files.generate(TASK, path, checkpoint, *more, "399")
    assert len(files.generate(TASK, path, checkpoint, *more, "400")["H"]) == 1


def test_training_in_half_precision_on_a_cpu_is_rejected(data, tmp_path):
    with pytest.raises(
        UsageError, match=r"--fp16 trains on CUDA only\. .* --memory-efficient-fp16"
    ):
        files.train(TASK, data, tmp_path, "--fp16")


@pytest.mark.parametrize("has_cuda", [True, False])
@pytest.mark.parametrize(
    "given", [{}, {"memory_efficient_fp16": True}, {"fp16_no_flatten_grads": True}, {"cpu": True}]
)
def test_half_precision_trains_on_cuda_or_with_separate_weights(monkeypatch, has_cuda, given):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_cuda)
    common = {"fp16": True, "cpu": False, "memory_efficient_fp16": False}
    common = Namespace(**{**common, "fp16_no_flatten_grads": False, **given})
    if (not has_cuda or "cpu" in given) and not given.keys() - {"cpu"}:
        with pytest.raises(ValueError, match="--fp16 trains on CUDA only"):
            check_precision(common)
    else:
        check_precision(common)
