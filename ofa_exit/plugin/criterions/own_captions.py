"""Training without labels: the model's own captions for rows that have none."""

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence


def with_own_captions(task: Any, model: Any, sample: dict[str, Any]) -> dict[str, Any]:
    """Return a batch in which the model's own captions stand for missing ones.

    They are what validation would generate (``--eval-args``, by default beam search with 5 beams),
    at full depth, without gradients and dropout. The decoder is fed them as it would be fed labels.
    Distillation needs no more (BLIPEE Section 3.4): the final layer gives the targets.

    Args:
        task: makes the generator and generates.
        sample: B rows; those without ``references`` have no caption, and eos as their only target.

    Returns:
        ``sample`` itself if all rows have captions. Otherwise a copy with new
        ``prev_output_tokens`` and ``target``, Long [B, L] each, and ``ntokens``.
    """
    unlabelled = [not references for references in sample.get("references", ())]
    if not any(unlabelled):
        return sample
    was_training = model.training
    try:
        generator = task.validation_generator(model)  # puts the model in eval mode
        hyps = task.generate(generator, [model], sample)
    finally:
        model.train(was_training)
    inputs, targets = [], []
    prompt_lengths = sample["prompt_lengths"].tolist()  # bos included
    for row, length in enumerate(prompt_lengths):
        prev_output, target = sample["net_input"]["prev_output_tokens"][row], sample["target"][row]
        if unlabelled[row]:
            caption = hyps[row][0]["tokens"]  # Long [A + 1], ends with eos
            prev_output = torch.cat([prev_output[:length], caption[:-1]])
            target = torch.cat([target[: length - 1], caption])  # pad under the prompt
        inputs.append(prev_output)
        targets.append(target)
    pad = task.target_dictionary.pad()
    prev_output_tokens, target = (
        pad_sequence(rows, batch_first=True, padding_value=pad) for rows in (inputs, targets)
    )
    return {
        **sample,
        "net_input": {**sample["net_input"], "prev_output_tokens": prev_output_tokens},
        "target": target,
        "ntokens": int(target.ne(pad).sum()),
    }
