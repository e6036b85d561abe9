"""mue_scst: the loss against slow loops, training through the real command line."""

import json
import math

import pytest
import torch
from fairseq.logging import metrics
from helpers import small_models as helpers
from helpers import task_files as files

from ofa_exit.cli.document_frequencies import main as count_command
from ofa_exit.evaluation.metrics.cider_d import CiderD, DocumentFrequencies
from ofa_exit.objectives.self_critical import advantages, sampled_targets
from ofa_exit.plugin.criterions import scst as plugin
from ofa_exit.plugin.criterions.scst import MuESCST, MuESCSTConfig

TASK = "mue_caption"


# ---------------------------------------------------------------------- the objective


def test_advantages_over_the_greedy_caption():
    rewards, greedy = torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([2.0, 2.0])
    gained, baseline = advantages(rewards, greedy)
    assert gained.tolist() == [[-1, 1], [0, 0]]
    assert baseline.tolist() == [[2, 2], [2, 2]]


def test_advantages_over_the_other_samples():
    gained, baseline = advantages(torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]]))
    assert baseline.tolist() == [[4, 3, 2], [2, 2, 2]]
    assert gained.tolist() == [[-3, 0, 3], [0, 0, 0]]
    with pytest.raises(ValueError, match="2 samples"):
        advantages(torch.ones(2, 1))


def test_a_forced_end_is_no_target():
    captions = [torch.tensor([5, 6, 7, 2]), torch.tensor([5, 2]), torch.tensor([8, 9, 2])]
    inputs, target, ntokens = sampled_targets(captions, limit=3, bos=0, pad=1)
    assert target.tolist() == [[5, 6, 7], [5, 2, 1], [8, 9, 2]]
    assert inputs.tolist() == [[0, 5, 6], [0, 5, 1], [0, 8, 9]]
    assert ntokens == 8


# ---------------------------------------------------------------------- the criterion


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Training rows with two captions each, and their document frequencies."""
    folder = files.caption_folder(tmp_path_factory.mktemp("scst"))
    files.write_tsv(folder / "train.tsv", [files.caption_row(n, 2) for n in range(12)])
    assert count_command([str(folder / "train.tsv"), str(folder / "df.npz")]) == 0
    return folder


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    """A checkpoint trained by cross-entropy on rows with one caption."""
    folder = files.caption_folder(tmp_path_factory.mktemp("first"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        return files.train(TASK, folder, folder / "out", "--disable-validation", updates=30)


def criterion(data, task=None, **more) -> MuESCST:
    task = task or files.setup(TASK, data)
    given = {"cider_frequencies": str(data / "df.npz"), "sentence_avg": False, **more}
    return MuESCST.build_criterion(MuESCSTConfig(**given), task).train()


def first_batch(task, rows: int = 4) -> dict:
    task._all_references = True
    task.load_dataset("train")
    dataset = task.dataset("train")
    return dataset.collater([dataset[n] for n in range(rows)])


@pytest.mark.parametrize("baseline", ["greedy", "mean"])
@pytest.mark.parametrize("weights", ["uniform", "last"])
def test_loss_equals_the_slow_loop(data, checkpoint, baseline, weights, monkeypatch):
    """The slow loop follows the definition and encodes the image again for each caption."""
    loss = criterion(data, scst_baseline=baseline, layer_weights=weights, scst_args='{"beam": 3}')
    (model,) = files.load(loss.task, checkpoint)
    model.eval()
    monkeypatch.setattr(model, "train", lambda mode=True: model)  # no dropout, fixed statistics
    batch = first_batch(loss.task)
    drawn = {}
    sample = loss.sample

    def kept(*arguments):
        drawn["samples"] = sample(*arguments)
        return drawn["samples"]

    monkeypatch.setattr(loss, "sample", kept)
    value, sample_size, log = loss(model, batch)

    found = drawn["samples"]
    text, cider = loss.task.text, CiderD(DocumentFrequencies.load(data / "df.npz"))
    total, tokens, layers = 0.0, 0, range(6) if weights == "uniform" else [5]
    for image in range(4):
        captions = found.captions[3 * image : 3 * image + 3]
        references = batch["references"][image]
        rewards = [cider.scores([text(c)], [references])[0] / 100 for c in captions]
        one = helpers.select(
            {k: v for k, v in batch["net_input"].items() if k != "prev_output_tokens"}, image
        )
        if baseline == "greedy":
            (of,) = helpers.generate(model, one, steps=20, beam_size=1)
            bases = [cider.scores([text(of[0]["tokens"])], [references])[0] / 100] * 3
        else:
            bases = [(sum(rewards) - r) / 2 for r in rewards]
        for caption, reward, base in zip(captions, rewards, bases):
            chosen = caption[:20]
            prev = torch.cat([torch.tensor([0]), chosen[:-1]]).unsqueeze(0)
            with torch.no_grad():
                _, extra = model(**one, prev_output_tokens=prev, all_layers=True)
                for layer in layers:
                    logp = model.output_layer(extra["layer_features"][layer]).log_softmax(-1)
                    logp = logp[0].gather(1, chosen.unsqueeze(1)).sum().item()
                    total -= (reward - base) * logp / len(layers)
            tokens += len(chosen)
    assert value.item() == pytest.approx(total, rel=1e-4, abs=1e-4)
    assert abs(total) > 1e-3
    assert sample_size == log["sample_size"] == log["ntokens"] == tokens
    assert log["nsentences"] == 4 and log["captions"] == 12
    assert log["reward_sum"].item() == pytest.approx(found.rewards.sum().item())
    keys = {key for key in log if key.startswith("loss_layer_")}
    assert keys == {f"loss_layer_{layer + 1}" for layer in layers}


def test_equal_rewards_have_no_gradient(data, checkpoint, monkeypatch):
    loss = criterion(data)
    (model,) = files.load(loss.task, checkpoint)
    monkeypatch.setattr(loss.cider, "scores", lambda texts, refs: [50.0] * len(texts))
    value, sample_size, _ = loss(model, first_batch(loss.task))
    value.backward()
    assert value.item() == 0 and sample_size > 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in model.parameters())
    assert model.training


def test_broken_rewards_name_the_image(data, checkpoint, monkeypatch):
    loss = criterion(data)
    (model,) = files.load(loss.task, checkpoint)

    def broken(texts, refs):
        return [math.nan if number == 6 else 1.0 for number in range(len(texts))]

    monkeypatch.setattr(loss.cider, "scores", broken)
    with pytest.raises(FloatingPointError, match=r"not finite for c1\b"):
        loss(model, first_batch(loss.task))


def test_nan_weights_are_reported_by_sample(data, checkpoint):
    loss = criterion(data)
    (model,) = files.load(loss.task, checkpoint)
    with torch.no_grad():
        model.decoder.layers[0].fc1.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"NaN for 4 of 4 .* c0, c1, c2, c3"):
        loss(model, first_batch(loss.task))
    assert model.training  # as it was before


def test_images_are_encoded_once_for_all_samples(data, checkpoint, monkeypatch):
    loss = criterion(data, scst_args='{"beam": 7}')
    (model,) = files.load(loss.task, checkpoint)
    seen = []
    model.encoder.register_forward_hook(lambda *a: seen.append(len(a[2].states)))
    loss(model, first_batch(loss.task))
    assert seen == [4, 4, 4]  # sampling, the greedy caption, the loss


def test_captions_of_higher_reward_become_more_likely(data, checkpoint):
    loss = criterion(data)
    (model,) = files.load(loss.task, checkpoint)
    batch = first_batch(loss.task, rows=6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rewards = []
    for update in range(12):
        torch.manual_seed(update)
        optimizer.zero_grad()
        value, size, log = loss(model, batch)
        (value / size).backward()
        optimizer.step()
        rewards.append(log["reward_sum"].item() / log["captions"])
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2


@pytest.mark.parametrize("baseline", ["greedy", "mean"])
def test_beam_search_instead_of_sampling(data, checkpoint, baseline):
    options = '{"sampling": false, "beam": 4, "max_len_b": 1}'
    loss = criterion(data, scst_args=options, scst_baseline=baseline)
    (model,) = files.load(loss.task, checkpoint)
    value, _, log = loss(model, first_batch(loss.task))
    assert value.isfinite() and log["captions"] == 16
    assert ("greedy_sum" in log) == (baseline == "greedy")


def test_validation_is_mue_loss(data, checkpoint):
    loss = criterion(data).eval()
    (model,) = files.load(loss.task, checkpoint)
    model.eval()
    batch = first_batch(loss.task)
    with torch.no_grad():
        ours, theirs = loss(model, batch), files.criterion(loss.task)(model, batch)
    assert ours[0] == theirs[0] and ours[2].keys() == theirs[2].keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(data, checkpoint, dtype):
    loss = criterion(data)
    (model,) = files.load(loss.task, checkpoint)
    model = model.to(dtype)
    batch = first_batch(loss.task)
    batch["net_input"]["patch_images"] = batch["net_input"]["patch_images"].to(dtype)
    value, _, _ = loss(model, batch)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite()


def test_metrics_weigh_workers_by_their_captions():
    logs = [
        dict(captions=n, reward_sum=float(n), baseline_sum=0.5 * n, greedy_sum=0.0, loss=2.0 * n,
             loss_layer_1=3.0 * n, sample_size=4 * n, ntokens=4 * n, nsentences=n)
        for n in (1, 3)
    ]  # fmt: skip
    for given in (logs, [{key: logs[0][key] + logs[1][key] for key in logs[0]}]):
        with metrics.aggregate(new_root=True) as agg:
            MuESCST.reduce_metrics(given)
        values = agg.get_smoothed_values()
        assert values == {
            "loss": 0.5, "loss_layer_1": 0.75, "reward": 100, "baseline": 50, "reward_greedy": 0,
            "caption_length": 4,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cider_frequencies": None}, "mue_scst .*--cider-frequencies FILE"),
        ({"scst_args": "[]"}, "--scst-args '\\[\\]'.* JSON object"),
        ({"scst_args": '{"beams": 5}'}, "--scst-args: .*beams"),
        ({"scst_args": '{"prefix_size": 2}'}, "--prefix-size is not supported"),
        (
            {"scst_args": '{"match_source_len": true, "sampling": false}'},
            "--match-source-len is not supported",
        ),
        ({"scst_args": '{"beam": 0}'}, "--scst-args: beam is 0: give at least 1"),
        (
            {"scst_args": '{"beam": 1}', "scst_baseline": "mean"},
            "--scst-args.* 1.*mean.* 2 ",
        ),
        ({"layer_weights": "1,x"}, "layer weights"),
    ],
)
def test_unsupported_options_are_rejected(data, given, message):
    with pytest.raises(ValueError, match=message):
        criterion(data, **given)


@pytest.mark.parametrize("options", ['{"temperature": 3.0}', '{"sampling_topk": 3, "min_len": 2}'])
def test_options_that_bias_the_gradient_are_reported(data, options, caplog):
    criterion(data, scst_args=options)
    assert "the gradient is biased" in caplog.text
    assert all(f"--scst-args {name}" in caplog.text for name in json.loads(options))
    caplog.clear()
    criterion(data)
    criterion(data, scst_args='{"sampling": false, "temperature": 3.0}')
    assert "biased" not in caplog.text


def test_every_process_draws_its_own_samples(data, checkpoint, monkeypatch):
    loss = criterion(data, scst_baseline="mean")
    (model,) = files.load(loss.task, checkpoint)
    batch = first_batch(loss.task)
    monkeypatch.setattr(plugin, "get_data_parallel_world_size", lambda: 2)

    def drawn(rank: int) -> tuple[list, list, torch.Tensor]:
        monkeypatch.setattr(plugin, "get_data_parallel_rank", lambda: rank)
        torch.manual_seed(1)
        one, other = (
            [tokens.tolist() for tokens in loss.sample(model, batch).captions] for _ in "ab"
        )
        return one, other, torch.rand(3)

    first, second = drawn(0), drawn(1)
    assert first[0] != second[0] and first[1] != second[1] and first[0] != first[1]
    assert torch.equal(first[2], second[2])  # other random numbers stay the same
    assert first[:2] == drawn(0)[:2]


def test_it_needs_the_captioning_task(data, tmp_path):
    task = files.setup("mue_snli_ve", files.entailment_folder(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"mue_scst .*--task mue_caption"):
        criterion(data, task)


def test_a_missing_file_is_reported_before_weights_are_read(data, tmp_path):
    with pytest.raises(ValueError, match=r"none\.npz: .*ofa-exit document-frequencies"):
        criterion(data, cider_frequencies=str(tmp_path / "none.npz"))


def test_validation_does_not_read_the_file(data, tmp_path):
    task = files.setup(TASK, data)
    task.cfg.path = "checkpoint.pt"
    criterion(data, task, cider_frequencies=str(tmp_path / "none.npz"))


# ---------------------------------------------------------------------- the command line


def scst(data, checkpoint, out, *more, updates=4):
    return files.train(
        *(TASK, data, out, "--criterion", "mue_scst", "--cider-frequencies", str(data / "df.npz")),
        *("--finetune-from-model", str(checkpoint), "--scst-args", '{"beam": 2, "max_len_b": 6}'),
        *("--eval-cider", "--eval-args", '{"beam": 1, "max_len_b": 6}', "--lr", "0.001"),
        *("--best-checkpoint-metric", "cider", "--maximize-best-checkpoint-metric", *more),
        updates=updates,
        resumable=True,
    )


def weights(path) -> dict:
    return torch.load(path)["model"]


@pytest.mark.slow
def test_an_interrupted_run_resumes_exactly(data, checkpoint, tmp_path):
    whole = scst(data, checkpoint, tmp_path / "whole")
    scst(data, checkpoint, tmp_path / "parts", updates=2)
    parts = scst(data, checkpoint, tmp_path / "parts", updates=4)
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(parts)[name], rtol=0, atol=0)
    best = torch.load(tmp_path / "whole" / "checkpoint_best.pt", weights_only=True)
    assert "best" in best["extra_state"]  # CIDEr of validation: no such metric, no such key


@pytest.mark.parametrize("precision", ["--memory-efficient-fp16", "--amp"])
def test_half_precision_training(data, checkpoint, tmp_path, precision):
    path = scst(data, checkpoint, tmp_path / "out", precision, "--fp16-init-scale", "4", updates=2)
    assert all(value.isfinite().all() for value in weights(path).values())


def test_other_criterions_still_reject_joined_captions(data, tmp_path):
    with pytest.raises(ValueError, match="only --criterion mue_scst trains on such rows"):
        files.train(TASK, data, tmp_path / "out", "--disable-validation")
