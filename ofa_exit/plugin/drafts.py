"""The options of lossless mode, and the words that the search allows its drafts."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from torch import Tensor

from ofa_exit.data.trie import AnswerTrie
from ofa_exit.runtime.drafts import AllowedWords, Drafting
from ofa_exit.runtime.rows import to_host
from ofa_exit.spelling import flag


def is_lossless(cfg: Any) -> bool:
    """Return whether ``--exit-lossless`` is given; tasks of older checkpoints lack the option."""
    return getattr(cfg, "exit_lossless", None) is not None


def check_lossless(cfg: Any) -> None:
    """Raise ValueError for options that do not go with ``--exit-lossless``, or need it."""
    layer = getattr(cfg, "exit_lossless_layer", None)
    if not is_lossless(cfg):
        if layer is not None:
            raise ValueError(
                f"--exit-lossless-layer {layer} without --exit-lossless: add it, with the number "
                "of tokens to draft at a time"
            )
        return
    for option in ("exit_lossless", "exit_lossless_layer"):  # from Python they may be anything
        value = getattr(cfg, option, None)
        if isinstance(value, bool) or not isinstance(value, (int, type(None))):
            raise ValueError(f"{flag(option)} is {value!r}: give a whole number of at least 1")
    Drafting(cfg.exit_lossless, 1 if layer is None else layer)
    for option, unset in (("exit_policy", "none"), ("exit_preset", None)):
        value = getattr(cfg, option, unset)
        if value != unset:
            raise ValueError(
                f"--exit-lossless and {flag(option)} {value}: drafts are verified at "
                "full depth, so nothing exits. Leave one of them out"
            )


def reject_lossless_scoring(cfg: Any, searches: bool) -> None:
    """Raise ValueError for ``--exit-lossless`` where no words are searched."""
    if is_lossless(cfg) and not searches:
        raise ValueError(
            f"--exit-lossless {cfg.exit_lossless}: the task scores given answers in one pass, so "
            "there are no words to draft. Leave it out, or search among the --answers of mue_vqa "
            "by --beam-search-vqa-eval"
        )


def build_drafting(cfg: Any, decoder_layers: int) -> Optional[Drafting]:
    """Return how a decoder drafts; None without ``--exit-lossless``.

    Raises:
        ValueError: the decoder has too few layers.
    """
    if not is_lossless(cfg):
        return None
    layer = getattr(cfg, "exit_lossless_layer", None)
    drafting = Drafting(cfg.exit_lossless, max(1, decoder_layers // 3) if layer is None else layer)
    drafting.check(decoder_layers)
    return drafting


def allowed_words(
    prefix_tokens: Optional[Tensor],
    pad: int,
    trie: Optional[AnswerTrie] = None,
    prompt_lengths: Optional[Tensor] = None,
) -> Optional[AllowedWords]:
    """Return what a search allows; None if that is any word.

    Args:
        prefix_tokens: fairseq's, Long [S, P], padded on the right: the first tokens after bos.
        trie: closed set of answers, which follow prompts.
        prompt_lengths: Long [S], bos included.
    """
    if prefix_tokens is None and trie is None:
        return None
    prefixes = [] if prefix_tokens is None else to_host(prefix_tokens)
    prompts = [] if prompt_lengths is None else to_host(prompt_lengths)

    def allowed(sentence: int, tokens: Sequence[int]) -> Optional[Sequence[int]]:
        position = len(tokens) - 1  # of the next word, bos left out
        if prefixes and position < len(prefixes[sentence]) and prefixes[sentence][position] != pad:
            return [prefixes[sentence][position]]
        if trie is None or len(tokens) < prompts[sentence]:
            return None
        return trie.allowed_next(tokens[prompts[sentence] :]) or [trie.eos]

    return allowed


@contextlib.contextmanager
def drafts_within(models: Sequence[Any], allowed: Optional[AllowedWords]) -> Iterator[None]:
    """Let the models' drafts keep to what the search of a batch allows."""
    for model in models:
        model.decoder.allowed_words = allowed
    try:
        yield
    finally:
        for model in models:
            model.decoder.allowed_words = None
