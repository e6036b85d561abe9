"""The fairseq plugin: importing it registers tasks, criterions, scorers, schedules and models."""

from . import compat  # isort: skip  # first: it repairs the fairseq that the other modules import
from . import compat_notebooks, compat_results, compat_saving  # isort: skip
from . import archs, average, missing_heads, schedules, validation_command
from .criterions import blipee, calm, deecap, leebert, mue, multi_exit, official, scst
from .scorers import captions as caption_scorers
from .scorers import vqa as vqa_scorers
from .tasks import caption, snli_ve, visdial, vqa

__all__ = [
    "archs",
    "average",
    "blipee",
    "calm",
    "caption",
    "caption_scorers",
    "compat",
    "compat_notebooks",
    "compat_results",
    "compat_saving",
    "deecap",
    "leebert",
    "missing_heads",
    "mue",
    "multi_exit",
    "official",
    "schedules",
    "scst",
    "snli_ve",
    "validation_command",
    "visdial",
    "vqa",
    "vqa_scorers",
]
