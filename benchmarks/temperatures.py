"""Does a temperature per exit layer help beam search? Fits them on rows, and measures on others.

  python -m benchmarks.temperatures DATA.tsv --checkpoint CKPT [fairseq-generate options]

Under beam search hypotheses compete whose words left at different layers. With temperatures the
word scores of a token that left at layer i are divided by T_i (Guo et al. 2017), so that early and
late words are equally sure of themselves. T_i is fitted to the references of the even batches, at
the tokens that leave there. The odd batches are generated with all T_i = 1 and with those found.
The layers at which tokens exit depend on their states alone, so both runs see the same exits after
the same words.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from fairseq import scoring
from torch import Tensor
from tqdm import tqdm

import ofa_exit.plugin  # noqa: F401  registers tasks and criterions
from ofa_exit.cli.generation import Generation
from ofa_exit.plugin.criterions.target_tokens import TargetTokens
from ofa_exit.policies.registry import build_policy

FIRST, LAST, TIMES = 0.25, 4.0, 161
MAX_FITTED = 3_000_000
"""Word scores that are kept of a layer: further tokens are left out."""


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """Return the T of a grid, equally spaced in log T, with the least cross-entropy of logits / T.

    Args:
        logits: [M, V].
        target: Long [M].
    """
    grid = torch.logspace(*torch.tensor([FIRST, LAST]).log10().tolist(), TIMES)
    losses = [torch.nn.functional.cross_entropy(logits / t, target) for t in grid]
    return float(grid[torch.stack(losses).argmin()])


class Temperatures:
    """Divides the decoder's word scores by the temperature of the layer that each token left at."""

    def __init__(self, decoder: Any) -> None:
        self.of_layer = torch.ones(len(decoder.layers) + 1)
        self._words = decoder._words
        decoder._words = self.words

    def words(self, x: Tensor, layers_used: Tensor | None, *others: Any) -> Tensor:
        scores: Tensor = self._words(x, layers_used, *others)
        if layers_used is None:
            return scores
        return scores / self.of_layer.to(scores)[layers_used].unsqueeze(-1)


def collect(generation: Generation, model: Any, samples: Sequence[Any]) -> dict[int, list[Any]]:
    """Return by layer [(logits [M, V], target [M])] of the reference tokens that leave there."""
    found: dict[int, list[Any]] = {}
    padding = generation.task.target_dictionary.pad()
    for sample in tqdm(samples, desc="references", unit="batch", leave=False):
        with torch.no_grad():
            logits, extra = model(**sample["net_input"])
        tokens = TargetTokens.of(sample, padding)
        layers = tokens.at(extra["layers_used"].unsqueeze(-1)).flatten()
        scores = tokens.at(logits).float()
        for layer in layers.unique().tolist():
            rows = layers == layer
            found.setdefault(layer, []).append((scores[rows], tokens.target[rows]))
    return found


def generate(generation: Generation, model: Any, samples: Sequence[Any]) -> tuple[Any, float]:
    """Return the scores of the beams' best texts, and the mean decoder layers of their calls."""
    task, cfg = generation.task, generation.cfg
    scorer = scoring.build_scorer(cfg.scoring, None)
    generator = task.make_generator([model], cfg.generation)
    layers, calls = 0.0, 0
    for sample in tqdm(samples, desc="texts", unit="batch", leave=False):
        hyps = task.generate(generator, [model], sample)
        for references, beam in zip(sample["references"], hyps, strict=True):
            scorer.add_string(" && ".join(references), task.text(beam[0]["tokens"]))
        for step in task.traces(generator, [model])[0].steps:
            layers += float(step.layers_used.sum())
            calls += step.layers_used.numel()
    return scorer.values(), layers / calls


def numbers(text: str) -> list[float]:
    """Return numbers separated by commas."""
    return [float(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    options, others = parser().parse_known_args(arguments)
    generation = Generation("temperatures", [options.data, *others], [options.checkpoint])
    model = generation.load_model(options.checkpoint)
    found = list(generation.on_device(generation.batches(model), model))
    temperatures = Temperatures(model.decoder)
    for threshold in options.decoder_threshold:
        policy = build_policy(
            "similarity",
            image_threshold=2.0,
            encoder_threshold=2.0,
            decoder_threshold=threshold,
            schedule=options.schedule,
        )
        model.configure_exits(policy, "copy", trace=True)
        temperatures.of_layer.fill_(1)
        by_layer = collect(generation, model, found[::2])
        plain, depth = generate(generation, model, found[1::2])
        for layer, parts in by_layer.items():
            logits, target = (torch.cat(part) for part in zip(*parts, strict=True))
            kept = max(1, MAX_FITTED // logits.size(1))
            temperatures.of_layer[layer] = fit_temperature(logits[:kept], target[:kept])
        scaled, depth_scaled = generate(generation, model, found[1::2])
        fitted = ", ".join(
            f"{layer}: {temperatures.of_layer[layer]:.2f}" for layer in sorted(by_layer)
        )
        print(f"threshold {threshold}: T by layer {fitted}")
        for name, value in plain.items():
            print(f"  {name}: {value:.4g} without, {scaled[name]:.4g} with")
        print(f"  decoder layers: {depth:.3f} without, {depth_scaled:.3f} with", flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(
        prog="python -m benchmarks.temperatures", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    built.add_argument("data", metavar="DATA.tsv")
    built.add_argument("--checkpoint", required=True, metavar="CKPT")
    built.add_argument(
        "--decoder-threshold", type=numbers, default=[0.97, 0.95, 0.9], metavar="θ,…",
        help="(default 0.97,0.95,0.9)",
    )  # fmt: skip
    built.add_argument("--schedule", default="decay", help="of the threshold (default %(default)s)")
    return built


if __name__ == "__main__":
    sys.exit(main())
