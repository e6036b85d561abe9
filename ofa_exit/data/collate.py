"""Examples to a batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ofa_exit.data.example import Example


def collate(examples: Sequence[Example | None], pad: int, image_size: int) -> dict:
    """Return a fairseq sample of B examples. None (a skipped row) is dropped; no examples give {}.

    Token matrices are padded on the right with ``pad``. The keys of ``net_input``:

    - src_tokens Long [B, T], src_lengths Long [B], prev_output_tokens Long [B, L];
    - patch_images Float [I, 3, H, W], zeros for a row without an image. I = B, or fewer where
      examples share an image (``Example.image_id``);
    - image_rows Long [B], the image of each example; only where I < B;
    - shared_source, True where I < B and examples that share an image have the same source;
    - patch_masks Bool [B], False without an image;
    - text_keys, one text per example that stands for its source: equal where sources are;
    - padded, False where all sources have one length and all rows have an image.

    The other keys: target Long [B, L], prompt_lengths Long [B], references, uniq_ids, id Long [B]
    (the row), image_keys Long [B] (equal where rows have the same image field), nsentences, ntokens
    (targets that count). Where examples have them, also
    constraint_masks Bool [B, L, V] (padding is unconstrained), conf Float [B] (1 for an example
    without) and candidates, one list per example.
    """
    kept = [example for example in examples if example is not None]
    if not kept:
        return {}
    target = _stack([example.target for example in kept], pad)  # [B, L]
    lengths = [len(example.source) for example in kept]
    has_image = [example.image is not None for example in kept]
    images, image_rows = _images(kept, image_size)
    batch: dict[str, Any] = {
        "id": torch.tensor([example.index for example in kept]),
        "image_keys": torch.tensor([example.image_key for example in kept]),
        "uniq_ids": [example.uniq_id for example in kept],
        "nsentences": len(kept),
        "ntokens": int(target.ne(pad).sum()),
        "net_input": {
            "src_tokens": _stack([example.source for example in kept], pad),
            "src_lengths": torch.tensor(lengths),
            "text_keys": [" ".join(map(str, example.source.tolist())) for example in kept],
            "patch_images": images,
            "patch_masks": torch.tensor(has_image),
            "padded": min(lengths) < max(lengths) or not all(has_image),
            "prev_output_tokens": _stack([example.prev_output for example in kept], pad),
        },
        "target": target,
        "prompt_lengths": torch.tensor([example.prompt_length for example in kept]),
        "references": [example.references for example in kept],
    }
    if len(images) < len(kept):
        batch["net_input"]["image_rows"] = torch.tensor(image_rows)
        sources = set(zip(image_rows, batch["net_input"]["text_keys"]))
        batch["net_input"]["shared_source"] = len(sources) == len(images)
    masks = [example.constraint_mask for example in kept if example.constraint_mask is not None]
    if masks:
        if len(masks) < len(kept):
            raise ValueError("some examples of the batch have a constraint mask and some have none")
        batch["constraint_masks"] = _stack(masks, True)  # [B, L, V]
    if any(example.conf is not None for example in kept):
        confs = [1.0 if example.conf is None else example.conf for example in kept]
        batch["conf"] = torch.tensor(confs)
    if any(example.candidates is not None for example in kept):
        batch["candidates"] = [example.candidates for example in kept]
    return batch


def _stack(rows: list[Tensor], padding: int) -> Tensor:
    """Pad B tensors [L_i, …] to one [B, L, …]."""
    return pad_sequence(rows, batch_first=True, padding_value=padding)


def _images(examples: list[Example], size: int) -> tuple[Tensor, list[int]]:
    """Return the images [I, 3, H, W], a shared one once, and the image row of each example."""
    row_of_key: dict[tuple[str, int], int] = {}
    rows = []
    for number, example in enumerate(examples):
        key = ("example", number)  # an image, or zeros, of its own
        if example.image is not None and example.image_id is not None:
            key = ("image", example.image_id)
        rows.append(row_of_key.setdefault(key, len(row_of_key)))
    images = torch.zeros(len(row_of_key), 3, size, size)
    for row, example in zip(rows, examples):
        if example.image is not None:
            images[row] = example.image
    return images, rows
