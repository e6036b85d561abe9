"""Files of ``ofa-exit fit-gate`` with numbers that were not fitted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from helpers.small_models import batch
from ofa_exit.policies.gate_file import GateFile
from ofa_exit.policies.measures import GATE_FEATURES, log_norms, log_step

WEIGHTS = [[-0.9, 0.4, 0.5, 0.3], [0.6, -0.7, 0.2, -0.4]]  # of odd and even layers


def gate_file(layers: int = 5, **parts: Any) -> GateFile:
    """A gate over all features, whose mean is 0 and scale 1, after so many layers."""
    entries = [
        {
            "mean": [0.0] * len(GATE_FEATURES),
            "scale": [1.0] * len(GATE_FEATURES),
            "weights": WEIGHTS[number % 2],
            "bias": 0.1 * number,
            "agreement": 0.5,
            "accuracy": 0.7,
            "auc": None,
        }
        for number in range(layers)
    ]
    gate = GateFile(
        features=list(GATE_FEATURES),
        layers=entries,
        checkpoint={"file": "model.pt", "sha256": "0" * 64},
        task={"kind": "caption", "answers": None},
        data={"file": "rows.tsv", "bytes": 9, "sha256_head": "1" * 64},
        fit={"rows": 3, "words": 9, "ridge": 1.0, "search": {}},
    )
    return dataclasses.replace(gate, **parts)


def write_gate(path: Path, gate: GateFile | None = None) -> str:
    """Write a gate; its path as an option gives it."""
    path.write_text((gate or gate_file()).text())
    return str(path)


@torch.no_grad()
def gate_for(model: Any) -> GateFile:
    """A gate whose features are scaled to those of a small model, so that words disagree."""
    model.configure_exits(None)
    net_input = batch(4, target=10)
    _, extra = model(**net_input, return_layers=True)
    states, entries = extra["layer_states"], []
    for number, entry in enumerate(gate_file().layers):
        norms = log_norms(states[number], states[number + 1])
        step = log_step(torch.arange(10)).expand(1, 4, 10)
        values = torch.cat([norms, step]).flatten(1)
        entries.append(
            {
                **entry,
                "mean": [float(value.mean()) for value in values],
                "scale": [float(value.std()) for value in values],
            }
        )
    return dataclasses.replace(gate_file(), layers=entries)
