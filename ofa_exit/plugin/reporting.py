"""Reports of a generation and of a model's heads, and the record of how a shard was generated."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq import utils
from fairseq.tasks import TASK_DATACLASS_REGISTRY

from ofa_exit.data.dataset import OFADataset
from ofa_exit.data.files import sha256_of
from ofa_exit.evaluation.efficiency.report import GenerationReport, weights_in_layers
from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.saved_arguments import parse_overrides, resolved
from ofa_exit.plugin.search.options import DEFAULTS
from ofa_exit.spelling import flag

logger = logging.getLogger(__name__)

# Options that may differ between shards, and those whose content is recorded under another name.
_NOT_RECORDED = {
    *("num_shards", "shard_id", "exit_trace"),
    *("data", "bpe_dir", "path", "model_overrides"),
}


class Progress:
    """How far a generation has come in its data set.

    Args:
        iterator: fairseq's iterator over the batches; None if the caller feeds batches by hand.
    """

    def __init__(self, iterator: Any = None) -> None:
        self.iterator = iterator
        self.in_batch = False  # stays True if a batch fails

    @property
    def batches(self) -> Sequence[Sequence[int]]:
        """Return the rows of each batch of the data set, or of this process's shard."""
        return self.iterator.frozen_batches[self.iterator.shard_id :: self.iterator.num_shards]

    @property
    def has_ended(self) -> bool:
        """Return whether all batches were fetched and the last one was processed.

        fairseq's ``end_of_epoch`` also waits for the empty batch that may end a shard.
        """
        return (
            self.iterator is not None
            and not self.in_batch
            and self.iterator.iterations_in_epoch >= len(self.batches)
        )

    @property
    def rows(self) -> int:
        """Return the number of rows of the data set, or of this process's shard."""
        return sum(map(len, self.batches))

    @property
    def shard(self) -> Optional[dict[str, int]]:
        """Return this shard's number from 0, the number of shards, and their rows; None for one."""
        if self.iterator is None or self.iterator.num_shards == 1:
            return None
        return {
            "shard": self.iterator.shard_id,
            "of": self.iterator.num_shards,
            "rows": self.rows,
            "all_rows": sum(map(len, self.iterator.frozen_batches)),
        }


def print_reports(
    reports: Sequence[GenerationReport], progress: Progress, run: dict[str, Any]
) -> None:
    """Print each model's report, as a table and as JSON, and close its trace file.

    Reports go to standard output, like fairseq-generate's results. The report of an interrupted
    generation begins with INCOMPLETE, so that no reader takes it for the whole. A generation
    without any sentence has no report.

    Args:
        run: ``run_record``, which all shards of a generation have in common.
    """
    for number, report in enumerate(reports, start=1):
        report.close()
        model = f" of model {number} of {len(reports)}" if len(reports) > 1 else ""
        values = report.summary()
        if not progress.has_ended:
            if not values["sentences"]:
                continue
            print(f"INCOMPLETE, {values['sentences']} of {progress.rows} sentences: ", end="")
        print(f"Layers and time{model}:\n{report.table()}")
        mark = "" if progress.has_ended else "INCOMPLETE "
        print(f"{mark}Exit summary{model}: {json.dumps(values)}", flush=True)
        if progress.has_ended and progress.shard:
            shard = {**progress.shard, "run": run, "totals": asdict(report.totals())}
            if report.trace_digest is not None:
                shard["trace"] = report.trace_digest
            print(f"Exit shard{model}: {json.dumps(shard)}", flush=True)


def log_heads(model: Any) -> None:
    """Log the kind of a model's exit heads and how many weights they have, if they have any."""
    if not isinstance(model, OFAModel):
        return
    heads = model.decoder.exit_heads
    each, count = heads.parameters_per_head(), len(heads.layers)
    if not each:
        return
    total = sum(weight.numel() for weight in heads.parameters())
    backbone = sum(weight.numel() for weight in model.parameters()) - total
    logger.info(
        "%d exit heads of %s weights each: %s, as many as %.1f decoder layers (the backbone has "
        "%s; --exit-head %s)",
        *(count, _millions(each), _millions(total), count * weights_in_layers(model)),
        *(_millions(backbone), model.cfg.exit_head),
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def log_rows(rows: OFADataset) -> None:
    """Log which rows were skipped or contain unknown words."""
    for line in rows.summary():
        logger.warning(line)


def run_record(task: Any, args: Any, models: Sequence[Any], dataset: Any) -> dict[str, Any]:
    """Return a fingerprint of a generation run, so that only matching shards are merged.

    It holds the content of files and models and all options that are not at their default. A file
    is recorded by its path and SHA-256, the data file by size and modification time, because
    hashing it may take minutes. All values can be stored as JSON.

    Args:
        args: generation options.
        dataset: the `RowDataset` that is generated from.
    """
    data = dataset.rows.examples.file.path
    status = data.stat()
    changed = datetime.fromtimestamp(status.st_mtime, timezone.utc).isoformat()
    words = "\n".join(task.dictionary.symbols).encode()
    record: dict[str, Any] = {
        "task": getattr(task.cfg, "_name", None),
        "checkpoints": [
            file_record(path) for path in utils.split_paths(resolved(task.cfg.path) or "")
        ],
        "--model-overrides": str(parse_overrides(resolved(task.cfg.model_overrides) or "{}")),
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
        if name not in _NOT_RECORDED and not name.startswith("_") and value != default:
            record[flag(name)] = _content(value)
    return record


def _content(value: Any) -> Any:
    if isinstance(value, str) and os.path.isfile(value):
        return file_record(value)
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def file_record(path: str) -> dict[str, Any]:
    """Return the path of a file, and the SHA-256 of its content if it is there."""
    if not os.path.isfile(path):  # the parts of a checkpoint have other names
        return {"path": path}
    return {"path": path, "sha256": sha256_of(Path(path))}
