"""Early exits (MuE) for the unified vision-language model OFA, driven by fairseq."""

import sys
import warnings

# fairseq scripts functions while it is imported, of which torch warns. fairseq's own commands
# import it before this package: there, PYTHONWARNINGS='ignore:`torch.jit.script`' does the same.
if not sys.warnoptions:  # -W and PYTHONWARNINGS rule
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
