"""What fairseq-generate prints and scores as references."""

import logging
from collections.abc import Sequence
from typing import Any, Optional

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ofa_exit.data.text import TextCodec
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.vocabulary import OFADictionary

logger = logging.getLogger(__name__)


class ShownReferences:
    """The references of each batch as the target that fairseq-generate prints and scores.

    fairseq prints neither T- lines nor scores for a batch without a target. In a batch with one,
    ``compat`` leaves out the T- lines of rows without references.
    """

    def __init__(self, dictionary: OFADictionary, codec: TextCodec) -> None:
        self.dictionary = dictionary
        self.codec = codec
        self.found = False  # a row had references
        self._said = False

    def target(self, references: Sequence[list[str]], is_last: bool) -> Optional[Tensor]:
        """Return all references of each sentence joined by ``&&``, Long [B, T], or None.

        A row without references is empty, and scorers leave it out. A batch of such rows has no
        target, unless it is the last one: fairseq prints the score if that one has a target.

        Args:
            references: the texts of each row.
            is_last: no batch follows.
        """
        self.found = self.found or any(references)
        if not all(references) and not self._said:
            self._said = True
            logger.info("rows without references have no T- lines and are not scored")
        if not any(references) and not (is_last and self.found):
            return None
        rows = [self.dictionary.shown_references(self.codec, texts) for texts in references]
        return pad_sequence(rows, batch_first=True, padding_value=self.dictionary.pad())


def reject_without_references(sample: dict[str, Any], option: str) -> None:
    """Raise UsageError if a row lacks the reference that ``option`` reads."""
    for name, references in zip(sample["uniq_ids"], sample["references"]):
        if not references:
            raise UsageError(f"{option}: row {name} has no reference. Fill it in, or leave it out")
