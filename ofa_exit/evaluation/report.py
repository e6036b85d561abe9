"""What a generation used: layers, savings and time, as a summary and as a line a sentence."""

import dataclasses
import json
import os
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any, BinaryIO

from ofa_exit.evaluation import flops
from ofa_exit.evaluation.depth import (
    SampleDepth,
    expected_time_reduction,
    mean_layers,
    parameter_speedup,
)
from ofa_exit.evaluation.flops import ModelShape, StemCost

GIGA = 1e9


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
        self._shapes_seen: set[tuple] = set()
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

    def summary(self) -> dict[str, float | int | None]:
        """Numbers of the whole run; None where there is nothing to count.

        Layers and expected_time_reduction as in `depth`; flop_reduction is 1 - executed / full
        operations, each summed over the run (0 without a trace); seconds_per_sentence is the
        measured time, which depends on the machine and the batch size. Where no exits are used,
        parameter_speedup counts the decoder's layers alone (k = 0).
        """
        count = len(self._samples)
        layers = mean_layers(self._samples) if count else None
        executed, full = sum(self._executed.values()), sum(self._full.values())
        per_sentence = GIGA * self._counted
        reduction = flops.flop_reduction(self._executed, self._full) if self._counted else 0.0
        return {
            "sentences": count,
            "words": sum(len(sample.word_layers) for sample in self._samples),
            "image_layers": layers.image if layers else None,
            "text_layers": layers.text if layers else None,
            "decoder_layers": layers.decoder if layers else None,
            "encoder_layers_full": self.shape.encoder_layers,
            "decoder_layers_full": self.shape.decoder_layers,
            "expected_time_reduction": self._expected_time_reduction() if count else None,
            "flop_reduction": reduction if count else None,
            "parameter_speedup": (
                parameter_speedup(self._samples, self.shape.decoder_layers, self.exits)
                if count
                else None
            ),
            "gflops_per_sentence": executed / per_sentence if self._counted else None,
            "gflops_full_per_sentence": full / per_sentence if self._counted else None,
            "seconds_per_sentence": self._seconds / count if count else None,
            "seconds": self._seconds,
        }

    def table(self) -> str:
        """The summary for people."""
        values = self.summary()
        if not values["sentences"]:
            return "exits: no sentence was generated, so there is nothing to report"
        encoder, decoder = values["encoder_layers_full"], values["decoder_layers_full"]
        rows = [
            ("sentences", f"{values['sentences']}"),
            ("words of the best hypotheses", f"{values['words']}"),
        ]
        for name, total in (("image", encoder), ("text", encoder), ("decoder", decoder)):
            layers = values[f"{name}_layers"]
            shown = "none in this run" if layers is None else f"{layers:.2f} of {total}"
            rows.append((f"mean {name} layers", shown))
        rows.append(
            ("expected_time_reduction", f"{100 * (values['expected_time_reduction'] or 0):.1f} %")
        )
        reduction = f"{100 * (values['flop_reduction'] or 0):.1f} %"
        if values["gflops_per_sentence"] is not None:
            reduction += (
                f" ({values['gflops_per_sentence']:.3f} of "
                f"{values['gflops_full_per_sentence']:.3f} GFLOPs a sentence)"
            )
        rows.append(("flop_reduction", reduction))
        if self.exits:
            exits = ",".join(map(str, self.exits))
            shown = f"{values['parameter_speedup']:.2f} x (exits behind layers {exits})"
            rows.append(("parameter_speedup", shown))
        rows.append(("measured time a sentence", f"{values['seconds_per_sentence']:.4f} s"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

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

    def _expected_time_reduction(self) -> float:
        return expected_time_reduction(
            self._samples, self.shape.encoder_layers, self.shape.decoder_layers
        )

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
        batch = flops.batch_flops(
            self.shape, stem, image_layers, text_layers, text_tokens, calls, self.kv
        )
        biases = self._biases(
            stem.tokens if stem else 0,
            max(text_tokens),
            max((call.keys or call.length for call in calls), default=0),
        )
        for total, part in ((self._executed, batch.executed), (self._full, batch.full)):
            for name, value in part.items():
                total[name] += value
            total["biases"] += biases
        self._counted += len(text_tokens)

    def _biases(self, image: int, text: int, positions: int) -> int:
        """Position biases of a batch, those of shapes that were met before left out. ``positions``
        are those that the decoder's are made for; no depth changes them."""
        source = image + text
        made = {
            ("encoder", image, text): flops.encoder_biases(self.shape, image, text),
            ("self", positions): flops.decoder_self_bias(self.shape, positions),
            ("cross", image, text, positions): flops.decoder_cross_bias(
                self.shape, positions, source
            ),
        }
        cost = sum(cost for shape, cost in made.items() if shape not in self._shapes_seen)
        self._shapes_seen.update(made)
        return cost

    def _detail(self, tokens: Sequence[int], layers: Sequence[int]) -> dict[str, list]:
        detail: dict[str, list] = {"tokens": list(tokens), "layers": list(layers)}
        if self._symbol:
            detail["words"] = [self._symbol(token) for token in tokens]
        return detail
