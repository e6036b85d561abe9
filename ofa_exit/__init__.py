"""Early exits for the unified vision-language model OFA, as a fairseq plugin."""

import sys
import warnings

__version__ = "0.1.0"

# torch warns about the functions that fairseq scripts at import. fairseq's own commands import
# fairseq before this package: set PYTHONWARNINGS='ignore:`torch.jit.script`' for them.
if not sys.warnoptions:  # -W and PYTHONWARNINGS take precedence
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
