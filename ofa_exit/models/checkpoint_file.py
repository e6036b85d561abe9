"""Read a checkpoint file, or raise an error of one line: the file, what is wrong, the remedy."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ofa_exit.models.checkpoint_sizes import sizes_of
from ofa_exit.regular_files import IrregularFileError, regular_file

AGAIN = "Copy or download it again"
# Beginnings of what people have in place of a checkpoint, in lower case.
NO_CHECKPOINT = {
    b"version https://git-lfs": (
        "is a git-lfs pointer to the weights, not the weights. Run: git lfs pull"
    ),
    **dict.fromkeys(
        (b"<!doctype", b"<html", b"<?xml"),
        "is a web page, not a checkpoint. Download the file itself, as a browser does",
    ),
    b"\x1f\x8b": "is compressed by gzip. Unpack it first",
}
ZIP = b"PK\x03\x04"
# Where state dicts of other programs are kept.
STATE_DICT_KEYS = ("state_dict", "model_state_dict")
# Entries of these names hold floating-point numbers in every model.
FLOATING = ("weight", "bias", "c_attn", "running_mean", "running_var")
# An expanded tensor of a small file may have more numbers than can be checked.
MOST_REPEATS = 1_000
# Names of Hugging Face's OFA, and the official ones. Applied in this order.
HUGGING_FACE = (
    (r"^(encoder\.layers\.\d+\.)self_attn_mid_layer_norm\.", r"\1attn_ln."),
    (r"^(decoder\.layers\.\d+\.)self_attn_mid_layer_norm\.", r"\1self_attn_ln."),
    (r"\.cross_attn_mid_layer_norm\.", ".cross_attn_ln."),
    (r"\.cross_attn_layer_norm\.", ".encoder_attn_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.ffn_layer_norm\.", ".ffn_layernorm."),
    (r"^shared\.", "encoder.embed_tokens."),
)


class DamagedFileError(ValueError):
    """A file that is empty, cut off or changed, so that another copy may be whole."""


def read_checkpoint(path: str | os.PathLike[str], weights: bool = True) -> dict[str, Any]:
    """Return a checkpoint in fairseq's form, with official names of the weights.

    A bare state dict gets the arguments that its shapes tell, under ``args``.

    Args:
        weights: check them, and every byte of the file. Otherwise the weights stay on disk until
            they are used, and only the rest is checked.

    Raises:
        ValueError: the file is no checkpoint, or damaged, or its weights cannot be used.
        OSError: the file is missing or cannot be opened.
    """
    state = _in_fairseqs_form(path, load_file(path, weights))
    if weights:
        check_weights(path, state["model"])
    state["model"] = official_names(state["model"])
    _check_arguments(path, state)
    return state


def load_file(path: str | os.PathLike[str], check_bytes: bool = True) -> Any:
    """Return what ``torch.save`` wrote to a file, without running any code of it.

    Args:
        check_bytes: compare the checksums of the whole file, which torch does not.
    """
    check_is_file(path)
    is_zip = _is_zip(path)
    if is_zip:
        _check_bytes(path, whole=check_bytes)
    try:
        # Memory-mapped: the weights stay on disk. torch's format before 1.6 cannot be mapped.
        return torch.load(
            path, map_location="cpu", mmap=is_zip and not check_bytes, weights_only=True
        )
    except MemoryError:
        raise
    except Exception as error:  # torch raises whatever a damaged pickle leads to
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and foreign:
            raise ValueError(
                f"{path} holds an object of {foreign[1]}, which could run code when it is read. "
                "Save its weights alone: torch.save(model.state_dict(), path)"
            ) from error
        raise DamagedFileError(
            f"{path} is not a checkpoint of torch, or damaged. {AGAIN}"
        ) from error


def check_is_file(path: str | os.PathLike[str]) -> None:
    """Raise OSError or ValueError unless ``path`` is a regular file that is not empty."""
    try:
        size = regular_file(path).stat().st_size
    except IsADirectoryError as error:
        found = sorted(name for name in os.listdir(path) if name.endswith((".pt", ".bin", ".pth")))
        held = f"it holds {', '.join(found[:5])}" if found else "it holds none"
        raise ValueError(f"{path} is a folder. Give the checkpoint in it; {held}") from error
    except IrregularFileError as error:
        raise ValueError(f"{path} is not a regular file. Give a checkpoint file") from error
    except OSError as error:
        raise type(error)(
            f"{path}: no such checkpoint ({error.strerror}). Give an existing file"
        ) from error
    if size == 0:
        raise DamagedFileError(f"{path} is empty. {AGAIN}")


def check_names(path: str | os.PathLike[str], weights: Any) -> None:
    """Raise ValueError unless a state dict is a dictionary whose keys are names."""
    if not isinstance(weights, dict):
        raise ValueError(
            f"{path} holds no weights, but a {type(weights).__name__} in their place. Give a "
            "checkpoint that has a state dict"
        )
    for name in weights:
        if not isinstance(name, str):
            raise ValueError(
                f"{path}: the weights have the key {name!r}, not a name. Save model.state_dict()"
            )


def check_weights(path: str | os.PathLike[str], weights: Any) -> None:
    """Raise ValueError unless all entries of a state dict are tensors of finite numbers."""
    check_names(path, weights)
    if not weights:
        raise ValueError(f"{path} holds no weights. Give a checkpoint that has a state dict")
    for name, value in weights.items():
        problem = _problem(name, value)
        if problem:
            raise ValueError(f"{path}: {name} {problem}")


def _problem(name: str, value: Any) -> str | None:
    """Return what is wrong with an entry of a state dict, and the remedy."""
    leaf = name.rpartition(".")[2]
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor. Save model.state_dict()"
    if value.is_quantized or value.layout != torch.strided:
        return "is quantized or sparse. Save the weights as plain tensors"
    if not value.is_floating_point():
        if leaf not in FLOATING:
            return None  # counters and tables of positions
        return f"has whole numbers ({value.dtype}). Save the weights as floating-point numbers"
    if value.numel() > MOST_REPEATS * value.untyped_storage().nbytes():
        return f"repeats a few numbers to {tuple(value.shape)}. Save it after contiguous()"
    # The sum is NaN or infinite if any number is, and costs a tenth of isfinite on each of them.
    is_finite = value.sum(dtype=torch.float32).isfinite() or value.isfinite().all()
    if not is_finite:
        return "holds NaN or infinity: the training diverged. Use an earlier checkpoint"
    if leaf == "running_var" and value.numel() and value.min() < 0:
        return "has a negative variance: the file is damaged. Use another checkpoint"
    return None


def _is_zip(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is in torch's format since 1.6; raise ValueError for known others."""
    with open(regular_file(path), "rb") as stream:
        start = stream.read(64)
    for beginning, problem in NO_CHECKPOINT.items():
        if start.lstrip().lower().startswith(beginning):
            raise ValueError(f"{path} {problem}")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < os.path.getsize(path):
        raise ValueError(
            f"{path} is a safetensors file. Convert it: "
            "torch.save(safetensors.torch.load_file(path), 'checkpoint.pt')"
        )
    return start.startswith(ZIP)


def _check_bytes(path: str | os.PathLike[str], whole: bool) -> None:
    """Compare the checksums of a zip, without ``whole`` only of what torch unpickles."""
    names: list[str] = []
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for entry in archive.infolist():
                # torch.serialization.set_crc32_options(False) writes zeros.
                if entry.CRC and (whole or entry.filename.endswith("/data.pkl")):
                    name = entry.filename
                    with archive.open(entry) as stream:
                        while stream.read(1 << 20):
                            pass  # raises at the entry's end
    except Exception as error:  # whatever a damaged directory leads to
        reason = f"the checksum of {name} is wrong" if name else "its end is missing"
        raise DamagedFileError(f"{path} is damaged: {reason}. {AGAIN}") from error
    if not any(one.endswith("/data.pkl") for one in names):
        raise ValueError(f"{path} is a zip archive, not a checkpoint. Unpack it first")


def _in_fairseqs_form(path: str | os.PathLike[str], content: Any) -> dict[str, Any]:
    """Return a dictionary with "model", "args", "cfg", and what fairseq reads besides them."""
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not weights. Save model.state_dict()"
        )
    if "model" not in content:
        key = next((key for key in STATE_DICT_KEYS if key in content), None)
        if key is None and not any(isinstance(value, Tensor) for value in content.values()):
            raise ValueError(
                f'{path} holds no weights: there is no "model" among {_listed(content)}. Give a '
                "checkpoint of OFA or of this package"
            )
        content = {"model": content if key is None else content[key]}
    state = {"args": None, "cfg": None, **content}
    check_names(path, state["model"])
    if "best_loss" not in state:  # that of fairseq before 0.6, which it upgrades
        history = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}}
        state.setdefault("optimizer_history", [{**history, "num_updates": 0}])
        extra = state.setdefault("extra_state", {})
        if isinstance(extra, dict):  # without it, training would start at epoch 0
            extra.setdefault("train_iterator", {"epoch": 1, "iterations_in_epoch": 0})
    state.setdefault("criterion", None)  # as fairseq saves a criterion without parameters
    return state


def _listed(names: Iterable[Any]) -> str:
    names = list(map(str, names))
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "nothing"


def official_names(weights: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict without the prefix of data parallelism, and with official names."""
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if any("_mid_layer_norm." in name for name in weights):
        for pattern, official in HUGGING_FACE:
            weights = {re.sub(pattern, official, name): v for name, v in weights.items()}
    return weights


def _check_arguments(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Check the kinds of "args" and "cfg", and derive the arguments that are missing."""
    for key, kind in (("args", Namespace), ("cfg", Mapping)):
        if state[key] is not None and not isinstance(state[key], kind):
            raise ValueError(
                f'{path}: "{key}" is a {type(state[key]).__name__}, not arguments. Set it to None '
                "to take the model's sizes from its weights"
            )
    if state["args"] is not None:
        return
    if state["cfg"] is not None:
        task = state["cfg"].get("task")
        if isinstance(task, Mapping) and task and not (task.get("_name") or task.get("task")):
            raise ValueError(
                f'{path}: the options of the task in "cfg" have no name. Set cfg["task"]["_name"] '
                "to the task of the training, such as mue_caption"
            )
        if not isinstance(state["cfg"].get("model"), (Mapping, Namespace)):
            raise ValueError(
                f'{path}: "cfg" holds no arguments of the model. Set it to None to take the '
                "model's sizes from its weights"
            )
    else:
        try:
            state["args"] = Namespace(arch="ofa", task=None, **sizes_of(state["model"]))
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(
                f"{path} holds no OFA model: {_listed(state['model'])}. Give a checkpoint of OFA "
                "or of this package"
            ) from error
