"""Captions after a decoder prompt (--caption-prompt): training, generation and errors."""

import json
import math
from argparse import Namespace

import pytest
import torch
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import SIMILARITY, TASK, similarity

from ofa_exit.cli.document_frequencies import main as count_command
from ofa_exit.plugin.errors import UsageError

PROMPT = "a square of"
# Fixtures.
data, checkpoint, models = caption_task.data, caption_task.checkpoint, caption_task.models


def prompted(data, **options):
    return files.setup(TASK, data, caption_prompt=PROMPT, **options)


def words(task, tokens) -> list[str]:
    return [task.dictionary[token] for token in tokens.tolist()]


# ---------------------------------------------------------------------- training


def test_the_prompt_is_fed_and_gets_no_loss(data):
    task = prompted(data)
    task.load_dataset("train")
    rows = task.dataset("train")
    one = rows[0]
    assert words(task, one.prev_output) == ["<s>", *PROMPT.split(), "a", "red", "square"]
    assert words(task, one.target) == ["<pad>"] * 3 + ["a", "red", "square", "</s>"]
    assert one.prompt_length == 4 and one.references == ["a red square"]
    batch = rows.collater([rows[number] for number in range(4)])
    assert batch["ntokens"] == 4 * 4
    assert rows.size(0) == (8, 3 + task.cfg.max_tgt_length + 1)


def test_the_loss_is_that_of_the_caption_given_the_prompt(data, models):
    task = prompted(data)
    task.load_dataset("train")
    batch = task.dataset("train").collater([task.dataset("train")[0]])
    models[0].eval()
    with torch.no_grad():
        logits = models[0](**batch["net_input"])[0][0].log_softmax(-1)
        _, _, log = files.criterion(task)(models[0], batch)
    answer = batch["target"][0, 3:]
    expected = -logits[3:].gather(1, answer[:, None]).sum()
    assert log["nll_loss"].item() == pytest.approx(expected.item(), rel=1e-4)


# ---------------------------------------------------------------------- generation


def scores(task, model, net_input, row: int, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of the tokens after the prompt, in one teacher-forced pass."""
    alone = {k: v[row : row + 1] for k, v in net_input.items() if torch.is_tensor(v)}
    prefix = [task.dictionary.bos(), *task.caption_prompt.tolist()]
    alone["prev_output_tokens"] = torch.tensor([[*prefix, *tokens[:-1]]])
    with torch.no_grad():
        lprobs = model(**alone)[0][0].log_softmax(-1)[len(prefix) - 1 :]
    return lprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0]


@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("options", [{}, {"unnormalized": True}, {"lenpen": 2.0}], ids=str)
def test_hypotheses_are_captions_alone_with_their_scores(data, models, beam, options):
    task = prompted(data)
    found = files.generate_rows(task, models, batch_size=3, beam=beam, **options)
    task.load_dataset("test")
    rows = task.dataset("test")
    net_input = rows.collater([rows[number] for number in range(11)])["net_input"]
    penalty = 0 if "unnormalized" in options else options.get("lenpen", 1)
    for number, hyps in found.items():
        assert 1 <= len(hyps) <= beam
        assert [float(h["score"]) for h in hyps] == sorted(
            (float(h["score"]) for h in hyps), reverse=True
        )
        for hyp in hyps:
            tokens = hyp["tokens"].tolist()
            assert 1 < len(tokens) <= 6 + 1 and tokens[-1] == task.dictionary.eos()
            expected = scores(task, models[0], net_input, number, tokens)
            torch.testing.assert_close(hyp["positional_scores"], expected, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(
                hyp["score"], expected.sum() / len(tokens) ** penalty, atol=1e-3, rtol=1e-3
            )


def test_one_beam_is_the_greedy_caption(data, models):
    task = prompted(data)
    found = files.generate_rows(task, models, beam=1)
    task.load_dataset("test")
    batch = task.dataset("test").collater([task.dataset("test")[0]])
    net_input, eos = batch["net_input"], task.dictionary.eos()
    prev = [task.dictionary.bos(), *task.caption_prompt.tolist()]
    greedy: list[int] = []
    for _ in range(6):
        net_input["prev_output_tokens"] = torch.tensor([[*prev, *greedy]])
        with torch.no_grad():
            last = models[0](**net_input)[0][0, -1].clone()
        last[task.dictionary.pad()] = -math.inf
        if not greedy:
            last[eos] = -math.inf  # --min-len 1
        greedy.append(int(last.argmax()))
        if greedy[-1] == eos:
            break
    assert found[0][0]["tokens"].tolist()[: len(greedy)] == greedy


@pytest.mark.parametrize("exits", [{}, similarity(SIMILARITY)])
def test_prompts_do_not_depend_on_the_batch_and_are_not_traced(data, models, tmp_path, exits):
    traces = []
    for size in (1, 4):
        path = tmp_path / str(size)
        task = prompted(data, exit_trace=str(path), **exits)
        found = files.generate_rows(task, models, batch_size=size)
        task.exit_reports[0].close()
        traces.append(path.read_text())
    assert traces[0] == traces[1]
    for number, line in enumerate(traces[0].splitlines()):
        best = json.loads(line)["hypotheses"][0]
        assert best["tokens"] == found[number][0]["tokens"].tolist()
        assert len(best["layers"]) == len(best["tokens"])


def test_sampling_begins_after_the_prompt(data, models):
    options = {"beam": 3, "nbest": 3, "sampling": True, "sampling_topk": 5}
    found = files.generate_rows(prompted(data), models, **options)
    assert all(len(hyps) == 3 for hyps in found.values())


def test_step_limits_include_the_prompt(data, models):
    task = prompted(data)
    task.load_dataset("test")
    batch = task.dataset("test").collater([task.dataset("test")[n] for n in (0, 1)])
    for options, expected in (
        ({"max_len_b": 6}, 9),
        ({"max_len_a": 0.5, "max_len_b": 1}, 8),
        ({"max_len_b": 1000}, 128),  # the model's positions
    ):
        generator = task.make_generator(models, Namespace(**options))
        assert task.step_limits(generator, batch).tolist() == [expected] * 2


# ---------------------------------------------------------------------- errors and commands


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "--caption-prompt ''"), (" ", "--caption-prompt"), ("a drawing of", "'drawing'")],
)
def test_bad_prompts_are_rejected(data, prompt, message):
    with pytest.raises(UsageError, match=message):
        files.setup(TASK, data, caption_prompt=prompt)


@pytest.mark.parametrize("option", [{"prefix_size": 2}, {"match_source_len": True}])
def test_other_forced_words_are_rejected(data, models, option):
    (name,) = option
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is not supported.*prompt"):
        files.generate_rows(prompted(data), models, **option)


def test_training_validation_and_generation_through_the_commands(data, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["test"])
    more = ["--caption-prompt", PROMPT, "--eval-cider", "--eval-args", '{"beam": 2}']
    trained = files.train(TASK, data, tmp_path, *more, updates=2)
    lines = files.generate(TASK, data, trained, "--caption-prompt", PROMPT, "--beam", "5")
    assert sorted(lines["H"]) == list(range(11))
    # A checkpoint that was trained after a prompt brings it, and takes no other.
    assert files.generate(TASK, data, trained, "--beam", "5")["H"] == lines["H"]
    with pytest.raises(ValueError, match=f"--caption-prompt is a red, .*trained with {PROMPT}"):
        files.generate(TASK, data, trained, "--caption-prompt", "a red")
    assert count_command([f"{data}/train.tsv", f"{tmp_path}/df.npz"]) == 0
    frequencies = ["--cider-frequencies", str(tmp_path / "df.npz"), "--caption-prompt", PROMPT]
    with pytest.raises(UsageError, match=r"--caption-prompt: .*without a prompt"):
        files.train(TASK, data, tmp_path / "scst", "--criterion", "mue_scst", *frequencies)
