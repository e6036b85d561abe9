# Types of the Python API, whose names __init__.py imports on first use.
from ofa_exit.plugin.predict import Prediction as Prediction
from ofa_exit.plugin.predict import PredictionError as PredictionError
from ofa_exit.plugin.predict import Predictor as Predictor
from ofa_exit.plugin.predict import load as load
from ofa_exit.plugin.predict import write_page as write_page

__version__: str
