"""Examples to a batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ofa_exit.data.example import Example


def collate(examples: Sequence[Example | None], pad: int, image_size: int) -> dict:
    """A fairseq sample of B examples; None (a row left out) is dropped, {} when nothing is left.

    Token matrices are padded on the right with ``pad``. Of ``net_input``: src_tokens Long[B, T],
    src_lengths Long[B], patch_images Float[B, 3, H, W] (zeros without image), patch_masks Bool[B]
    (False without image), prev_output_tokens Long[B, L], padded (False where all sources are of one
    length and all images there). Where examples share the tensor of an image, patch_images holds it
    once, and image_rows Long[B] tells which of them each example has. Where images are missing,
    pictured Long[I] tells which of patch_images are there. Beside it: target Long[B, L],
    prompt_lengths Long[B], references, uniq_ids, id Long[B] (the row), nsentences, ntokens (targets
    that count), and, where examples have them, constraint_masks Bool[B, L, V] (padding is
    unconstrained), conf Float[B] (1 for an example without) and candidates, a list for each.
    """
    kept = [example for example in examples if example is not None]
    if not kept:
        return {}
    target = _stack([example.target for example in kept], pad)
    lengths = [len(example.source) for example in kept]
    pictures = [example.image is not None for example in kept]
    images, image_rows = _images(kept, image_size)
    batch: dict[str, Any] = {
        "id": torch.tensor([example.index for example in kept]),
        "uniq_ids": [example.uniq_id for example in kept],
        "nsentences": len(kept),
        "ntokens": int(target.ne(pad).sum()),
        "net_input": {
            "src_tokens": _stack([example.source for example in kept], pad),
            "src_lengths": torch.tensor(lengths),
            "patch_images": images,
            "patch_masks": torch.tensor(pictures),
            "padded": min(lengths) < max(lengths) or not all(pictures),
            "prev_output_tokens": _stack([example.prev_output for example in kept], pad),
        },
        "target": target,
        "prompt_lengths": torch.tensor([example.prompt_length for example in kept]),
        "references": [example.references for example in kept],
    }
    if len(images) < len(kept):
        batch["net_input"]["image_rows"] = torch.tensor(image_rows)
    if not all(pictures):
        there = {row for row, picture in zip(image_rows, pictures) if picture}
        batch["net_input"]["pictured"] = torch.tensor(sorted(there), dtype=torch.long)
    masks = [example.constraint_mask for example in kept if example.constraint_mask is not None]
    if masks:
        if len(masks) < len(kept):
            raise ValueError("some examples of the batch have a constraint mask and some have none")
        batch["constraint_masks"] = _stack(masks, True)
    if any(example.conf is not None for example in kept):
        confs = [1.0 if example.conf is None else example.conf for example in kept]
        batch["conf"] = torch.tensor(confs)
    if any(example.candidates is not None for example in kept):
        batch["candidates"] = [example.candidates for example in kept]
    return batch


def _stack(rows: list[Tensor], padding: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=padding)


def _images(examples: list[Example], size: int) -> tuple[Tensor, list[int]]:
    """The images, each once, and which of them each example has; zeros for one without."""
    places: dict[int, int] = {}
    rows = []
    for at, example in enumerate(examples):
        key = -1 - at if example.image is None else id(example.image)
        rows.append(places.setdefault(key, len(places)))
    images = torch.zeros(len(places), 3, size, size)
    for row, example in zip(rows, examples):
        if example.image is not None:
            images[row] = example.image
    return images, rows
