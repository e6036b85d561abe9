"""torch.compile for what runs often in one shape: the stem, encoder layers, decoder layers."""

from __future__ import annotations

from typing import Any

import torch


def compile_parts(model: Any, backend: str = "inductor") -> None:
    """Compiles the parts of an OFAModel in place; names of parameters stay.

    The first batches take long: each part is compiled when it first meets a shape, and once more
    when a size turns out to change (text lengths, rows of a batch whose sentences finish). Of a
    decoder layer the two stretches on either side of the key-value cache are compiled, exits
    included; what gates decide and how rows leave stays outside. A second call changes nothing.
    """
    if getattr(model, "parts_compiled", False):
        return
    model.parts_compiled = True
    model.decoder.gathers = True
    model.encoder.embed_images.compile(backend=backend)
    for layer in model.encoder.layers:
        layer.compile(backend=backend)
    for layer in [*model.decoder.layers, *model.decoder.exits.values()]:
        layer.self_inputs = torch.compile(layer.self_inputs, backend=backend)
        layer.attend = torch.compile(layer.attend, backend=backend)
