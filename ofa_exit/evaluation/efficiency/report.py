"""What a generation used: layers, savings and time, as a summary and as a line a sentence."""

import dataclasses
import json
import os
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any, BinaryIO

from ofa_exit.evaluation.efficiency import flops
from ofa_exit.evaluation.efficiency.depth import SampleDepth
from ofa_exit.evaluation.efficiency.flops import ModelShape, StemCost
from ofa_exit.evaluation.efficiency.totals import RunTotals


class TraceFile:
    """JSON lines, each written by one unbuffered call: a run that is killed leaves whole lines."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens the file, empty. Raises OSError with the remedy where it cannot be written."""
        try:
            self._file: BinaryIO | None = open(path, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise OSError(
                f"the exit trace cannot be written to {os.fspath(path)!r} ({error.strerror}): "
                "--exit-trace needs a file name in a folder that exists and may be written to"
            ) from error

    def write(self, record: dict[str, Any]) -> None:
        if self._file is None:
            raise ValueError("the exit trace is closed already")
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class GenerationReport:
    """Collects batch after batch of a generation by one model."""

    def __init__(
        self,
        shape: ModelShape,
        stem_cost: Callable[[tuple[int, int]], StemCost],
        kv: str = "propagate",
        trace_file: str | os.PathLike[str] | None = None,
        symbol: Callable[[int], str] | None = None,
        exits: Collection[int] = (),
    ) -> None:
        """stem_cost: cost of the stem at a (height, width). For the others see `for_model`."""
        if kv not in flops.KV_MODES:
            raise ValueError(f"K/V mode {kv!r}: choose one of {', '.join(flops.KV_MODES)}")
        self.shape = shape
        self.kv = kv
        self.exits = exits
        self._stem_cost = stem_cost
        self._symbol = symbol
        self._stems: dict[tuple[int, int], StemCost] = {}
        self._biases: dict[str, int] = {}  # operations of each shape met
        self._samples: list[SampleDepth] = []
        self._seconds = 0.0
        self._executed = dict.fromkeys(flops.PARTS, 0)
        self._full = dict.fromkeys(flops.PARTS, 0)
        self._counted = 0  # sentences whose operations are counted
        self._trace_file = TraceFile(trace_file) if trace_file else None

    @classmethod
    def for_model(
        cls,
        model: Any,
        kv: str = "propagate",
        trace_file: str | os.PathLike[str] | None = None,
        symbol: Callable[[int], str] | None = None,
        words: int | None = None,
    ) -> "GenerationReport":
        """Report on an OFAModel.

        kv: how the model fills the K/V of skipped layers, "propagate" or "recompute". trace_file:
        where the detail of every sentence goes, None = nowhere. symbol: word of a token id; with
        it the trace file names the words. words: how many are scored at a time; None = all.
        """
        stem, shape = model.encoder.embed_images, ModelShape.from_model(model)
        return cls(
            shape if words is None else dataclasses.replace(shape, vocabulary=words),
            lambda size: flops.stem_cost(stem, size),
            kv,
            trace_file,
            symbol,
            model.decoder.used_exits(),
        )

    def add(
        self,
        ids: Sequence[str | int],
        trace: Any,
        hypotheses: Sequence[Sequence[Sequence[int]]],
        text_tokens: Sequence[int],
        image_size: tuple[int, int] | None,
        seconds: float,
        pictures: Sequence[bool] | None = None,
    ) -> None:
        """Takes in one batch.

        ids: one name a sentence. trace: the model's ExitTrace of this batch; None = every layer of
        every token ran, and no operations are counted. hypotheses: for each sentence its token
        lists, best first, without bos, with eos. text_tokens: unpadded source lengths. image_size:
        (height, width) in pixels; None = the batch has no pictures. seconds: wall time that
        generating this batch took. pictures: which sentences have one, asked only where no trace
        tells; None = all, if the batch has pictures.

        Raises ValueError where these do not belong together.
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
            if pictures is None:
                pictures = [image_size is not None] * len(ids)
            image_layers = [self.shape.encoder_layers * bool(picture) for picture in pictures]
            text_layers = [self.shape.encoder_layers] * len(ids)
            full = self.shape.decoder_layers
            depths = [[[full] * len(tokens) for tokens in of] for of in hypotheses]
        else:
            image_layers, text_layers = trace.image_layers.tolist(), trace.text_layers.tolist()
            if len(image_layers) != len(ids):
                raise ValueError(
                    f"the exit trace is of {len(image_layers)} sentences, the batch of {len(ids)}"
                )
            depths = trace.depths(hypotheses)
            self._count(trace, image_layers, text_layers, text_tokens, image_size)
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

    def totals(self) -> RunTotals:
        """The sums of the run so far, which those of other shards may be added to."""
        return RunTotals.of(
            self._samples,
            self.shape.encoder_layers,
            self.shape.decoder_layers,
            self.exits,
            seconds=self._seconds,
            counted=self._counted,
            executed=dict(self._executed),
            full=dict(self._full),
            biases=dict(self._biases),
        )

    def summary(self) -> dict[str, float | int | None]:
        """Numbers of the whole run, see `RunTotals.summary`."""
        return self.totals().summary()

    def table(self) -> str:
        """The summary for people."""
        return self.totals().table()

    def close(self) -> None:
        """Closes the trace file."""
        if self._trace_file:
            self._trace_file.close()

    def __enter__(self) -> "GenerationReport":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def _count(
        self,
        trace: Any,
        image_layers: Sequence[int],
        text_layers: Sequence[int],
        text_tokens: Sequence[int],
        image_size: tuple[int, int] | None,
    ) -> None:
        stem = None
        if image_size:
            if image_size not in self._stems:
                self._stems[image_size] = self._stem_cost(image_size)
            stem = self._stems[image_size]
        calls = flops.trace_calls(trace)
        rows = None if trace.image_rows is None else trace.image_rows.tolist()
        batch = flops.batch_flops(
            self.shape, stem, image_layers, text_layers, text_tokens, calls, self.kv, rows
        )
        self._add_biases(
            stem.tokens if stem else 0,
            max(text_tokens),
            max((call.keys or call.length for call in calls), default=0),
        )
        for total, part in ((self._executed, batch.executed), (self._full, batch.full)):
            for name, value in part.items():
                total[name] += value
        self._counted += len(text_tokens)

    def _add_biases(self, image: int, text: int, positions: int) -> None:
        """Position biases of a batch, those of shapes that were met before once. ``positions``
        are those that the decoder's are made for; no depth changes them."""
        source = image + text
        made = {
            ("encoder", image, flops.bias_text(self.shape, image, text)): flops.encoder_biases(
                self.shape, image, text
            ),
            ("self", positions): flops.decoder_self_bias(self.shape, positions),
            ("cross", image, text, positions): flops.decoder_cross_bias(
                self.shape, positions, source
            ),
        }
        self._biases.update({" ".join(map(str, shape)): cost for shape, cost in made.items()})

    def _detail(self, tokens: Sequence[int], layers: Sequence[int]) -> dict[str, list]:
        detail: dict[str, list] = {"tokens": list(tokens), "layers": list(layers)}
        if self._symbol:
            detail["words"] = [self._symbol(token) for token in tokens]
        return detail
