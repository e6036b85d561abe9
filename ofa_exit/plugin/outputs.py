"""Files that fairseq's commands write, none of which may be one that they read."""

import os
from typing import Any, Optional

from ofa_exit.evaluation.efficiency.report import is_trace
from ofa_exit.plugin.tasks.files import first_folder
from ofa_exit.regular_files import check_output


def check_trace(cfg: Any) -> None:
    """Check the trace's files before the model is loaded, which is when they are opened."""
    path = cfg.exit_trace
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError(
            f"--exit-trace {path!r} cannot be written: name a file in a folder that exists and may "
            "be written to"
        )
    for name in trace_files(cfg):
        check_output("--exit-trace", name, inputs_of(cfg))
        if os.path.isfile(name) and not is_trace(name):
            raise ValueError(
                f"--exit-trace {name!r} exists and is no exit trace: it would be overwritten. Name "
                "another file, or delete it"
            )


def check_log(args: Any) -> None:
    """Raise ValueError if the lines that fairseq appends to ``--log-file`` would damage a file.

    Args:
        args: all options of a fairseq command.
    """
    path = getattr(args, "log_file", None)
    if path is None:
        return
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise ValueError(
            f"--log-file {path} cannot be written: name a file in a folder that exists"
        )
    others = [value for name, value in vars(args).items() if name != "log_file"]
    check_output("--log-file", path, [inputs_of(args), others, _restored_file(args)])


def _restored_file(args: Any) -> Optional[str]:
    """Return the checkpoint that a training resumes from, which is named within ``--save-dir``."""
    folder, name = (getattr(args, option, None) for option in ("save_dir", "restore_file"))
    return os.path.join(folder, name) if folder and name else None


def trace_files(cfg: Any) -> list[str]:
    """Return the files that ``--exit-trace`` names, one per model."""
    models = len((getattr(cfg, "path", None) or "").split(os.pathsep))
    more = [f"{cfg.exit_trace}.{number}" for number in range(2, models + 1)]
    return [cfg.exit_trace, *more]


def inputs_of(cfg: Any) -> list[Any]:
    """Return what names the files that a task reads, see ``regular_files.paths_in``."""
    named = ("data", "path", "answers", "ans2label_file", "resnet_model_path")
    folders = (getattr(cfg, "bpe_dir", None), first_folder(getattr(cfg, "data", None)))
    words = ("dict.txt", "encoder.json", "vocab.bpe", "train.tsv", "valid.tsv", "test.tsv")
    inside = [os.path.join(folder, name) for folder in folders if folder for name in words]
    return [*(getattr(cfg, name, None) for name in named), inside]
