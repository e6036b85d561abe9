"""Register the model ``ofa`` and its architectures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import register_model, register_model_architecture
from torch import Tensor

from ofa_exit.models.archs import ARCHS
from ofa_exit.models.checkpoints import IMPLIED_FLAGS, REQUIRED_FLAGS
from ofa_exit.models.ofa import OFAConfig, OFAModel
from ofa_exit.plugin.errors import usage_errors


@register_model("ofa")
class RegisteredOFAModel(OFAModel):
    """Model ``ofa``, with the arguments of OFAConfig and the architecture's defaults."""

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        gen_parser_from_dataclass(parser, OFAConfig(), delete_default=True)
        for name in (*REQUIRED_FLAGS, *IMPLIED_FLAGS):
            if REQUIRED_FLAGS.get(name, True):
                parser.add_argument(
                    f"--{name.replace('_', '-')}",
                    action="store_true",
                    default=argparse.SUPPRESS,
                    help="always on, as in every released checkpoint; accepted for OFA's scripts",
                )

    @usage_errors()
    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Fit a checkpoint. One that does not fit was trained with other options."""
        super().upgrade_state_dict_named(state_dict, name)


def _architecture(sizes: dict[str, Any]) -> Callable[[Any], None]:
    def set_defaults(args: Any) -> None:
        defaults = OFAConfig()
        for option in fields(OFAConfig):
            name = option.name
            if name.startswith("_"):
                continue
            value = getattr(args, name, None)
            if value is None:
                setattr(args, name, sizes.get(name, getattr(defaults, name)))

    return set_defaults


for _name, _sizes in {**ARCHS, "ofa": ARCHS["ofa_base"]}.items():
    register_model_architecture("ofa", _name)(_architecture(_sizes))
