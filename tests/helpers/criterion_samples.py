"""A small stand-in for the model, with mue_loss and batches for it."""

from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from torch import nn

from ofa_exit.plugin.criterions.mue import MuELoss, MuELossConfig

PAD, WORDS, LAYERS = 1, 23, 3


class Stub(nn.Module):
    """Embeddings and linear layers, with the interface that the criterion uses."""

    def __init__(self, words: int = WORDS):
        super().__init__()
        self.embed = nn.Embedding(words, 6)
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(LAYERS))
        self.decoder.output_projection = nn.Linear(6, words, bias=False, device="meta")
        self.decoder.output_projection.weight = self.embed.weight
        self.unused = nn.Linear(2, 2)  # as OFA has for image generation
        self.num_updates = 0
        self.asked: dict = {}

    def forward(self, prev_output_tokens, **asked):
        self.asked = asked
        x, features = self.embed(prev_output_tokens), []
        for layer in self.decoder.layers:
            x = x + layer(x).tanh()
            features.append(x)
        return x, {"layer_features": features} if asked.get("all_layers") else {}

    def output_layer(self, features):
        return self.decoder.output_projection(features)


def task():
    dictionary = Dictionary()
    assert dictionary.pad() == PAD
    return SimpleNamespace(target_dictionary=dictionary)


def criterion(**options) -> MuELoss:
    options = {"sentence_avg": False, "label_smoothing": 0.1, **options}
    return MuELoss.build_criterion(MuELossConfig(**options), task()).train()


def batch(rows: int = 4, **extra) -> dict:
    """Targets of different lengths after prompts of different lengths, right-padded."""
    target = torch.full((rows, 7), PAD)
    for row in range(rows):
        length = 1 + row % 4
        target[row, row % 3 : row % 3 + length] = torch.randint(4, WORDS, (length,))
    return {
        "id": torch.arange(rows),
        "net_input": {"prev_output_tokens": torch.randint(4, WORDS, (rows, 7))},
        "target": target,
        "ntokens": int(target.ne(PAD).sum()),
        "nsentences": rows,
        **extra,
    }


def masks(sample) -> torch.Tensor:
    allowed = torch.rand(*sample["target"].shape, WORDS) < 0.3
    return allowed.scatter(2, sample["target"].unsqueeze(2), True)
