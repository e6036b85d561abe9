"""One setting of a sweep on its model: what it generated, how long it took, its line of the CSV."""

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

from ofa_exit.cli.generation import load_checkpoint
from ofa_exit.cli.grid import ExitSetting, errors_name
from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.evaluation.efficiency.totals import RunTotals
from ofa_exit.evaluation.figures.choice import REFERENCE
from ofa_exit.plugin.errors import usage_errors
from ofa_exit.plugin.options import reject_misfit
from ofa_exit.plugin.saved_arguments import reference_layers


@dataclass
class Loaded:
    """A checkpoint, ready to generate; ``saved`` is the configuration of its training."""

    model: Any
    saved: Any
    task: Any
    generator: Any


def load(path: str, overrides: dict[str, Any], task: Any, cfg: Any) -> Loaded:
    """Load a checkpoint with its generator. Raises UsageError if the file is missing."""
    model, saved = load_checkpoint(path, overrides, task, cfg)
    return Loaded(model, saved, task, task.make_generator([model], cfg.generation))


class Setting:
    """A setting on its loaded model, with what it generated so far."""

    def __init__(self, setting: ExitSetting, loaded: Loaded, scorer: Any) -> None:
        self.setting, self.scorer = setting, scorer
        self.model, self.task, self.generator = loaded.model, loaded.task, loaded.generator
        with errors_name(setting.where):
            reject_misfit(setting.options, setting.policy, self.model)
            self.configure()
        self.totals: list[RunTotals] = []  # one per batch, as seconds
        self.seconds: list[float] = []
        self.scored: list[list[str]] = []  # references and prediction of the last batch's rows

    def configure(self) -> None:
        # All settings are traced, full depth too: FLOPs are counted and bookkeeping costs the same.
        kv, tokens = self.setting.kv, self.setting.token_exits
        self.model.configure_exits(self.setting.policy, kv, trace=True, token_exits=tokens)

    def generate(self, sample: dict[str, Any]) -> tuple[Any, list[list[list[int]]], float]:
        """Return the hypotheses of a batch, their tokens, and the seconds they took."""
        self.configure()
        start = time.perf_counter()
        hyps = self.task.generate(self.generator, [self.model], sample)
        # Reading the tokens waits for the device, so it belongs to the time.
        tokens = [[hyp["tokens"].tolist() for hyp in beam] for beam in hyps]
        return hyps, tokens, time.perf_counter() - start

    def warm_up(self, sample: dict[str, Any]) -> None:
        """Generate a batch that is timed next, without keeping its texts, which cost time, too."""
        known = sample["net_input"].items()
        net_input = {name: value for name, value in known if name != "text_keys"}
        self.generate({**sample, "net_input": net_input})

    def add_batch(self, sample: dict[str, Any]) -> None:
        """Generate a batch and add it to the report and the scores."""
        hyps, tokens, seconds = self.generate(sample)
        # The report asks the model which exits are active, so it is made once they are set.
        report = GenerationReport(self.model, reference_layers=reference_layers(self.task.cfg))
        report.add(
            ids=sample["uniq_ids"],
            trace=self.task.traces(self.generator, [self.model])[0],
            hypotheses=tokens,
            text_tokens=sample["net_input"]["src_lengths"].tolist(),
            image_size=tuple(sample["net_input"]["patch_images"].shape[-2:]),
            seconds=seconds,
            has_image=sample["net_input"]["patch_masks"].tolist(),
            text_keys=sample["net_input"].get("text_keys"),
        )
        scored = []
        if self.scorer is not None:
            scored = [
                [" && ".join(references), self.task.text(beam[0]["tokens"])]
                for references, beam in zip(sample["references"], hyps)
            ]
        self._add(report.totals(), seconds, scored)

    def _add(self, totals: RunTotals, seconds: float, scored: list[list[str]]) -> None:
        for references, best in scored:
            with usage_errors():  # malformed references
                self.scorer.add_string(references, best)
        self.totals.append(totals)
        self.seconds.append(seconds)
        self.scored = scored

    def batch(self) -> dict[str, Any]:
        """Return what the last batch added, as JSON values."""
        return {
            "totals": asdict(self.totals[-1]),
            "seconds": self.seconds[-1],
            "scored": self.scored,
        }

    def add_finished(self, batch: dict[str, Any]) -> None:
        """Add a batch of an earlier process, see ``batch``."""
        with usage_errors():  # of another version
            totals = RunTotals.from_dict(batch["totals"])
        self._add(totals, batch["seconds"], batch["scored"])

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the batches so far, see ``RunTotals.summary``."""
        return RunTotals.merged(self.totals).summary()

    def row(self, baseline: "Setting") -> dict[str, Any]:
        """Return the CSV's line over the batches so far.

        Args:
            baseline: what times are relative to, and FLOPs if it has another model.
        """
        relative = [own / other for own, other in zip(self.seconds, baseline.seconds)]
        default = "full depth" if self.setting.policy is None else "exits of the command line"
        if self.setting.where == "--reference":
            default = REFERENCE
        summary = self.summary()
        if baseline.model is not self.model:
            full = baseline.summary()["gflops_per_sentence"]
            summary["flop_reduction"] = 1 - summary["gflops_per_sentence"] / full
        milliseconds = 1000 * summary["seconds_per_sentence"]
        return {
            "run": self.setting.run,
            "setting": " ".join(f"{k}={v}" for k, v in self.setting.given.items()) or default,
            **({} if self.scorer is None else self.scorer.values()),
            **{k: v for k, v in summary.items() if not k.startswith("seconds")},
            "milliseconds_per_sentence": milliseconds,
            "measured_time_reduction": 1 - statistics.median(relative),
        }
