"""Everything that fairseq has to know: importing this package registers it."""

from . import compat  # isort: skip  # first: the others meet the mended fairseq
from . import caption, criterions, models, scorers, scst, snli_ve

__all__ = ["caption", "compat", "criterions", "models", "scorers", "scst", "snli_ve"]
