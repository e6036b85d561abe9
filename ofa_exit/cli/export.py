"""``ofa-exit export CHECKPOINT OUT``: a checkpoint to pass on.

Weights and arguments stay, so that the file generates and can be fine-tuned; the optimizer's state,
counters, feature classifiers of exits and the folders of the machine it was trained on are left
out.
"""

import argparse
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

import ofa_exit.plugin  # noqa: F401  (allows the classes that checkpoints hold)
from ofa_exit.data.files import atomic_write
from ofa_exit.models.checkpoints import without_training_parts

FOLDERS = {"user_dir": None, "data": None, "bpe_dir": None, "save_dir": "checkpoints"}
NO_FILE = (
    "finetune_from_model",
    "resnet_model_path",
    "restore_file",
    "tensorboard_logdir",
    "distributed_init_method",
)


def _without_folders(part: Any) -> Any:
    """Configuration with paths of its machine replaced by fairseq's defaults."""
    values = vars(part) if isinstance(part, Namespace) else part
    if not isinstance(values, dict):
        return part
    for name, value in values.items():
        if name in FOLDERS and isinstance(value, str):
            values[name] = FOLDERS[name]
        elif name in NO_FILE and isinstance(value, str):
            values[name] = "checkpoint_last.pt" if name == "restore_file" else None
        else:
            _without_folders(value)
    return part


def export(checkpoint: Path, out: Path) -> None:
    """Writes the smaller file, whole or not at all."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    kept = {
        "args": _without_folders(state.get("args")),
        "cfg": _without_folders(state.get("cfg")),
        "model": without_training_parts(state["model"]),
        "optimizer_history": state["optimizer_history"][-1:],
        "task_state": state.get("task_state", {}),
        "extra_state": {},
    }
    with atomic_write(out) as stream:
        torch.save(kept, stream)


def main() -> int:
    parser = argparse.ArgumentParser(prog="ofa-exit export", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    export(given.checkpoint, given.out)
    before, after = (path.stat().st_size / 1e6 for path in (given.checkpoint, given.out))
    print(f"{given.out}: {after:.1f} MB of {before:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
