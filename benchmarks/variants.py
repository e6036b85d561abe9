"""The compared ways to generate one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from benchmarks.floor import Floor
from benchmarks.reference import Reference
from benchmarks.setting import Hypotheses, Setting, build, generate, generator, prepare, sample
from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.policies.base import ExitPolicy, GateInput
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit
from ofa_exit.runtime.token_exits import TokenExits

KINDS = {
    "reference": "plain OFA, as the official code computes it",
    "full": "this package, every layer",
    "exits": "this package, the first layers of each part (--depths)",
    "tokens": "this package, every layer, half of the image's tokens after encoder layer 1",
    "mixed": "this package, sentence i exits the decoder after layer 1 + i % layers",
    "gated": "this package, every layer, with similarity gates that never exit",
    "floor": "the convolutions and matrix products of full, each computed once",
}
Depths = tuple[int, int, int]

# A cosine across a layer stays below this threshold. A threshold of 1 would disable the gates.
NEVER_EXCEEDED = 1 - 1e-7
HALF_OF_THE_TOKENS = TokenExits(0.5)


def variant_name(depths: Depths) -> str:
    return f"exits {','.join(map(str, depths))}"


@dataclass
class MixedExit(ExitPolicy):
    """Sentence i exits the decoder after layer 1 + i % ``layers``, at every step.

    A row's number is noted at the first layer of a step, where all rows are active.
    """

    beam: int
    layers: int

    def decoder_gate(self, seen: GateInput) -> Tensor:
        rows, positions = seen.current.shape[:2]
        number = seen.memory.setdefault("number", torch.arange(rows, device=seen.current.device))
        exits = seen.layer > number.div(self.beam, rounding_mode="floor") % self.layers  # [N]
        return exits.unsqueeze(1).expand(rows, positions)


class Models:
    """The model and its reference, prepared for inference; they share most weights."""

    def __init__(self, setting: Setting, reference: bool = True) -> None:
        self.ours: Any = build(setting)
        self.reference: Any = (
            prepare(Reference.from_model(self.ours), setting) if reference else None
        )
        prepare(self.ours, setting)


class Bench:
    """One batch and the variants that generate from it."""

    def __init__(self, models: Models, setting: Setting) -> None:
        self.models, self.setting = models, setting
        self.batch = sample(setting)
        self.search = generator(models.ours, setting)
        self.reference_search = models.reference and generator(models.reference, setting)

    def ours(
        self, policy: Optional[ExitPolicy], token_exits: Optional[TokenExits] = None
    ) -> Callable[[], Hypotheses]:
        def run() -> Hypotheses:
            self.models.ours.configure_exits(policy, token_exits=token_exits)
            return generate(self.search, self.batch)

        return run

    def reference(self) -> Hypotheses:
        return generate(self.reference_search, self.batch)

    def mixed(self) -> MixedExit:
        return MixedExit(self.setting.beam, self.models.ours.cfg.decoder_layers)

    def gated(self) -> Callable[[], Hypotheses]:
        """Return a run whose gates never exit.

        Raises:
            RuntimeError: if a row exited all the same.
        """
        policy = SimilarityExit(
            image_threshold=NEVER_EXCEEDED,
            text_threshold=NEVER_EXCEEDED,
            encoder_threshold=NEVER_EXCEEDED,
            decoder_threshold=NEVER_EXCEEDED,
            schedule="static",
        )
        run = self.ours(policy)
        run()
        trace, cfg = self.models.ours.last_trace, self.models.ours.cfg
        encoder = [trace.image_layers, trace.text_layers]
        if not (
            all(bool((layers == cfg.encoder_layers).all()) for layers in encoder)
            and all(bool((step.layers_used == cfg.decoder_layers).all()) for step in trace.steps)
        ):
            raise RuntimeError(f"a row exited at a threshold of {NEVER_EXCEEDED}")
        return run

    def runs(
        self, kinds: Sequence[str], patterns: Sequence[Depths]
    ) -> dict[str, Callable[[], Any]]:
        """Return what to call for each variant, by name, in the order of KINDS."""
        runs: dict[str, Callable[[], Any]] = {}
        if "reference" in kinds:
            runs["reference"] = self.reference
        if "full" in kinds:
            runs["full"] = self.ours(None)
        if "exits" in kinds:
            runs.update(
                {variant_name(depths): self.ours(StaticExit(depths)) for depths in patterns}
            )
        if "tokens" in kinds:
            runs["tokens"] = self.ours(None, HALF_OF_THE_TOKENS)
        if "mixed" in kinds:
            runs["mixed"] = self.ours(self.mixed())
        if "gated" in kinds:
            runs["gated"] = self.gated()
        if "floor" in kinds:
            stem = self.models.ours.encoder.embed_images
            runs["floor"] = Floor(stem, self.models.reference, self.batch, self.decoder_calls())
        return runs

    def decoder_calls(self) -> list[tuple[int, int]]:
        """Return (hypotheses, positions so far) of every decoder call at full depth."""
        decoder, calls = self.models.ours.decoder, []
        plain = decoder.forward

        def counted(tokens: Any, *arguments: Any, **options: Any) -> Any:
            calls.append(tuple(tokens.shape))
            return plain(tokens, *arguments, **options)

        decoder.forward = counted  # a hook would not see it: beam search calls forward
        try:
            self.ours(None)()
        finally:
            del decoder.forward
        return calls

    def flop_reduction(
        self, policy: Optional[ExitPolicy], token_exits: Optional[TokenExits] = None
    ) -> float:
        """Return the share of full depth's FLOPs that a policy, or token exits, save.

        It is taken from the second of two equal batches. The encoder's position biases are cached
        by then, as in all timed runs.
        """
        report = GenerationReport(self.models.ours)
        executed, full = [], []
        for _ in range(2):
            hypotheses = self.ours(policy, token_exits)()
            report.add(
                ids=self.batch["id"].tolist(),
                trace=self.models.ours.last_trace,
                hypotheses=[[hyp["tokens"].tolist() for hyp in hyps] for hyps in hypotheses],
                text_tokens=self.batch["net_input"]["src_lengths"].tolist(),
                image_size=(self.setting.image_size, self.setting.image_size),
                seconds=0.0,
            )
            numbers = report.summary()
            executed.append(numbers["gflops_per_sentence"] * numbers["sentences"])
            full.append(numbers["gflops_full_per_sentence"] * numbers["sentences"])
        return 1 - (executed[1] - executed[0]) / (full[1] - full[0])


def deviation(ours: Hypotheses, theirs: Hypotheses) -> float:
    """Return the largest difference of scores, or infinity if tokens differ."""
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine, other, strict=True):
            if a["tokens"].tolist() != b["tokens"].tolist():
                return float("inf")
            difference = (a["positional_scores"] - b["positional_scores"]).abs().max()
            worst = max(worst, float(difference), abs(float(a["score"]) - float(b["score"])))
    return worst
