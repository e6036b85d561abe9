"""Validation that generates: metrics of hypotheses beside the loss."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask


class ValidatesByGenerating(FairseqTask):
    """Base of ``OFATask``: how it validates, with the generator that its ``build_model`` made."""

    cfg: Any
    eval_options: tuple[str, ...]
    """Options that make validation generate, beside the loss."""
    eval_generator: Any
    set_exits: Any
    generate: Any
    text: Any

    def validates_generation(self) -> bool:
        """Whether validation generates, beside the loss."""
        return any(getattr(self.cfg, option) for option in self.eval_options)

    def validation_generator(self, model: Any) -> Any:
        """The generator of validation; its model runs in full but for ``valid_step``."""
        raise NotImplementedError

    def validation_sums(self, sample: dict[str, Any], hypotheses: list[str]) -> dict[str, float]:
        """What a batch adds to the metrics: numbers that are summed over batches and workers."""
        raise NotImplementedError

    def valid_step(
        self, sample: dict[str, Any], model: Any, criterion: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Loss at full depth, and metrics of what is generated, with exits if they are set."""
        if not sample:  # every row of the batch was skipped
            return 0.0, 0, {"loss": 0.0, "sample_size": 0, "ntokens": 0, "nsentences": 0}
        loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        if self.eval_generator is not None:
            models = self.eval_generator_models()
            self.set_exits(models, on=True)
            try:
                hypotheses = self.generate(self.eval_generator, models, sample)
            finally:
                self.set_exits(models, on=False)
            best = [self.text(of_sentence[0]["tokens"]) for of_sentence in hypotheses]
            logging_output.update(self.validation_sums(sample, best))
        return loss, sample_size, logging_output

    def eval_generator_models(self) -> list[Any]:
        """The models inside the generator of validation."""
        generator = self.eval_generator
        ensemble = generator.model if hasattr(generator, "model") else generator
        return list(ensemble.models)


def summed(logging_outputs: Sequence[dict[str, Any]], keys: Sequence[str]) -> Iterator[float]:
    """The sums over workers of what ``validation_sums`` gave, as plain numbers."""
    for key in keys:
        total = sum(output.get(key, 0) for output in logging_outputs)
        yield total.item() if torch.is_tensor(total) else total


def log_mean(
    name: str, logging_outputs: Sequence[dict[str, Any]], keys: Sequence[str], scale: float = 1
) -> None:
    """Logs the mean over the whole split, ``scale`` times the sum over the count.

    keys: of the sum and of the count in what ``validation_sums`` gave. Nothing is logged of none.
    """
    total, count = summed(logging_outputs, keys)
    if count:
        kept = f"_{name}"
        metrics.log_scalar(kept, np.array([total, count]))
        metrics.log_derived(
            name, lambda meters: round(scale * float(np.divide(*meters[kept].sum)), 3)
        )
