"""examples/extend: a rule, a kind of head and a criterion that the package does not know."""

import json

import pytest
import torch
import torch.nn.functional as F
from helpers import task_files as files
from helpers.paths import ROOT

USER_DIR = ["--user-dir", str(ROOT / "examples" / "extend")]
HEADS = [1, 2, 4]
PATIENCE = 1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return files.caption_folder(tmp_path_factory.mktemp("extend"))


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    """A model whose backbone and heads were trained together by the example's criterion."""
    plain = files.train("mue_caption", data, tmp_path_factory.mktemp("plain"), updates=2)
    return files.train(
        *("mue_caption", data, tmp_path_factory.mktemp("heads"), *USER_DIR),
        *("--criterion", "pabee_loss", "--exit-head", "pabee_linear", "--exit-layers", "1,2,4"),
        *("--finetune-from-model", str(plain)),
        updates=12,
    )


@pytest.fixture(scope="module")
def mixed(checkpoint, tmp_path_factory):
    """The same with noise on the heads: after a few updates all of them would still agree."""
    state = torch.load(checkpoint, weights_only=True)
    for name, value in state["model"].items():
        if name.startswith("decoder.exits.") and name.endswith(".1.weight"):
            value += 0.15 * torch.randn(
                value.shape, generator=torch.Generator().manual_seed(ord(name[14]))
            )
    path = tmp_path_factory.mktemp("mixed") / "checkpoint.pt"
    torch.save(state, path)
    return path


def generate(data, checkpoint, trace, *more):
    return files.generate(
        *("mue_caption", data, checkpoint, *USER_DIR, "--beam", "5", "--nbest", "5"),
        *("--exit-policy", "pabee", "--exit-patience", str(PATIENCE), "--exit-trace", str(trace)),
        *more,
    )


def test_backbone_and_heads_are_trained(checkpoint):
    state = torch.load(checkpoint, weights_only=True)["model"]
    heads = {name.split(".")[2] for name in state if name.startswith("decoder.exits.")}
    assert heads == {"1", "2", "4"}
    own = state["decoder.exits.2.1.weight"]
    assert not torch.equal(own, state["decoder.output_projection.weight"])
    assert not torch.equal(own, state["decoder.exits.4.1.weight"])


def test_weights_of_heads_are_logged_and_reported(data, checkpoint, tmp_path, caplog):
    """A head has a matrix of the vocabulary and a norm, and no transformer layer."""
    with caplog.at_level("INFO"):
        lines = generate(data, checkpoint, tmp_path / "trace.jsonl")
    state = torch.load(checkpoint, weights_only=True)["model"]
    words, channels = state["decoder.output_projection.weight"].shape
    head = words * channels + 2 * channels
    layer = sum(w.numel() for name, w in state.items() if name.startswith("decoder.layers.0."))
    assert f"3 exit heads of {head:,} weights each: {3 * head:,}, as many as " in caplog.text
    assert f"as many as {3 * head / layer:.1f} decoder layers (the backbone has " in caplog.text

    (summary,) = [json.loads(line.partition(": ")[2]) for line in lines["report"]
                  if line.startswith("Exit summary: ")]  # fmt: skip
    traced = map(json.loads, (tmp_path / "trace.jsonl").read_text().splitlines())
    used = [n for record in traced for n in record["hypotheses"][0]["layers"]]
    by_head = sum(n in HEADS for n in used)
    assert by_head and summary["parameter_speedup"] == pytest.approx(6 * len(used) / sum(used))
    total = sum(used) + by_head * head / layer
    assert summary["parameter_speedup_with_heads"] == pytest.approx(6 * len(used) / total)
    assert any(line.startswith("parameter_speedup_with_heads ") for line in lines["report"])


def test_weights_of_heads_are_logged_before_training(data, tmp_path, caplog):
    with caplog.at_level("INFO"):
        files.train(
            *("mue_caption", data, tmp_path, *USER_DIR, "--criterion", "pabee_loss"),
            *("--exit-head", "pabee_linear", "--exit-layers", "2"),
            updates=1,
        )
    assert caplog.text.count("1 exit heads of ") == 1


@torch.no_grad()
def slow_decode(model, net_input, tokens):
    """Return log-probabilities and layers of one hypothesis, token by token, without a cache."""
    decoder = model.decoder
    out = model.encoder(**net_input)
    prefix, inputs, scores, depths = [0], [[] for _ in decoder.layers], [], []
    for token in tokens:
        state = decoder.layernorm_embedding(decoder.embed_tokens(torch.tensor([prefix[-1:]])))
        self_biases, cross_bias = decoder.biases(len(prefix), out, None)
        frozen, word, agreed = None, None, 0
        for number, layer in enumerate(decoder.layers, start=1):
            inputs[number - 1].append(state)  # skipped layers see the state at exit
            if frozen is not None:
                continue
            block = torch.cat(inputs[number - 1], dim=1)
            cross = layer.encoder_attn.project_kv(out.states)
            state = layer(block, self_biases[number - 1], cross, cross_bias)[:, -1:]
            if number in HEADS:
                norm, projection = decoder.exits[str(number)]
                logits = F.linear(norm(state), projection.weight)[0, 0]
                agreed = agreed + 1 if word == int(logits.argmax()) else 0
                word = int(logits.argmax())
                if agreed >= PATIENCE:
                    frozen, depth = logits, number
        if frozen is None:
            frozen, depth = decoder.output_layer(decoder.layer_norm(state))[0, 0], number
        scores.append(float(frozen.log_softmax(-1)[token]))
        depths.append(depth)
        prefix.append(token)
    return scores, depths


@pytest.mark.parametrize("batch_size", [1, 7])
def test_generation_equals_the_slow_loop(data, mixed, tmp_path, batch_size):
    trace = tmp_path / "trace.jsonl"
    lines = generate(data, mixed, trace, "--batch-size", str(batch_size))
    assert any("flop_reduction" in line for line in lines["report"])
    traced = {record["id"]: record for record in map(json.loads, trace.read_text().splitlines())}
    assert len(traced) == 11
    task = files.setup("mue_caption", data)
    (model,) = files.load(task, mixed)
    model.eval()
    task.load_dataset("test")
    rows, used = task.dataset("test"), set()
    for number in range(11):
        sample = rows.collater([rows[number]])
        net_input = {k: v for k, v in sample["net_input"].items() if k != "prev_output_tokens"}
        hyps = traced[sample["uniq_ids"][0]]["hypotheses"]
        assert len(hyps) == 5
        for hypothesis, (positional,) in zip(hyps, lines["P"][number], strict=True):
            scores, depths = slow_decode(model, net_input, hypothesis["tokens"])
            assert hypothesis["layers"] == depths
            used.update(depths)
            printed = torch.tensor([float(score) for score in positional.split()])
            found = torch.tensor(scores) / torch.log(torch.tensor(2.0))
            torch.testing.assert_close(printed, found, rtol=1e-3, atol=2e-3)
    assert len(used) > 1 and used <= {2, 4, 6}
