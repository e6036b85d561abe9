"""A ranker for CapFilt on 64-pixel emoji, where no CLIP fits: a small dual encoder, trained here.

ofa-exit capfilt filter … --ranker examples/emoji/capfilt_ranker --ranker-checkpoint OUT
"""

from .checkpoint import load_ranker as load_ranker
