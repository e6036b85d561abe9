"""calm_meta_loss against loops over layers and tokens, on a label to learn, and by commands."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.logging import metrics
from helpers import task_files as files
from helpers.criterion_samples import PAD
from helpers.head_samples import fresh, noisy, started
from helpers.slow_losses import at_targets
from helpers.small_models import VOCAB, nano, training_batch
from torch import nn

from ofa_exit.cli.export import export
from ofa_exit.heads.meta import MetaHeads
from ofa_exit.plugin.criterions.calm import CalmMetaConfig, CalmMetaLoss

TASK = SimpleNamespace(target_dictionary=Dictionary())
LAYERS = (1, 2, 4)


def criterion(loss: str = "independent") -> CalmMetaLoss:
    return CalmMetaLoss.build_criterion(CalmMetaConfig(calm_meta_loss=loss), TASK).train()


def sample(closed: bool, rows: int = 6) -> dict:
    made = training_batch(rows)
    for row in range(rows):  # as many targets as there are positions, but for one
        made["target"][row] = torch.randint(4, VOCAB, (6,))
        made["target"][row, 5 - row % 2 :] = PAD
    made["ntokens"] = int(made["target"].ne(PAD).sum())
    if closed:
        allowed = torch.rand(*made["target"].shape, VOCAB) < 0.05
        made["constraint_masks"] = allowed.scatter(2, made["target"].unsqueeze(2), True)
    return made


# ------------------------------------------------------------------ by hand


@torch.no_grad()
def by_hand(built, batch) -> tuple[dict, dict]:
    """By layer and target token: whether its word is the last layer's, and [1 - m, m]."""
    decoder, tokens = built.decoder, at_targets(batch)
    _, extra = built(**batch["net_input"], return_layers=True)
    weight, norm = decoder.output_projection.weight, decoder.layer_norm
    classifier = decoder.exit_heads["classifier"]

    def word(layer: int, number: int) -> int:
        state = extra["layer_states"][layer].flatten(0, 1)[tokens["rows"][number]]
        scores = (weight @ norm(state)).tolist()
        allowed = range(VOCAB)
        if tokens["allowed"] is not None:
            allowed = tokens["allowed"][number].nonzero().flatten().tolist()
        return max(allowed, key=lambda v: scores[v])

    labels, probabilities = {}, {}
    for number, place in enumerate(tokens["rows"]):
        for layer in LAYERS:
            labels[layer, number] = word(layer, number) == word(6, number)
            state = extra["layer_states"][layer].flatten(0, 1)[place]
            go_on, leave = (classifier.weight @ state + classifier.bias).double().exp().tolist()
            probabilities[layer, number] = [go_on / (go_on + leave), leave / (go_on + leave)]
    return labels, probabilities


def loss_by_hand(kind: str, labels: dict, probabilities: dict, count: int) -> float:
    """Mean over layers, or over tokens."""
    total = 0.0
    if kind == "geometric":
        for number in range(count):
            for layer in LAYERS:
                label = labels[layer, number]
                total -= math.log(probabilities[layer, number][label]) / count
                if label:
                    break
        return total
    for layer in LAYERS:
        for number in range(count):
            label = labels[layer, number]
            others = sum(labels[layer, n] != label for n in range(count))
            nll = -math.log(probabilities[layer, number][label])
            total += others / count * nll / count / len(LAYERS)
    return total


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("kind", ["independent", "geometric"])
def test_the_loss_equals_the_loops(kind, closed):
    built, batch = noisy("meta"), sample(closed)
    labels, probabilities = by_hand(built, batch)
    count = batch["ntokens"]
    loss, size, log = criterion(kind)(built, batch)
    assert size == log["sample_size"] == log["ntokens"] == count
    expected = loss_by_hand(kind, labels, probabilities, count)
    assert loss.item() == log["loss"].item() == pytest.approx(count * expected, rel=1e-4)
    assert 0 < sum(labels.values()) < len(labels)  # both labels occur
    for layer in LAYERS:
        consistent = [labels[layer, n] for n in range(count)]
        right = [labels[layer, n] == (probabilities[layer, n][1] > 0.5) for n in range(count)]
        assert int(log[f"consistent_layer_{layer}"]) == sum(consistent)
        assert int(log[f"acc_layer_{layer}"]) == sum(right)
    assert {key for key in log if "_layer_" in key} == {
        f"{name}_layer_{layer}" for name in ("acc", "consistent") for layer in LAYERS
    }


def test_what_is_logged_is_per_token():
    batches = [sample(False, 2), sample(False, 4)]
    built = noisy("meta")
    logs = [criterion()(built, batch)[2] for batch in batches]
    with metrics.aggregate() as logged:
        CalmMetaLoss.reduce_metrics([*logs, {}])
    values, tokens = logged.get_smoothed_values(), sum(log["ntokens"] for log in logs)
    summed = {key: sum(float(log[key]) for log in logs) for key in logs[0]}
    assert values["loss"] == pytest.approx(summed["loss"] / tokens / math.log(2), abs=1e-3)
    for key in ("acc_layer_2", "consistent_layer_4"):
        assert values[key] == pytest.approx(100 * summed[key] / tokens, abs=1e-2)
    with metrics.aggregate() as logged:
        CalmMetaLoss.reduce_metrics([{}])
    assert not logged.get_smoothed_values()


def test_the_model_is_frozen_and_runs_once():
    built, batch = noisy("meta"), sample(False)
    ran = []
    for layer in built.decoder.layers:
        layer.register_forward_hook(lambda module, inputs, out: ran.append(out.requires_grad))
    loss = criterion()
    loss.prepare_training(built)
    built.train()
    assert not built.decoder.layers[0].training
    loss(built, batch)[0].backward()
    assert ran == [False] * 6
    trained = {name for name, p in built.named_parameters() if p.grad is not None}
    assert trained == {f"decoder.exits.classifier.{name}" for name in ("weight", "bias")}


def test_logits_of_one_layer_at_a_time(monkeypatch):
    """[M, V] of the target tokens, never of all positions."""
    built, batch = noisy("meta"), sample(False)
    shapes = []
    project = built.decoder.output_layer
    monkeypatch.setattr(
        built.decoder, "output_layer", lambda x: shapes.append(tuple(x.shape)) or project(x)
    )
    criterion()(built, batch)
    assert shapes == [(batch["ntokens"], 32)] * (1 + len(LAYERS))


@pytest.mark.parametrize("options", [{}, {"exit_layers": "2", "exit_head": "linear"}])
def test_other_models_are_rejected_on_one_line(options):
    with pytest.raises(SystemExit, match="--exit-head meta and --exit-layers all") as error:
        criterion().prepare_training(nano(**options))
    assert "\n" not in str(error.value)


def test_unknown_losses_are_rejected():
    with pytest.raises(ValueError, match="'both': choose from independent, geometric"):
        criterion("both")


def test_the_classifier_starts_as_built():
    """A checkpoint without it changes nothing, and neither do the model's words."""
    built = fresh(exit_head="meta", exit_layers="all")
    own = {name: value.clone() for name, value in built.decoder.exit_heads.state_dict().items()}
    built.load_state_dict(started("shared").state_dict())
    found = built.decoder.exit_heads.state_dict()
    assert own.keys() == found.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(value, own[name]) for name, value in found.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_confidence_is_a_float32_per_position(dtype):
    heads = noisy("meta").decoder.exit_heads.to(dtype)
    hidden = torch.randn(5, 3, 32).to(dtype)
    found = heads.confidence(2, hidden)
    assert found.dtype == torch.float32 and found.shape == (5, 3)
    weight, bias = heads["classifier"].weight.float(), heads["classifier"].bias.float()
    expected = (hidden.float() @ weight.t() + bias).softmax(-1)[..., 1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(heads.confidence(2, hidden), expected, rtol=0, atol=1e-6)


# ------------------------------------------------------------------ a label to learn


class Toy(nn.Module):
    """States whose first channel is positive where the layer has the last layer's word."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.projection = nn.Linear(channels, VOCAB, bias=False)
        self.decoder.shared_scores = self.output_layer
        self.decoder.exit_heads = MetaHeads.build(
            LAYERS, None, SimpleNamespace(output_projection=self.projection)
        )
        self.from_checkpoint = True

    def output_layer(self, x):
        return self.projection(x * (torch.arange(x.size(-1)) > 0))

    def forward(self, prev_output_tokens, **unused):
        final = torch.randn(*prev_output_tokens.shape, self.projection.in_features)
        features = {}
        for layer in LAYERS:
            knows = torch.rand(prev_output_tokens.shape) < layer / 5
            state = torch.where(knows.unsqueeze(-1), final, torch.randn(final.shape))
            state[..., 0] = torch.where(knows, 1.0, -1.0) + 0.2 * torch.randn(knows.shape)
            features[layer] = state
        return final, {"head_features": features}


@pytest.mark.parametrize("kind", ["independent", "geometric"])
def test_a_trained_classifier_beats_a_constant(kind):
    torch.manual_seed(0)
    toy, loss, batch = Toy(), criterion(kind), sample(False, 30)
    loss.prepare_training(toy)
    optimizer = torch.optim.Adam(toy.decoder.exit_heads.parameters(), 0.05)
    before = loss(toy, batch)[0].item()
    for _ in range(60):
        optimizer.zero_grad()
        loss(toy, batch)[0].backward()
        optimizer.step()
    value, size, log = loss(toy, batch)  # other states
    assert value < 0.6 * before and value / size < 0.6 * math.log(2)
    for layer in LAYERS:
        share = float(log[f"consistent_layer_{layer}"]) / size
        assert float(log[f"acc_layer_{layer}"]) / size > max(share, 1 - share) + 0.05


# ------------------------------------------------------------------ by fairseq's commands


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Data, and an exported checkpoint of a model with a loss on every layer."""
    folder = tmp_path_factory.mktemp("calm")
    data = files.caption_folder(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        export(files.train("mue_caption", data, folder, updates=12), folder / "plain.pt")
    return data, folder / "plain.pt"


@pytest.mark.parametrize("kind", ["independent", "geometric"])
def test_fairseq_trains_the_classifier_alone(kind, plain, tmp_path, caplog):
    data, start = plain
    caplog.set_level("INFO")
    checkpoint = files.train(
        *("mue_caption", data, tmp_path, "--criterion", "calm_meta_loss"),
        *("--exit-head", "meta", "--exit-layers", "all", "--calm-meta-loss", kind),
        *("--finetune-from-model", str(start), "--lr", "0.03", "--log-interval", "1"),
        updates=45,
    )
    before, after = torch.load(start)["model"], torch.load(checkpoint)["model"]
    own = {f"decoder.exits.classifier.{name}" for name in ("weight", "bias")}
    assert after.keys() - before.keys() == own
    assert all(torch.equal(value, after[name]) for name, value in before.items())

    lines = [json.loads(text) for text in caplog.messages if text.startswith('{"')]
    losses = [float(line["train_loss"]) for line in lines if "train_loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    valid = [line for line in lines if "valid_loss" in line][-1]
    share = float(valid["valid_consistent_layer_1"])
    constant = max(share, 100 - share)
    assert constant < 100 and float(valid["valid_acc_layer_1"]) > constant

    options = ["--exit-policy", "meta", "--exit-threshold", "0.5", "--exit-schedule", "static"]
    found = files.generate("mue_caption", data, checkpoint, *options)
    assert sorted(found["D"]) == list(range(11))
    summary = json.loads(found["report"][-1].partition("summary: ")[2])
    assert 1 < summary["decoder_layers"] < 6
