"""What a generation was made with, so that shards of different ones are not merged."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.tasks import TASK_DATACLASS_REGISTRY

from ofa_exit.data.files import sha256_of
from ofa_exit.plugin.options import flag
from ofa_exit.plugin.saved_arguments import overrides_of, told
from ofa_exit.plugin.search.generation import DEFAULTS

# Options that shards may differ in, and those of which another entry tells the content.
_APART = {
    *("num_shards", "shard_id", "exit_trace"),
    *("data", "bpe_dir", "path", "model_overrides"),
}


def run_record(task: Any, args: Any, models: Sequence[Any], dataset: Any) -> dict[str, Any]:
    """By the names that users know: what files and models hold, and the options that were given.

    args: of generation. dataset: the rows generated from, `RowDataset`. A file is recorded by its
    path, for people, and what tells its content: its SHA-256, or of data, which may take minutes
    to read, size and time of change. All values are JSON's.
    """
    data = dataset.rows.examples.file.path
    status = data.stat()
    changed = datetime.fromtimestamp(status.st_mtime, timezone.utc).isoformat()
    words = "\n".join(task.dictionary.symbols).encode()
    record: dict[str, Any] = {
        "task": getattr(task.cfg, "_name", None),
        "checkpoints": [_file(path) for path in utils.split_paths(told(task.cfg.path) or "")],
        "--model-overrides": str(overrides_of(told(task.cfg.model_overrides) or "{}")),
        "--gen-subset": dataset.subset,
        "data": {"path": str(data), "bytes": status.st_size, "changed": changed},
        "vocabulary": hashlib.sha256(words).hexdigest(),
        "precision": str(next(models[0].parameters()).dtype),
    }
    if getattr(args, "sampling", False):
        record["--seed"] = torch.initial_seed()
    options = {name: (getattr(args, name, default), default) for name, default in DEFAULTS.items()}
    for option in fields(TASK_DATACLASS_REGISTRY[task.cfg._name]):
        options[option.name] = getattr(task.cfg, option.name, option.default), option.default
    for name, (value, default) in options.items():
        if name not in _APART and not name.startswith("_") and value != default:
            record[flag(name)] = _content(value)
    return record


def _content(value: Any) -> Any:
    if isinstance(value, str) and os.path.isfile(value):
        return _file(value)
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _file(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):  # fairseq has other names for the parts of a checkpoint
        return {"path": path}
    return {"path": path, "sha256": sha256_of(Path(path))}
