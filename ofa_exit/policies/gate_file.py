"""Files of ``ofa-exit fit-gate``: a logistic regression for each decoder layer, as JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Optional

from ofa_exit.policies.measures import GATE_FEATURES
from ofa_exit.regular_files import regular_file

FORMAT = 1
PARTS = ("features", "layers", "checkpoint", "task", "data", "fit")
AGAIN = "Run ofa-exit fit-gate again"


@dataclass(frozen=True)
class GateFile:
    """What ``ofa-exit fit-gate`` writes.

    Attributes:
        features: ``measures.GATE_FEATURES``, the order of the numbers below.
        layers: one entry after each decoder layer but the last: "mean" and "scale" of each
            feature, "weights" of the scaled features, "bias", and what was found ("agreement", the
            share of words that are the last layer's, "accuracy", "auc").
        checkpoint: name of the file and SHA-256 of its content.
        task: kind of task, and the options that decide what the model reads.
        data: name, size, and SHA-256 of the first bytes of the file that was read.
        fit: rows, tokens, ridge and search.
    """

    features: list[str]
    layers: list[dict[str, Any]] = field(repr=False)
    checkpoint: dict[str, Any]
    task: dict[str, Any] = field(repr=False)
    data: dict[str, Any] = field(repr=False)
    fit: dict[str, Any] = field(repr=False)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of all parts."""
        text = json.dumps([getattr(self, part) for part in PARTS], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def text(self) -> str:
        """Return the content of the file."""
        parts = {part: getattr(self, part) for part in PARTS}
        saved = {"format": FORMAT, **parts, "digest": self.digest}
        return f"{json.dumps(saved, indent=2, ensure_ascii=False)}\n"

    def coefficients(self, layer: int) -> tuple[list[float], float]:
        """Return weights and bias for features as they are measured, after a layer, from 1."""
        own = self.layers[layer - 1]
        weights = [weight / scale for weight, scale in zip(own["weights"], own["scale"])]
        shift = sum(weight * mean for weight, mean in zip(weights, own["mean"]))
        return weights, own["bias"] - shift


def read_gate(path: str) -> GateFile:
    """Read a file of ``ofa-exit fit-gate``.

    Raises:
        ValueError: it is missing, is no such file, or was edited.
    """
    try:
        status = os.stat(path)
        return _read(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=16)
def _read(path: str, size: int, changed: int) -> GateFile:
    try:
        saved = json.loads(regular_file(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). {AGAIN}") from error
    problem = _problem(saved)
    if problem:
        raise ValueError(f"{path}: {problem}. {AGAIN}")
    gate = GateFile(**{part: saved[part] for part in PARTS})
    if saved.get("digest") != gate.digest:
        raise ValueError(f"{path} was edited, so that its numbers fit no model. {AGAIN}")
    return gate


def _problem(saved: Any) -> Optional[str]:
    """Return what makes a file useless; None if nothing does."""
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        return "no file of ofa-exit fit-gate, or one of another version"
    for part in PARTS:
        kind = list if part in ("features", "layers") else dict
        if not isinstance(saved.get(part), kind):
            return f"{part} is missing, or no {'list' if kind is list else 'object'}"
    features = saved["features"]
    if features != list(GATE_FEATURES):
        return f"features are others than {', '.join(GATE_FEATURES)}"
    if not saved["layers"]:
        return "layers is empty"
    for number, layer in enumerate(saved["layers"], start=1):
        if not isinstance(layer, dict):
            return f"layer {number} is no object"
        for name in ("mean", "scale", "weights"):
            values = layer.get(name)
            if not isinstance(values, list) or len(values) != len(features):
                return f"layer {number} has not one {name} per feature"
            if not all(map(_is_number, values)):
                return f"layer {number} has a {name} that is no finite number"
        if not _is_number(layer.get("bias")) or min(layer["scale"]) <= 0:
            return f"layer {number} has no bias, or a scale that is not above 0"
    if not isinstance(saved["checkpoint"].get("sha256"), str):
        return "the checkpoint has no SHA-256"
    return None


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return is_number and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False
