"""Reduce a checkpoint to what others need.

The file keeps weights and arguments, so it generates and can be fine-tuned. The optimizer's state,
counters, feature classifiers of exits and the paths of the training machine are left out.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ofa_exit.cli.parsing import check_outputs, new_parser, prints_errors
from ofa_exit.data.files import atomic_write

# Paths in a configuration, and fairseq's defaults for them.
PATH_DEFAULTS = {
    "user_dir": None,
    "data": None,
    "bpe_dir": None,
    "save_dir": "checkpoints",
    "finetune_from_model": None,
    "resnet_model_path": None,
    "restore_file": "checkpoint_last.pt",
    "tensorboard_logdir": None,
    "distributed_init_method": None,
}


def _without_paths(config: Any) -> Any:
    """Replace the paths in a configuration, at any depth, by fairseq's defaults."""
    values = vars(config) if isinstance(config, Namespace) else config
    if not isinstance(values, dict):
        return config
    for name, value in values.items():
        if name in PATH_DEFAULTS and isinstance(value, str):
            values[name] = PATH_DEFAULTS[name]
        else:
            _without_paths(value)
    return config


def export(checkpoint: Path, out: Path) -> None:
    """Write the smaller checkpoint atomically."""
    # Slow, so not for --help.
    import torch

    import ofa_exit.plugin  # noqa: F401  (allows the classes that checkpoints hold)
    from ofa_exit.models.checkpoint_file import read_checkpoint
    from ofa_exit.models.checkpoints import without_training_parts

    state = read_checkpoint(checkpoint)
    exported = {
        "args": _without_paths(state["args"]),
        "cfg": _without_paths(state["cfg"]),
        "model": without_training_parts(state["model"]),
        "optimizer_history": state["optimizer_history"][-1:],
        "task_state": state.get("task_state", {}),
        "extra_state": {},
    }
    with atomic_write(out) as stream:
        torch.save(exported, stream)


@prints_errors("export", ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("export", __doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="file of fairseq-train")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write")
    args = parser.parse_args(argv)
    check_outputs(args, "out")
    export(args.checkpoint, args.out)
    before, after = (path.stat().st_size / 1e6 for path in (args.checkpoint, args.out))
    print(f"{args.out}: {after:.1f} MB of {before:.1f} MB")
    return 0
