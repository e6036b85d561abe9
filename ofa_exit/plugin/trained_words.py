"""Compare the words of a dictionary with those that a checkpoint was trained with.

Another dictionary of the same size loads without an error, and its captions are nonsense.
"""

import functools
import itertools
import logging
import os
from collections.abc import Iterable
from typing import Any, Optional

from ofa_exit.plugin.saved_arguments import SavedCheckpoint
from ofa_exit.plugin.tasks.files import first_folder
from ofa_exit.plugin.vocabulary import OFADictionary

logger = logging.getLogger(__name__)

STATE = "dictionary"
"""Key of the dictionary's fingerprint in the state of a task, which fairseq saves."""


def reject_other_words(dictionary: OFADictionary, checkpoint: SavedCheckpoint) -> None:
    """Raise ValueError if a checkpoint was trained with other words than a dictionary's.

    A longer dictionary with the same beginning is accepted. Checkpoints of official OFA, and of
    earlier versions, have no fingerprint to compare with: a warning says so, once a file.
    """
    state, saved = checkpoint.state.get("task_state"), checkpoint.task_options
    fingerprint = state.get(STATE) if isinstance(state, dict) else None
    data = saved.get("data")
    folders = [saved.get("bpe_dir"), first_folder(data) if isinstance(data, str) else None]
    reject_other_fingerprint(dictionary, fingerprint, checkpoint.path, folders)


def reject_other_fingerprint(
    dictionary: OFADictionary,
    fingerprint: Any,
    checkpoint: str = "the checkpoint",
    folders: Iterable[Optional[str]] = (),
) -> None:
    """Do what ``reject_other_words`` does with a fingerprint.

    Args:
        fingerprint: of ``OFADictionary.fingerprint``, None if there is none.
        folders: where the training's dict.txt may be, to name the first word that differs.
    """
    if fingerprint is None:
        _warn_once(
            f"{checkpoint} does not say which words it was trained with: check that "
            f"{dictionary.path} is the dict.txt of its training. With another one its texts are "
            "nonsense"
        )
        return
    try:
        count, digest = int(fingerprint["words"]), str(fingerprint["sha256"])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{checkpoint}: the fingerprint of its dictionary is damaged. Use another checkpoint"
        ) from error
    if dictionary.words < count or dictionary.hash_of(count) != digest:
        raise ValueError(
            f"{dictionary.path} has other words than the dict.txt that {checkpoint} was trained "
            f"with{_first_difference(dictionary, count, digest, folders)}. Give the folder of that "
            "file by --bpe-dir"
        )
    if dictionary.words > count:
        logger.info(
            "%s begins with the %d words that %s was trained with, and has %d more",
            *(dictionary.path, count, checkpoint, dictionary.words - count),
        )


@functools.cache
def _warn_once(text: str) -> None:
    """Log a warning the first time: a command may set up several tasks for one checkpoint."""
    logger.warning(text)


def _first_difference(
    dictionary: OFADictionary, count: int, digest: str, folders: Iterable[Optional[str]]
) -> str:
    """Return where the training's dict.txt is and the first word that differs; "" if unknown."""
    for folder in filter(None, folders):
        try:
            trained = OFADictionary.of_folder(os.fspath(folder), 0, 0)
        except (OSError, ValueError, RuntimeError):
            continue
        if trained.words == count and trained.hash_of(count) == digest:
            pairs = itertools.zip_longest(trained.own_words(), dictionary.own_words())
            numbered = enumerate(pairs, start=1)
            line, words = next(one for one in numbered if one[1][0] != one[1][1])
            trained_word, given_word = words
            return (
                f", {trained.path}: line {line} is {given_word!r}, but {trained_word!r} in the "
                "training's"
            )
    return f" ({count} words)" if dictionary.words != count else ""
