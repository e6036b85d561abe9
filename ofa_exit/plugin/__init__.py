"""Everything that fairseq has to know: importing this package registers it."""

from . import compat  # isort: skip  # first: the other modules import the mended fairseq
from . import archs
from .criterions import blipee, mue, scst
from .scorers import captions as caption_scorers
from .scorers import vqa as vqa_scorers
from .tasks import caption, snli_ve, visdial, vqa

__all__ = [
    "archs",
    "blipee",
    "caption",
    "caption_scorers",
    "compat",
    "mue",
    "scst",
    "snli_ve",
    "visdial",
    "vqa",
    "vqa_scorers",
]
