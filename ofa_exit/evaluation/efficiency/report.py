"""Efficiency report of a generation: a summary, and one JSON line per sentence."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from ofa_exit.evaluation.efficiency.depth import SampleDepth
from ofa_exit.evaluation.efficiency.flops import batch_flops, bias_costs
from ofa_exit.evaluation.efficiency.totals import RunTotals
from ofa_exit.runtime.flops import PARTS
from ofa_exit.writing import open_alone, write_all, write_errors

LONGEST_RECORD_BYTES = 10_000_000


def is_trace(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is empty or begins with a record of an exit trace."""
    with open(path, "rb") as file:
        line = file.readline(LONGEST_RECORD_BYTES)
    try:
        return not line or {"id", "image_layers", "hypotheses"} <= json.loads(line).keys()
    except (ValueError, AttributeError, RecursionError):
        return False


class TraceFile:
    """JSON lines: a killed run, and one on a full disk, leaves whole lines."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file, empty. Raise OSError with the remedy if it cannot be written."""
        try:
            self._file: BinaryIO | None = open_alone(path)
        except OSError as error:
            raise OSError(
                f"the exit trace cannot be written to {os.fspath(path)!r} ({error.strerror}): "
                "--exit-trace needs a file name in a folder that exists and may be written to"
            ) from error
        self.path, self._size = path, 0
        self.digest = hashlib.sha256()

    def write(self, record: dict[str, Any]) -> None:
        """Write a line. Raise WriteError if it cannot be written to its end."""
        if self._file is None:
            raise ValueError("the exit trace is closed")
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        with write_errors(self.path):
            try:
                write_all(self._file, line)
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._size)
                raise
        self._size += len(line)
        self.digest.update(line)

    def close(self) -> None:
        """Close the file. Raise WriteError if it did not reach the disk."""
        if self._file is not None:
            file, self._file = self._file, None
            with write_errors(self.path), file:
                os.fsync(file.fileno())  # some file systems report a full disk only here


def weights_in_layers(model: Any) -> float:
    """Return an OFAModel's weights per exit head, divided by the weights of a decoder layer."""
    layer = sum(weight.numel() for weight in model.decoder.layers[0].parameters())
    return model.decoder.exit_heads.parameters_per_head() / layer


class GenerationReport:
    """Collects batch after batch of a generation by one model."""

    def __init__(
        self,
        model: Any,
        trace_file: str | os.PathLike[str] | None = None,
        symbol: Callable[[int], str] | None = None,
        reference_layers: tuple[int, int] | None = None,
    ) -> None:
        """Start a report on an OFAModel whose exit policy is set.

        Args:
            trace_file: where the detail of every sentence goes; None = nowhere.
            symbol: word of a token id; with it the trace file names the words.
            reference_layers: N_E and N_D of Eq. 14; None = the model's.
        """
        self.model = model
        self._reference_layers = reference_layers
        self.exits = model.decoder.active_heads(model.decoder.exit_policy)
        self._symbol = symbol
        self._biases: dict[str, int] = {}  # FLOPs of each shape met
        self._samples: list[SampleDepth] = []
        self._seconds = 0.0
        self._executed = dict.fromkeys(PARTS, 0)
        self._full = dict.fromkeys(PARTS, 0)
        self._counted = 0  # sentences whose FLOPs are counted
        self._texts: set[str | None] = set()  # keys of texts, no more than two
        self._drafts = {"drafted": 0, "accepted": 0, "rounds": 0}
        self._trace_file = TraceFile(trace_file) if trace_file else None

    @property
    def layers(self) -> tuple[int, int]:
        """Return the number of layers of encoder and decoder."""
        return len(self.model.encoder.layers), len(self.model.decoder.layers)

    def add(
        self,
        ids: Sequence[str | int],
        trace: Any,
        hypotheses: Sequence[Sequence[Sequence[int]]],
        text_tokens: Sequence[int],
        image_size: tuple[int, int] | None,
        seconds: float,
        has_image: Sequence[bool] | None = None,
        text_keys: Sequence[str] | None = None,
    ) -> None:
        """Take in one batch.

        Args:
            ids: one name per sentence.
            trace: the model's ExitTrace of this batch; None = every layer of every token ran, and
                no FLOPs are counted.
            hypotheses: for each sentence its token lists, best first, without bos, with eos.
            text_tokens: source lengths without padding.
            image_size: (height, width) in pixels; None = the batch has no images.
            seconds: wall time that generating this batch took.
            has_image: which sentences have an image, used only without a trace; None = all, if the
                batch has images.
            text_keys: one per sentence, equal where texts are; None = unknown.

        Raises:
            ValueError: these do not belong together.
        """
        if not len(ids) == len(hypotheses) == len(text_tokens):
            raise ValueError(
                f"{len(ids)} ids, {len(hypotheses)} lists of hypotheses and {len(text_tokens)} "
                "source lengths do not describe the same batch"
            )
        if not all(hypotheses):
            raise ValueError(
                f"sentence {ids[[*map(bool, hypotheses)].index(False)]} has no hypothesis"
            )
        if trace is None:
            if has_image is None:
                has_image = [image_size is not None] * len(ids)
            encoder, decoder = self.layers
            image_layers = [encoder * bool(image) for image in has_image]
            text_layers = [encoder] * len(ids)
            depths = [[[decoder] * len(tokens) for tokens in hyps] for hyps in hypotheses]
        else:
            image_layers, text_layers = trace.image_layers.tolist(), trace.text_layers.tolist()
            if len(image_layers) != len(ids):
                raise ValueError(
                    f"the exit trace has {len(image_layers)} sentences, the batch {len(ids)}"
                )
            depths = trace.depths(hypotheses)
            self._count(trace, text_tokens, image_size)
        for number, name in enumerate(ids):
            best = tuple(depths[number][0])
            self._samples.append(SampleDepth(image_layers[number], text_layers[number], best))
            if self._trace_file:
                self._trace_file.write(
                    {
                        "id": name,
                        "image_layers": image_layers[number],
                        "text_layers": text_layers[number],
                        "hypotheses": [
                            self._detail(tokens, layers)
                            for tokens, layers in zip(
                                hypotheses[number], depths[number], strict=True
                            )
                        ],
                    }
                )
        self._seconds += seconds
        if len(self._texts) < 2:
            self._texts.update(text_keys or [None])

    def totals(self) -> RunTotals:
        """Return the sums of the run so far, which those of other shards may be added to."""
        heads = self.model.decoder.exit_heads
        return RunTotals.of(
            self._samples,
            *self.layers,
            self.exits,
            heads.depth,
            0.0 if heads.depth else weights_in_layers(self.model),
            self._reference_layers,
            seconds=self._seconds,
            counted=self._counted,
            executed=dict(self._executed),
            full=dict(self._full),
            biases=dict(self._biases),
            prompt=self._prompt,
            **self._drafts,
        )

    @property
    def _prompt(self) -> str | None:
        """Return the key of the text that a text pass had for all sentences; None if they differ.

        A joint encoder has no text pass.
        """
        is_constant = self.model.cfg.split_modalities and len(self._texts) == 1
        return next(iter(self._texts)) if is_constant else None

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the whole run, see ``RunTotals.summary``."""
        return self.totals().summary()

    def table(self) -> str:
        """Return the summary as a table."""
        return self.totals().table()

    @property
    def trace_digest(self) -> str | None:
        """Return the SHA-256 of what the trace file holds; None without a trace file."""
        return self._trace_file.digest.hexdigest() if self._trace_file else None

    def close(self) -> None:
        """Close the trace file."""
        if self._trace_file:
            self._trace_file.close()

    def _count(
        self, trace: Any, text_tokens: Sequence[int], image_size: tuple[int, int] | None
    ) -> None:
        """Add the FLOPs of a batch, and those of bias shapes that were not met before."""
        batch = batch_flops(trace)
        positions = max((step.keys for step in trace.steps), default=0)
        cells = self.model.encoder.image_tokens(*image_size) if image_size else 0
        self._biases.update(bias_costs(self.model, cells, max(text_tokens), positions))
        for total, part in ((self._executed, batch.executed), (self._full, batch.full)):
            for name, value in part.items():
                total[name] += value
        self._counted += len(text_tokens)
        for step in trace.steps:
            if step.drafted is not None:
                self._drafts["drafted"] += int(step.drafted.sum())
                self._drafts["accepted"] += int(step.accepted.sum())
                self._drafts["rounds"] += int(step.layers_run.count_nonzero())

    def _detail(self, tokens: Sequence[int], layers: Sequence[int]) -> dict[str, list]:
        detail: dict[str, list] = {"tokens": list(tokens), "layers": list(layers)}
        if self._symbol:
            detail["words"] = [self._symbol(token) for token in tokens]
        return detail
