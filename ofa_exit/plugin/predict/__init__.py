"""Captions and answers for a user's own images, without a data file."""

from ofa_exit.plugin.errors import PredictionError

from .loading import load
from .page import write_page
from .predictor import Predictor
from .result import Prediction

__all__ = ["Prediction", "PredictionError", "Predictor", "load", "write_page"]
