"""Task, checkpoint and batches of a fairseq-generate command line, for verbs that look inside."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import TASK_REGISTRY

from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.saved_arguments import SavedCheckpoint, parse_overrides
from ofa_exit.plugin.tasks.base import OFATask
from ofa_exit.plugin.trained_options import kind_of_task

# Options of searches whose texts say nothing about exits.
NOT_COMPARABLE = {
    "sampling": "answers would differ without exits, too",
    "score_reference": "there are no answers to compare",
}


def names(argument: str, *options: str) -> bool:
    """Return whether an argument of a command line is one of these options, with a value or not."""
    return argument.partition("=")[0] in options


def task_of(saved: SavedCheckpoint) -> str:
    """Return the name of our task of a checkpoint's kind. Raises UsageError if it has none."""
    kind = kind_of_task(saved.task_options.get("_name"))
    for name, cls in TASK_REGISTRY.items():
        if issubclass(cls, OFATask) and cls.prefix == kind and name.startswith("mue_"):
            return name
    raise UsageError(f"{saved.path} does not say what task it was trained for: give --task")


def named_files(pairs: list[str], what: str) -> dict[str, str]:
    """Return the files of a list of NAME=FILE. Raises UsageError for other texts."""
    files: dict[str, str] = {}
    for pair in pairs:
        name, found, file = pair.partition("=")
        if not found or not name or not file:
            raise UsageError(f"{pair!r}: give NAME={what}, and the data after all of them")
        if name in files:
            raise UsageError(f"{pair!r}: the name {name!r} comes twice")
        files[name] = file
    return files


def is_cuda(cfg: Any) -> bool:
    return torch.cuda.is_available() and not cfg.common.cpu


def load_checkpoint(path: str, overrides: dict[str, Any], task: Any, cfg: Any) -> tuple[Any, Any]:
    """Load a checkpoint as fairseq-generate does.

    Returns:
        The model, and the configuration of its training.
    Raises:
        UsageError: the file is missing, or cannot be used.
    """
    (model,), saved = checkpoint_utils.load_model_ensemble([path], overrides, task)
    model.prepare_for_inference_(cfg)
    if cfg.common.fp16:
        model.half()
    if is_cuda(cfg):
        model.to("cuda")
    return model, saved


def batches(task: Any, cfg: Any, models: Iterable[Any]) -> Any:
    """Return fairseq's iterator over the batches of the split."""
    limits = task.max_positions(), *(model.max_positions() for model in models)
    return task.get_batch_iterator(
        task.dataset(cfg.dataset.gen_subset),
        max_tokens=cfg.dataset.max_tokens,
        max_sentences=cfg.dataset.batch_size,
        max_positions=utils.resolve_max_positions(*limits),
        required_batch_size_multiple=cfg.dataset.required_batch_size_multiple,
        num_workers=cfg.dataset.num_workers,
    ).next_epoch_itr(shuffle=False)


class Generation:
    """What fairseq-generate would load, without generating.

    Args:
        verb: the program's name in errors of fairseq's parser.
        arguments: those of fairseq-generate, without --path and exit options.
        checkpoints: files that will be loaded.

    Raises:
        UsageError: options that do not fit, or a checkpoint that is missing.
    """

    def __init__(self, verb: str, arguments: list[str], checkpoints: list[str]) -> None:
        for option in ("--path", "--exit-policy", "--exit-preset"):
            if any(names(argument, option) for argument in arguments):
                raise UsageError(f"{option}: {verb} names its checkpoints itself, and runs them at "
                                 "full depth. Leave it out")  # fmt: skip
        if checkpoints:
            arguments = [*arguments, "--path", os.pathsep.join(checkpoints)]
        parser = options.get_generation_parser()
        self.cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))
        utils.import_user_module(self.cfg.common)
        name = self.cfg.task._name
        if not issubclass(TASK_REGISTRY[name], OFATask):
            raise UsageError(f"--task {name} has no exits: give one of this package's tasks")
        self.task: Any = tasks.setup_task(self.cfg.task)

    @property
    def subset(self) -> str:
        return self.cfg.dataset.gen_subset

    def load_model(self, checkpoint: str) -> Any:
        """Return the model of a checkpoint, and open the data, which has to fit its training."""
        with usage_errors():
            overrides = parse_overrides(self.cfg.common_eval.model_overrides)
        model, saved = load_checkpoint(checkpoint, overrides, self.task, self.cfg)
        self.task.load_dataset(self.subset, task_cfg=saved.task)
        return model

    def batches(self, model: Any) -> Any:
        return batches(self.task, self.cfg, [model])

    def on_device(self, batches: Any, model: Any) -> Iterator[dict[str, Any]]:
        """Yield the batches that have rows, on the model's device and with images of its type."""
        dtype = next(iter(model.parameters())).dtype
        for sample in batches:
            if sample:
                sample = utils.move_to_cuda(sample) if is_cuda(self.cfg) else sample
                images = sample["net_input"]["patch_images"].to(dtype)
                yield {**sample, "net_input": {**sample["net_input"], "patch_images": images}}
