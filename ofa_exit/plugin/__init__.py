"""Everything that fairseq has to know: importing this package registers it."""

from . import compat  # isort: skip  # first: the others meet the mended fairseq
from . import (
    blipee,
    caption,
    criterions,
    models,
    scorers,
    scst,
    snli_ve,
    visdial,
    vqa,
    vqa_scorers,
)

__all__ = [
    "blipee",
    "caption",
    "compat",
    "criterions",
    "models",
    "scorers",
    "scst",
    "snli_ve",
    "visdial",
    "vqa",
    "vqa_scorers",
]
