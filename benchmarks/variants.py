"""The ways to generate one batch that are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from torch import Tensor

from benchmarks.floor import Floor
from benchmarks.reference import Reference
from benchmarks.setting import Hypotheses, Setting, build, generate, generator, prepare, sample
from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.policies.base import ExitPolicy, Gate, GateInput
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit

KINDS = {
    "reference": "plain OFA as the official code computes it",
    "full": "this package, every layer",
    "exits": "this package, the first layers of each part (--depths)",
    "mixed": "this package, sentence i leaving the decoder behind its layer 1 + i % layers",
    "gated": "this package, every layer, the gates of similarity computed and never open",
    "floor": "the convolutions and matrix products of full alone, each done once",
}
Depths = tuple[int, int, int]

# A cosine of states that a layer changed stays below; 1 would switch the gates off.
UNREACHED = 1 - 1e-7


def name_of(depths: Depths) -> str:
    return f"exits {','.join(map(str, depths))}"


@dataclass
class MixedExit(ExitPolicy):
    """Sentence i leaves the decoder behind layer 1 + i % ``layers``, at every step.

    A gate does not see whose row it is asked about; ``setting.sample`` gives every sentence a step
    limit of its own, ``steps`` + i, and here they are told apart by it.
    """

    steps: int
    layers: int

    def decoder_gate(self) -> Gate:
        def gate(seen: GateInput) -> Tensor:
            assert seen.step_limit is not None
            leaving = seen.layer > (seen.step_limit - self.steps) % self.layers
            return leaving.expand(seen.current.shape[:2])

        return gate


class Models:
    """The model and its reference, both prepared, sharing weights as far as preparation allows."""

    def __init__(self, setting: Setting, reference: bool = True) -> None:
        self.ours: Any = build(setting)
        self.reference: Any = prepare(Reference.of(self.ours), setting) if reference else None
        prepare(self.ours, setting)


class Bench:
    """One batch and everything that generates from it."""

    def __init__(self, models: Models, setting: Setting) -> None:
        self.models, self.setting = models, setting
        self.batch = sample(setting)
        self.search = generator(models.ours, setting)
        self.reference_search = models.reference and generator(models.reference, setting)

    def ours(self, policy: Optional[ExitPolicy]) -> Callable[[], Hypotheses]:
        def run() -> Hypotheses:
            self.models.ours.configure_exits(policy)
            return generate(self.search, self.batch)

        return run

    def reference(self) -> Hypotheses:
        return generate(self.reference_search, self.batch)

    def mixed(self) -> MixedExit:
        return MixedExit(self.setting.steps, self.models.ours.cfg.decoder_layers)

    def gated(self) -> Callable[[], Hypotheses]:
        """Raises RuntimeError if anything left all the same."""
        policy = SimilarityExit(
            image_threshold=UNREACHED,
            text_threshold=UNREACHED,
            encoder_threshold=UNREACHED,
            decoder_threshold=UNREACHED,
            schedule="static",
        )
        run = self.ours(policy)
        run()
        trace, cfg = self.models.ours.last_trace, self.models.ours.cfg
        encoder = [trace.image_layers, trace.text_layers]
        if not (
            all(bool((layers == cfg.encoder_layers).all()) for layers in encoder)
            and all(bool((step.layers == cfg.decoder_layers).all()) for step in trace.steps)
        ):
            raise RuntimeError("something left although the gates were never to open")
        return run

    def runs(
        self, kinds: Sequence[str], patterns: Sequence[Depths]
    ) -> dict[str, Callable[[], Any]]:
        """What each variant calls, by its name, in the order of KINDS."""
        runs: dict[str, Callable[[], Any]] = {}
        if "reference" in kinds:
            runs["reference"] = self.reference
        if "full" in kinds:
            runs["full"] = self.ours(None)
        if "exits" in kinds:
            runs.update({name_of(depths): self.ours(StaticExit(depths)) for depths in patterns})
        if "mixed" in kinds:
            runs["mixed"] = self.ours(self.mixed())
        if "gated" in kinds:
            runs["gated"] = self.gated()
        if "floor" in kinds:
            stem = self.models.ours.encoder.embed_images
            runs["floor"] = Floor(stem, self.models.reference, self.batch, self.decoder_calls())
        return runs

    def decoder_calls(self) -> list[tuple[int, int]]:
        """(hypotheses, positions so far) of every call of the decoder at full depth."""
        decoder, calls = self.models.ours.decoder, []
        plain = decoder.forward

        def counted(tokens: Any, *arguments: Any, **options: Any) -> Any:
            calls.append(tuple(tokens.shape))
            return plain(tokens, *arguments, **options)

        decoder.forward = counted  # the search calls forward itself, past any hook
        try:
            self.ours(None)()
        finally:
            del decoder.forward
        return calls

    def flop_reduction(self, policy: ExitPolicy) -> float:
        """Share of the operations of full depth that a policy saves.

        Of a batch of a shape that was met before, as all the timed ones are: the encoder's
        position biases are there already. That is the second of two equal batches in the report.
        """
        report = GenerationReport(self.models.ours)
        executed, full = [], []
        for _ in range(2):
            hypotheses = self.ours(policy)()
            report.add(
                ids=self.batch["id"].tolist(),
                trace=self.models.ours.last_trace,
                hypotheses=[[h["tokens"].tolist() for h in of] for of in hypotheses],
                text_tokens=self.batch["net_input"]["src_lengths"].tolist(),
                image_size=(self.setting.image_size, self.setting.image_size),
                seconds=0.0,
            )
            numbers = report.summary()
            executed.append(numbers["gflops_per_sentence"] * numbers["sentences"])
            full.append(numbers["gflops_full_per_sentence"] * numbers["sentences"])
        return 1 - (executed[1] - executed[0]) / (full[1] - full[0])


def deviation(ours: Hypotheses, theirs: Hypotheses) -> float:
    """Largest difference of scores; infinite where tokens differ."""
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine, other, strict=True):
            if a["tokens"].tolist() != b["tokens"].tolist():
                return float("inf")
            difference = (a["positional_scores"] - b["positional_scores"]).abs().max()
            worst = max(worst, float(difference), abs(float(a["score"]) - float(b["score"])))
    return worst
