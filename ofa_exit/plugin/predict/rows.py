"""Images paired with texts, and the batches that they make."""

import logging
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from ofa_exit.data.caption import PROMPT
from ofa_exit.data.example import Example, answer_sequences
from ofa_exit.data.images import ImageError
from ofa_exit.data.own_images import ImageLike, OnRead, image_list, image_name, read_image
from ofa_exit.data.snli_ve import source_text
from ofa_exit.data.text import TextEncoder, normalise_sentence
from ofa_exit.data.vqa import object_text, question_text

logger = logging.getLogger(__name__)

Images = ImageLike | Sequence[ImageLike]
Texts = str | Sequence[str]
ReadImage = tuple[Optional[Tensor], str]
"""An image, Float [3, H, W], or None and what is wrong with it."""

THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class ImageRow:
    """An image, not yet read, and what is asked about it.

    Attributes:
        name: path of the image, or its number.
        text: the question or hypothesis as it was given.
        source: Long [T], with bos and eos.
    """

    image: ImageLike
    name: str
    text: str
    source: Tensor


def image_rows(
    kind: str,
    cfg: Any,
    encoder: TextEncoder,
    images: Images,
    texts: Optional[Texts],
    premises: Optional[Texts] = None,
    objects: Optional[Texts] = None,
) -> list[ImageRow]:
    """Pair images with their texts, and encode the texts.

    Args:
        kind: "caption", "vqa" or "entailment".
        cfg: options of the task.
        texts: questions or hypotheses.
        premises: of entailment, see ``Predictor.entail``.
        objects: of questions, see ``Predictor.answer``.

    Raises:
        ValueError: texts are missing, have no words, or are not as many as the images.
    """
    several = [(one, image_name(one, n)) for n, one in enumerate(image_list(images), start=1)]
    if kind == "caption":
        given = [""] * len(several)
        sources = [PROMPT] * len(several)
        additions: Sequence[str] = [""] * len(several)
    elif not texts:
        raise ValueError(f"{kind} needs {'questions' if kind == 'vqa' else 'hypotheses'}")
    else:
        if len(several) == 1 and not isinstance(texts, str):
            several = several * len(texts)
        given = _one_per_image("texts", texts, len(several))
        limit = cfg.max_src_length
        if kind == "vqa":
            sources = [question_text(text, limit) for text in given]
            additions = _object_texts(cfg, objects, len(several))
        else:
            additions = [""] * len(several)
            hypotheses = [normalise_sentence(text, limit) for text in given]
            # Without a hypothesis there is no source, which the encoding below rejects.
            sources = [
                hypothesis and source_text(hypothesis, premise)
                for hypothesis, premise in zip(hypotheses, _premises(cfg, premises, len(several)))
            ]
    # Rows often share a source, whose unknown words are to be logged once.
    keys = list(zip(sources, additions))
    texts_of = dict(zip(keys, given))
    encoded = {key: _encoded(encoder, *key, text) for key, text in texts_of.items()}
    return [
        ImageRow(image, name, text, encoded[key])
        for (image, name), text, key in zip(several, given, keys)
    ]


def _one_per_image(what: str, texts: Texts, count: int) -> list[str]:
    if isinstance(texts, str):
        return [texts] * count
    if len(texts) != count:
        raise ValueError(
            f"{len(texts)} {what} for {count} images: give one for all, or one per image"
        )
    return list(texts)


def _premises(cfg: Any, premises: Optional[Texts], count: int) -> Sequence[Optional[str]]:
    if not cfg.add_caption:
        if premises:
            raise ValueError(
                "premises: the checkpoint was trained without --add-caption. Leave them out, or "
                "load it with add_caption=True"
            )
        return [None] * count
    if not premises:
        raise ValueError(
            "the checkpoint was trained with --add-caption: give premises (--premise), or load it "
            "with add_caption=False"
        )
    several = _one_per_image("premises", premises, count)
    return [normalise_sentence(one, cfg.max_src_length) for one in several]


def _object_texts(cfg: Any, objects: Optional[Texts], count: int) -> Sequence[str]:
    """Return what follows each question: the predicted objects, for a model that reads them."""
    if not cfg.add_object:
        if objects:
            raise ValueError(
                "objects: the checkpoint was trained without --add-object. Leave them out, or "
                "load it with add_object=True"
            )
        return [""] * count
    if not objects:
        logger.warning(
            "the checkpoint was trained with --add-object, and no objects are given: questions end "
            "in ' object:' alone. Give what is in the image as objects (--objects)"
        )
    several = _one_per_image("objects", objects or "", count)
    return [object_text(" ".join(one.split()), cfg.max_object_length) for one in several]


def _encoded(encoder: TextEncoder, source: str, addition: str, text: str) -> Tensor:
    """Return the tokens of a source, Long [T], with bos and eos. Log words that are unknown.

    Args:
        addition: follows the source.
        text: as the user gave it.
    """
    if not source:
        raise ValueError(f"{text!r} has no words: give a question or a hypothesis")
    unknown: list[str] = []
    tokens = encoder.encode_source(source, unknown)
    if addition:  # encoded alone and put before eos, as the data set does
        tokens = torch.cat([tokens[:-1], encoder.encode(addition, unknown), tokens[-1:]])
    if unknown:
        words = ", ".join(map(repr, dict.fromkeys(unknown)))
        read = f"{source}{addition}".strip()
        logger.warning("not in the dictionary, read as unknown: %s of %r", words, read)
    return tokens


def reject_long_rows(rows: Sequence[ImageRow], limit: int) -> None:
    """Raise ValueError for a source of more tokens than the model has positions."""
    for row in rows:
        if len(row.source) > limit:
            raise ValueError(
                f"{row.text[:40]!r}… makes {len(row.source)} tokens, more than the model's {limit} "
                "positions. Shorten it"
            )


def read_row(
    row: ImageRow,
    max_pixels: int,
    transform: Callable[[Any], Tensor],
    on_read: Optional[OnRead] = None,
) -> ReadImage:
    """Read the image of a row and turn it into a tensor.

    Args:
        on_read: see ``Predictor.predict``.
    """
    try:
        whole = read_image(row.image, max_pixels)
        tensor = transform(whole)
        if on_read is not None:
            on_read(row.name, whole)
    except ImageError as error:
        return None, str(error)
    return tensor, ""


def read_ahead(
    parts: Iterable[list[ImageRow]], read: Callable[[ImageRow], ReadImage]
) -> Generator[tuple[list[ImageRow], dict[int, ReadImage]], None, None]:
    """Yield each batch with its images, by ``id`` of ``ImageRow.image``, in order.

    Threads read the next batch while the caller works on one: decoding releases Python's lock. An
    image that several rows of a batch share is read once. An error of ``read`` is raised in the
    turn of its batch.
    """
    pool = ThreadPoolExecutor(THREADS)

    def begin(rows: list[ImageRow]) -> tuple[list[ImageRow], dict[int, Future[ReadImage]]]:
        shared = {id(row.image): row for row in rows}
        return rows, {key: pool.submit(read, row) for key, row in shared.items()}

    try:
        begun = map(begin, parts)
        current = next(begun, None)
        while current is not None:
            following = next(begun, None)
            rows, jobs = current
            yield rows, {key: job.result() for key, job in jobs.items()}
            current = following
    finally:
        pool.shutdown(cancel_futures=True)


def make_examples(
    rows: Sequence[ImageRow], images: Mapping[int, ReadImage], task: Any
) -> tuple[list[Optional[Example]], list[str]]:
    """Return the examples of a batch, of which shared images are encoded once.

    Args:
        images: those of ``read_ahead``.

    Returns:
        The example of each row, None for an image that cannot be read; and what is wrong with the
        image, "" if nothing is.
    """
    examples: list[Optional[Example]] = []
    for number, row in enumerate(rows):
        image, _ = images[id(row.image)]
        prompt = task.prompt(row.source)
        prev_output, target, length = answer_sequences(prompt, prompt[:0], task.dictionary)
        example = Example(
            index=number,
            uniq_id=row.name,
            source=row.source,
            prev_output=prev_output,
            target=target,
            prompt_length=length,
            image=image,
            references=[],
            unknown=[],
            image_id=id(row.image),
        )
        examples.append(None if image is None else example)
    return examples, [images[id(row.image)][1] for row in rows]
