"""Captions and answers for a user's own images: ``ofa_exit.load`` and what it returns."""

import contextlib
import copy
import functools
import logging
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any, Optional

import torch
from fairseq import utils
from fairseq.tasks import TASK_REGISTRY

from ofa_exit.data.collate import collate
from ofa_exit.data.images import image_transform
from ofa_exit.data.own_images import OnRead
from ofa_exit.data.text import TextEncoder
from ofa_exit.evaluation.figures.cases import Word, without_free_end
from ofa_exit.plugin.calibrated import reject_foreign_config, warn_of_data
from ofa_exit.plugin.drafts import build_drafting, is_lossless, reject_lossless_scoring
from ofa_exit.plugin.errors import PredictionError, prediction_errors
from ofa_exit.plugin.image_tokens import build_token_exits
from ofa_exit.plugin.options import reject_misfit
from ofa_exit.plugin.predict.checkpoint import (
    ALIASES,
    TASKS,
    kind_of,
)
from ofa_exit.plugin.predict.exits import RUNTIME_OPTIONS, exits_of
from ofa_exit.plugin.predict.result import Prediction
from ofa_exit.plugin.predict.rows import (
    ImageRow,
    Images,
    Texts,
    image_rows,
    make_examples,
    read_ahead,
    read_row,
    reject_long_rows,
)
from ofa_exit.plugin.saved_arguments import SavedCheckpoint
from ofa_exit.plugin.tasks.base import OFATask
from ofa_exit.plugin.vocabulary import OFADictionary

logger = logging.getLogger(__name__)

CAPTION_LENGTH = 16
"""Longest caption in tokens without ``max_length``, as in OFA's evaluation."""


class Predictor:
    """A model with its vocabulary, which captions images and answers about them.

    Args:
        model: on its device.
        dictionary, encoder: vocabulary and text encoder of the model.
        saved: the checkpoint.
        config_of: returns the options of a kind of task.
    """

    def __init__(
        self,
        model: Any,
        dictionary: OFADictionary,
        encoder: TextEncoder,
        saved: SavedCheckpoint,
        config_of: Callable[[str], Any],
    ) -> None:
        self.model = model
        self.dictionary = dictionary
        self.encoder = encoder
        self._saved, self._config_of = saved, config_of
        self._tasks: dict[str, OFATask] = {}
        self._kinds_used: set[str] = set()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def depth(self) -> int:
        """Return the number of decoder layers."""
        return len(self.model.decoder.layers)

    def caption(
        self,
        images: Images,
        *,
        exits: str = "none",
        beam: Optional[int] = None,
        max_length: Optional[int] = None,
        batch_size: int = 16,
        skip_unreadable: bool = False,
        on_read: Optional[OnRead] = None,
        **exit_options: Any,
    ) -> list[Prediction]:
        """Return a caption for each image; options are those of ``predict``."""
        found = self.predict(
            "caption",
            images,
            exits=exits,
            beam=beam,
            max_length=max_length,
            batch_size=batch_size,
            skip_unreadable=skip_unreadable,
            on_read=on_read,
            **exit_options,
        )
        return list(found)

    def answer(
        self,
        images: Images,
        questions: Texts,
        objects: Optional[Texts] = None,
        *,
        exits: str = "none",
        beam: Optional[int] = None,
        max_length: Optional[int] = None,
        batch_size: int = 16,
        skip_unreadable: bool = False,
        on_read: Optional[OnRead] = None,
        **exit_options: Any,
    ) -> list[Prediction]:
        """Return an answer for each image.

        Args:
            questions: one for all images, one per image, or several about a single image.
            objects: what is in each image, joined by ``&&``, one text for all images or one per
                image; only for a checkpoint that was trained with ``--add-object``.
            exits, beam, …: those of ``predict``.
        """
        found = self.predict(
            "vqa",
            images,
            questions,
            objects=objects,
            exits=exits,
            beam=beam,
            max_length=max_length,
            batch_size=batch_size,
            skip_unreadable=skip_unreadable,
            on_read=on_read,
            **exit_options,
        )
        return list(found)

    def entail(
        self,
        images: Images,
        hypotheses: Texts,
        premises: Optional[Texts] = None,
        *,
        exits: str = "none",
        beam: Optional[int] = None,
        max_length: Optional[int] = None,
        batch_size: int = 16,
        skip_unreadable: bool = False,
        on_read: Optional[OnRead] = None,
        **exit_options: Any,
    ) -> list[Prediction]:
        """Return yes, maybe or no for each image: does it entail the hypothesis?

        Args:
            hypotheses: one for all images, one per image, or several about a single image.
            premises: captions, as many; only for a checkpoint that was trained with
                ``--add-caption``.
            exits, beam, …: those of ``predict``.
        """
        found = self.predict(
            "entailment",
            images,
            hypotheses,
            premises,
            exits=exits,
            beam=beam,
            max_length=max_length,
            batch_size=batch_size,
            skip_unreadable=skip_unreadable,
            on_read=on_read,
            **exit_options,
        )
        return list(found)

    def predict(
        self,
        task: str,
        images: Images,
        texts: Optional[Texts] = None,
        premises: Optional[Texts] = None,
        *,
        objects: Optional[Texts] = None,
        exits: str = "none",
        beam: Optional[int] = None,
        max_length: Optional[int] = None,
        batch_size: int = 16,
        skip_unreadable: bool = False,
        on_read: Optional[OnRead] = None,
        **exit_options: Any,
    ) -> Iterator[Prediction]:
        """Check everything but the images, then yield a result for each image, batch by batch.

        Args:
            task: "caption", "vqa" or "entailment", which is also called "snli_ve".
            images: paths and Pillow's images, one or several.
            texts: questions or hypotheses.
            premises: see ``entail``.
            objects: see ``answer``.
            exits: name of an exit policy, as --exit-policy.
            beam, max_length: of the search (default: beam 5, with ``lossless`` 1; captions of at
                most 16 tokens, answers of at most the training's --max-tgt-length). Not for closed
                sets of answers.
            batch_size: images that pass the model together.
            skip_unreadable: an image that cannot be read gives a result with ``error``. Without it
                the first one raises.
            on_read: is called with the name and the image, in RGB, once it has been read, in one of
                the threads that read.
            exit_options: options of the policy without their prefix exit_, as
                ``decoder_threshold=0.9``; also ``kv`` and ``preset``. ``image_tokens`` is the share
                of an image's tokens that run after encoder layer 1. ``lossless`` drafts so many
                tokens at a time, for a beam of 1, and ``lossless_layer`` is the layer that drafts.
                ``config``, a file of ``ofa-exit calibrate``, stands in place of all options.

        Raises:
            PredictionError: invalid options, or an image that cannot be read.
        """
        with prediction_errors():
            for name, value in (("beam", beam), ("max_length", max_length)):
                _reject_below_one(name, 1 if value is None else value)
            _reject_below_one("batch_size", batch_size)
            task = ALIASES.get(task, task)
            prepared = self._task(task)
            self._warn_of_other_training(task)
            policy, flags = exits_of(exits, exit_options, prepared.exit_defaults)
            reject_foreign_config(prepared.cfg, prepared.prefix, flags.exit_config, policy)
            warn_of_data(flags, None)
            prepared.exit_policy = policy
            for name in ("policy", *RUNTIME_OPTIONS):
                setattr(prepared.cfg, f"exit_{name}", getattr(flags, f"exit_{name}"))
            reject_lossless_scoring(prepared.cfg, prepared.searches(prepared.cfg))
            reject_misfit(prepared.cfg, prepared.exit_policy, self.model)
            generator = prepared.build_generator(
                [self.model], _search_options(task, prepared, beam, max_length)
            )
            prepared.exit_reports = []  # they would grow with the images, and are never printed
            rows = image_rows(task, prepared.cfg, self.encoder, images, texts, premises, objects)
            reject_long_rows(rows, self.model.max_positions()[0])
        parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
        return self._predictions(prepared, generator, parts, skip_unreadable, on_read)

    # ------------------------------------------------------------------ generation

    def _warn_of_other_training(self, kind: str) -> None:
        """Log once that the checkpoint was trained for another task, if it names its task."""
        saved = self._saved.task_options
        trained = kind_of(saved) or saved.get("_name")
        if trained not in (kind, None) and kind not in self._kinds_used:
            logger.warning("the checkpoint was trained for %s, not for %s", trained, kind)
        self._kinds_used.add(kind)

    def _task(self, kind: str) -> OFATask:
        """Return a copy of the task, for options of its own."""
        if kind not in TASKS:
            raise ValueError(f"unknown task {kind!r}: choose from {', '.join(TASKS)}")
        if kind not in self._tasks:
            cfg = self._config_of(kind)
            self._tasks[kind] = TASK_REGISTRY[TASKS[kind]](cfg, None, self.dictionary, self.encoder)
        task = copy.copy(self._tasks[kind])
        task.cfg = copy.copy(task.cfg)
        return task

    def _predictions(
        self,
        task: Any,
        generator: Any,
        parts: Iterator[list[ImageRow]],
        skip_unreadable: bool,
        on_read: Optional[OnRead],
    ) -> Iterator[Prediction]:
        size = task.cfg.patch_image_size
        imagenet = task.cfg.imagenet_default_mean_and_std
        transform = image_transform(size, "imagenet" if imagenet else "half")
        read = functools.partial(
            read_row, max_pixels=task.cfg.max_image_pixels, transform=transform, on_read=on_read
        )
        with contextlib.closing(read_ahead(parts, read)) as batches:
            for rows, images in batches:
                examples, problems = make_examples(rows, images, task)
                for row, problem in zip(rows, problems):
                    if problem and not skip_unreadable:
                        raise PredictionError(f"{row.name}: {problem}")
                sample = collate(examples, self.dictionary.pad(), size)
                found = iter(self._batch(task, generator, sample) if sample else ())
                for row, problem in zip(rows, problems):
                    if problem:
                        yield Prediction(row.name, row.text, error=problem)
                    else:
                        yield Prediction(row.name, row.text, **next(found))

    def _batch(self, task: Any, generator: Any, sample: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield what is predicted for each row of a batch, as arguments of ``Prediction``."""
        del sample["references"]  # there are none to print
        sample = utils.apply_to_sample(lambda tensor: tensor.to(self.device), sample)
        # At full depth, too, the trace says which layers ran.
        kv, drafting = task.cfg.exit_kv or "propagate", build_drafting(task.cfg, self.depth)
        self.model.configure_exits(
            task.exit_policy,
            kv,
            trace=True,
            drafting=drafting,
            token_exits=build_token_exits(task.cfg),
        )
        start = time.perf_counter()
        hyps = task.inference_step(generator, [self.model], sample)
        best = [sentence_hyps[0] for sentence_hyps in hyps]
        tokens = [hyp["tokens"].tolist() for hyp in best]
        seconds = (time.perf_counter() - start) / len(best)
        (trace,) = task.traces(generator, [self.model])
        depths = trace.depths([[one] for one in tokens])
        passes = zip(trace.image_layers.tolist(), trace.text_layers.tolist())
        for hyp, row_tokens, (layers,), (image_layers, text_layers) in zip(
            best, tokens, depths, passes
        ):
            words = list(map(Word, task.token_texts(row_tokens), layers))
            yield {
                "text": "".join(word.text for word in words).strip(),
                "score": float(hyp["score"]),
                "words": without_free_end(words),
                "image_layers": image_layers,
                "text_layers": text_layers,
                "seconds": seconds,
                "exits": task.cfg.exit_policy,
                "depth": self.depth,
            }


def _reject_below_one(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} {value!r}: give a whole number of at least 1")


def _search_options(
    kind: str, task: Any, beam: Optional[int], max_length: Optional[int]
) -> Namespace:
    """Return fairseq's generation options, only the given ones if all answers are scored."""
    given = {"beam": beam, "max_len_b": max_length}
    usual_beam = 1 if is_lossless(task.cfg) else 5
    options = {name: value for name, value in given.items() if value is not None}
    if getattr(task, "trie", None) is not None:
        # A search among candidates ends with the longest one.
        scored = getattr(task, "scores_candidates", True)
        usual = {} if scored else {"beam": usual_beam, "unnormalized": True}
        return Namespace(**{**usual, **options})
    if kind == "caption":
        return Namespace(**{"beam": usual_beam, "max_len_b": CAPTION_LENGTH, **options})
    usual = {"beam": usual_beam, "max_len_b": task.cfg.max_tgt_length, "unnormalized": True}
    return Namespace(**{**usual, **options})
