"""Everything that fairseq has to know: importing this package registers it."""

from importlib import import_module
from importlib.util import find_spec

from . import compat  # noqa: F401  first: what follows imports fairseq's registries

# INTERIM until all parts are written; becomes plain imports.
for _name in ("models", "caption", "snli_ve", "criterions", "scorers"):
    if find_spec(f"{__name__}.{_name}"):
        import_module(f"{__name__}.{_name}")
