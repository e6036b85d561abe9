"""Models with every kind of exit head, and loops that answer as their equations say."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.small_models import VOCAB, batch, nano
from ofa_exit.models.archs import ARCHS
from ofa_exit.models.ofa import OFAModel
from ofa_exit.policies.measures import softmax_confidence
from ofa_exit.testing import build_dictionary

DEPTH = 6
ALL = "1,2,3,4,5"
LAYERS = {
    "shared": "1,2,4",
    "linear": "1,2,4",
    "linear_pooled": "1,2,4",
    "adapter": "1,2,4",
    "meta": "1,2,4",
    "imitation": ALL,
    "imitation_all": ALL,
}
KINDS = list(LAYERS)
TRAINED = [kind for kind in KINDS if kind != "shared"]


def plain_state(**options: Any) -> dict[str, Tensor]:
    """The weights of a model without heads."""
    return {name: value.clone() for name, value in nano(**options).state_dict().items()}


def started(kind: str, layers: str | None = None, **options: Any) -> OFAModel:
    """A model whose backbone is a checkpoint's, and whose heads start from it."""
    heads = dict(exit_head=kind, exit_layers=layers or LAYERS[kind])
    built = fresh(**heads, **options)
    built.load_state_dict(plain_state(**options))
    return built


def fresh(**options: Any) -> OFAModel:
    """A model as a command builds it: heads as ``build`` makes them, not drawn by name."""
    sizes = dict(encoder_embed_dim=32, encoder_ffn_embed_dim=64, resnet_width=8)
    dictionary = build_dictionary(options.pop("vocab", VOCAB))
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    config = {**ARCHS["ofa_nano"], **sizes, "split_modalities": True, **options}
    with torch.random.fork_rng():
        torch.manual_seed(3)  # what a head draws must not depend on the tests before
        return OFAModel.build_model(Namespace(**config), task).eval()


@torch.no_grad()
def noisy(kind: str, layers: str | None = None, noise: float = 0.5, **options: Any) -> OFAModel:
    """The same with noise on the heads, as if they had been trained: they disagree."""
    built = started(kind, layers, **options)
    generator = torch.Generator().manual_seed(5)
    for parameter in built.decoder.exit_heads.parameters():
        scale = noise if parameter.dim() == 1 else noise / parameter.size(-1) ** 0.5
        parameter += scale * torch.randn(parameter.shape, generator=generator)
    return built


def gradients(built: OFAModel) -> dict[str, Tensor]:
    """Gradients that are not zero, by parameter."""
    return {n: p.grad for n, p in built.named_parameters() if p.grad is not None and p.grad.any()}


class Context:
    """What a head is given that attends to nothing."""

    def __init__(self) -> None:
        self.memory: dict[str, Tensor] = {}


# ------------------------------------------------------------------ the equations


class SlowHeads:
    """The word scores of one position by its head, from the weights alone."""

    def __init__(self, built: OFAModel, kind: str) -> None:
        self.kind = kind
        self.weights = {
            name.removeprefix("decoder."): value.detach()
            for name, value in built.state_dict().items()
            if name.startswith(("decoder.exits", "decoder.layer_norm", "decoder.output_projection"))
        }

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean()
        scaled = centred / (centred.square().mean() + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def shared(self, x: Tensor) -> Tensor:
        return self.weights["output_projection.weight"] @ self.norm(x, "layer_norm")

    def pooled(self, layer: int, x: Tensor) -> Tensor:
        return self.linear(self.norm(x, f"exits.{layer}.norm"), f"exits.{layer}.pool").tanh()

    def imitated(self, layer: int, pooled: Tensor) -> Tensor:
        return self.linear(pooled, f"exits.{layer - 1}.imitator").tanh()

    def fused(self, states: list[Tensor]) -> Tensor:
        """f_i of one position's states h_1 … h_i."""
        layer = len(states)
        pooled = [self.pooled(n, x) for n, x in enumerate(states, start=1)]
        last = DEPTH if self.kind == "imitation_all" else layer + 1
        total = sum(pooled)
        gate = self.linear((total / layer).tanh(), "exits.gate").sigmoid()
        future = sum(self.imitated(j, pooled[-1]) for j in range(layer + 1, last + 1))
        return 2 * gate * total + (2 - 2 * gate) * future

    def scores(self, states: list[Tensor]) -> Tensor:
        """Word scores [V] after layer i of one position's states h_1 … h_i, [C] each."""
        name, state = f"exits.{len(states)}", states[-1]
        if self.kind.startswith("linear"):
            state = self.norm(state, f"{name}.norm")
            if self.kind == "linear_pooled":
                state = self.linear(state, f"{name}.pooler").tanh()
            return self.weights[f"{name}.output_projection.weight"] @ state
        if self.kind == "adapter":
            narrow = F.gelu(self.linear(state, f"{name}.down"))
            return self.shared(state + self.linear(narrow, f"{name}.up"))
        if self.kind.startswith("imitation"):
            return self.shared(self.fused(states))
        return self.shared(state)


@torch.no_grad()
def alphas(built: OFAModel, count: int = 8) -> list[float]:
    """Values of α between those that most heads pass and those that few do."""
    built.configure_exits(None)
    net_input = batch(4, target=10)
    _, extra = built(**net_input, exit_features=True)
    decoder, found = built.decoder, []
    for layer, features in extra["head_features"].items():
        scores = decoder.exit_heads.scores(layer, features, None, decoder.shared_scores)
        found.append(softmax_confidence(scores).flatten())
    return [float(torch.cat(found).quantile(q)) for q in torch.linspace(0.5, 0.95, count).tolist()]
