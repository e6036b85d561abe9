"""A closed set of answers, and a slow loop that scores each answer."""

import torch

from helpers import small_models as helpers
from ofa_exit.data.trie import AnswerTrie

PAD, EOS = 1, 2
ANSWERS = [[5], [7, 8], [7, 9, 10]]


TRIE = AnswerTrie(ANSWERS, EOS)


def sample(prompts: bool, rows: int = 3) -> dict:
    """Three rows with prompts of 2, 4 and 3 tokens, or with bos alone."""
    net_input = helpers.batch(rows)
    lengths = torch.tensor([2, 4, 3] if prompts else [1, 1, 1])[:rows]
    prev = net_input["prev_output_tokens"]
    prev[:, 4:] = PAD  # as collate pads
    return {
        "id": torch.arange(rows),
        "uniq_ids": [f"s{row}" for row in range(rows)],
        "net_input": net_input,
        "prompt_lengths": lengths,
    }


def one_by_one(model, batch, number, trie=TRIE):
    """Return the token log-probabilities of every answer of one sentence."""
    net_input = helpers.select(batch["net_input"], number)
    prompt = net_input.pop("prev_output_tokens")[0, : batch["prompt_lengths"][number]].tolist()
    result = []
    for answer in trie.answers:
        tokens = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = model(**net_input, prev_output_tokens=tokens)[0][0, len(prompt) - 1 :]
        scores = []
        for t, token in enumerate([*answer, EOS]):
            allowed = trie.allowed_next(answer[:t])
            scores.append(logits[t, allowed].log_softmax(0)[allowed.index(token)])
        result.append(torch.stack(scores))
    return result
