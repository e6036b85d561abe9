"""Beam search among the candidates of a closed set, as OFA's ``--beam-search-vqa-eval``."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from ofa_exit.data.trie import AnswerTrie
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.search.options import DEFAULTS, UNSUPPORTED, reject_options
from ofa_exit.plugin.search.prompted import BoundedEnsemble

# Options of a search that find the best candidates in another way. All others would cut or forbid
# candidates.
_SUPPORTED = ("beam", "nbest", "lenpen", "unnormalized", "temperature", "max_len_a", "max_len_b")
_NOT_OF_SEARCH = ("sacrebleu", "no_seed_provided", "no_early_stop", "no_beamable_mm")
_REJECTED = dict.fromkeys(
    (name for name in DEFAULTS if name not in (*_SUPPORTED, *_NOT_OF_SEARCH, *UNSUPPORTED)),
    "the answers are a closed set, among which the beam searches",
)


class CandidateEnsemble(BoundedEnsemble):
    """An ensemble whose words after the prompt continue a candidate, once it has a ``trie``.

    Word probabilities are normalised over the tokens that the trie allows, as in OFA. So the score
    of a hypothesis is that of the same candidate in ``AllCandidateGenerator``.
    """

    trie: Optional[AnswerTrie] = None
    prompt_lengths: Tensor
    """Tokens of each sentence's prompt, bos included, Long [S]."""

    def forward_decoder(
        self, tokens: Tensor, encoder_outs: list[Any], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Optional[Tensor]]:
        scores, attention = super().forward_decoder(tokens, encoder_outs, *args, **kwargs)
        if self.trie is None:
            return scores, attention
        # Scores are [S·beam, V] of the sentences still searched, tokens [S·beam, step + 1].
        lengths = self.prompt_lengths[encoder_outs[0].sentences]
        lengths = lengths.repeat_interleave(scores.size(0) // len(lengths))
        allowed = torch.ones_like(scores, dtype=torch.bool)
        for row, (prefix, length) in enumerate(zip(tokens.tolist(), lengths.tolist())):
            if len(prefix) >= length:  # otherwise the prompt is still being forced
                allowed[row] = False
                # A hypothesis outside the trie has a score of -inf already: let it end.
                words = self.trie.allowed_next(prefix[length:]) or [self.trie.eos]
                allowed[row, words] = True
        scores = scores.masked_fill(~allowed, -torch.inf)
        return scores - scores.logsumexp(dim=1, keepdim=True), attention


def check_candidate_search(models: Sequence[Any], trie: AnswerTrie, args: Any) -> None:
    """Raise UsageError for generation options that do not go with a search among candidates."""
    reject_options(args, _REJECTED)
    if len(models) > 1:
        raise UsageError(
            f"--beam-search-vqa-eval takes one checkpoint, and there are {len(models)}: leave it "
            "out to score every candidate"
        )
    longest = max(map(len, trie.answers))
    room = getattr(args, "max_len_b", None)
    if room is not None and room < longest:
        raise UsageError(
            f"--max-len-b {room}: the longest candidate has {longest} tokens. Give at least as many"
        )
