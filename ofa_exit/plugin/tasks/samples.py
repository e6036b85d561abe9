"""Batches made by hand, as in OFA's notebooks, completed to what generation reads."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def complete_sample(
    sample: dict[str, Any], prompt: Callable[[Tensor], Tensor], pad: int
) -> dict[str, Any]:
    """Return a sample with everything that generation reads; ``sample`` is not changed.

    Args:
        sample: at least ``net_input`` with src_tokens, Long [B, T] with bos and eos, and
            patch_images, Float [B, 3, H, W]. src_lengths Long [B] and patch_masks Bool [B] may be
            missing: then all rows have an image. Names of the rows are ``uniq_ids``, or else
            ``id`` (a tensor, or an array of texts), or else their numbers.
        prompt: returns what the decoder is fed before the answer to a source, Long [P].
    """
    net_input = dict(sample["net_input"])
    sources = net_input["src_tokens"]
    rows = range(len(sources))
    if "src_lengths" not in net_input:
        net_input["src_lengths"] = sources.ne(pad).sum(dim=1)
    if "patch_masks" not in net_input:
        net_input["patch_masks"] = torch.ones(len(rows), dtype=torch.bool, device=sources.device)
    complete = {**sample, "net_input": net_input}
    if "uniq_ids" not in sample:
        ids = sample.get("id", rows)
        complete["uniq_ids"] = list(map(str, ids.tolist() if hasattr(ids, "tolist") else ids))
    if "prompt_lengths" not in sample:
        lengths = net_input["src_lengths"].tolist()
        prompts = [prompt(source[:length]) for source, length in zip(sources, lengths)]
        net_input["prev_output_tokens"] = pad_sequence(prompts, True, pad)  # [B, P]
        complete["prompt_lengths"] = sources.new_tensor([len(one) for one in prompts])
    return complete
