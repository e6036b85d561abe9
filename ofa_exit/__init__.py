"""Early exits for the unified vision-language model OFA, as a fairseq plugin."""

import sys
import warnings
from typing import Any

__version__ = "0.1.0"
_LAZY = ("load", "Predictor", "Prediction", "PredictionError", "write_page")

# torch warns about the functions that fairseq scripts at import. fairseq's own commands import
# fairseq before this package: set PYTHONWARNINGS='ignore:`torch.jit.script`' for them.
if not sys.warnoptions:  # -W and PYTHONWARNINGS take precedence
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)


def __getattr__(name: str) -> Any:
    """Return a name of the Python API. Its first use imports torch and fairseq."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ofa_exit.plugin import predict

    return getattr(predict, name)


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]
