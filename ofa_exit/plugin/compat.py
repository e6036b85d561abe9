"""What fairseq 0.12 needs under current torch and numpy, applied once when the plugin is imported.

Ten mends, and nothing else of fairseq is touched:

1. ``batch_by_size`` loses sentences. Its last batch is thrown away when its size is not a multiple
   of ``--required-batch-size-multiple`` (8 by default), in training, validation and generation.
2. ``torch.load`` refuses fairseq's checkpoints. Since torch 2.6 it builds only objects of classes
   that were allowed by name (``weights_only``); the classes which fairseq and the official OFA
   release store, and those that processes send each other when one loads for all, are allowed
   here. ``weights_only`` itself stays on.
3. A checkpoint that keeps its arguments as ``args`` cannot be read where the task or criterion it
   was trained with is not registered, though neither is needed to load a model into another task.
4. ``fairseq-train`` lists the task's data as a folder to find validation sets that were forgotten,
   and crashes on OFA's ``train.tsv,valid.tsv``.
5. ``--ddp-backend pytorch_ddp`` names a GPU for a model on the CPU, which torch refuses.
6. ``--help`` ends before the options of the chosen task, model, criterion and scorer are known.
7. A module of fairseq turns everybody's debug messages on, of which hydra and pillow have many.
8. The trainer takes all parameters that are None for a shared one, a line each.
9. Every command warns of what fairseq itself should call otherwise in hydra, omegaconf and torch.
10. ``--optimizer composite`` ends in a KeyError where a group of parameters has no settings, and
   ``fairseq-train`` has no way to give them.

The eleventh is Python's: errors of the command line's making are told in one line (``errors.py``).
"""

import argparse
import collections
import functools
import itertools
import logging
import operator
import os
import sys
import typing
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import omegaconf
import torch
from fairseq import checkpoint_utils, options, trainer, utils
from fairseq.data import data_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.models import distributed_fairseq_model
from fairseq.optim.composite import FairseqCompositeOptimizer
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY
from omegaconf.base import ContainerMetadata, Metadata

from ofa_exit.plugin.errors import UsageError, tell_in_a_line

# numpy 1 wrote the first module name into its pickles, numpy 2 writes the second.
NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


def keep_last_batch() -> None:
    """Wrap ``fairseq.data.data_utils.batch_by_size`` so that every index lands in a batch.

    All of fairseq looks the function up in its module when it batches, so replacing the attribute
    reaches every caller. A fairseq that loses nothing is left with the batches that it made.
    """
    original = data_utils.batch_by_size
    if getattr(original, "keeps_last_batch", False):
        return

    @functools.wraps(original)
    def batch_by_size(indices: Iterable[int], *args: Any, **kwargs: Any) -> list:
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64, count=-1)
        if len(indices) == 0:  # fairseq would look at the size of a last batch that is not there
            return []
        batches = original(indices, *args, **kwargs)
        kept = sum(len(batch) for batch in batches)
        # Batches cut the indices in order, hence what is missing is the end.
        return batches if kept == len(indices) else [*batches, indices[kept:]]

    batch_by_size.keeps_last_batch = True  # type: ignore[attr-defined]
    data_utils.batch_by_size = batch_by_size


def checkpoint_classes() -> list:
    """The classes and functions that checkpoints of fairseq and OFA name, for torch's allow list.

    ``Namespace``: the model's and the task's arguments, in every checkpoint. numpy: best scores and
    meters. omegaconf: the whole configuration, as early releases stored it, always untyped
    (typed ones hold enums that cannot be pickled). ``_TensorPlaceholder``: stands for a tensor in
    a checkpoint that one process read and broadcasts to the others. Each only holds data.
    """
    numpy_dtypes = {type(np.dtype(code)) for code in np.typecodes["All"]}
    numpy_functions: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    return [
        argparse.Namespace,
        *((f, f"{module}.{f.__name__}") for f in numpy_functions for module in NUMPY_MODULES),
        np.ndarray,
        np.dtype,
        *sorted(numpy_dtypes, key=repr),
        omegaconf.DictConfig,
        omegaconf.ListConfig,
        omegaconf.AnyNode,
        ContainerMetadata,
        Metadata,
        (typing.Any, "typing.Any"),
        collections.defaultdict,
        distributed_utils._TensorPlaceholder,
        dict,
        list,
        int,
    ]


def forget_unknown_parts() -> None:
    """Wrap the reading of a checkpoint's ``args``: names that are not registered are left out.

    ``fairseq.checkpoint_utils`` holds the function by its own name, where it is replaced. The
    architecture is not touched, a checkpoint of an unknown one stays an error.
    """
    original = checkpoint_utils.convert_namespace_to_omegaconf
    if getattr(original, "forgets_unknown_parts", False):
        return

    @functools.wraps(original)
    def convert_namespace_to_omegaconf(args: argparse.Namespace) -> omegaconf.DictConfig:
        known = {"task": TASK_REGISTRY, **{k: v["registry"] for k, v in REGISTRIES.items()}}
        kept = {k: v for k, v in vars(args).items() if k not in known or v in known[k]}
        config = original(argparse.Namespace(**kept))
        if config.task is None:  # fairseq looks into it
            config.task = {"_name": getattr(args, "task", None)}
        return config

    convert_namespace_to_omegaconf.forgets_unknown_parts = True  # type: ignore[attr-defined]
    checkpoint_utils.convert_namespace_to_omegaconf = convert_namespace_to_omegaconf


def look_into_folders_only() -> None:
    """Wrap the search for forgotten validation sets, so that data which is no folder has none."""
    original = data_utils._find_extra_valid_paths
    if getattr(original, "looks_into_folders_only", False):
        return

    @functools.wraps(original)
    def find_extra_valid_paths(dataset_path: str) -> set[str]:
        folders = filter(os.path.isdir, utils.split_paths(dataset_path))
        return {name for folder in folders for name in original(folder)}

    find_extra_valid_paths.looks_into_folders_only = True  # type: ignore[attr-defined]
    data_utils._find_extra_valid_paths = find_extra_valid_paths


def name_no_gpu_on_cpu() -> None:
    """Wrap torch's DistributedDataParallel where fairseq makes one: no device ids on the CPU."""
    original = distributed_fairseq_model.DistributedDataParallel
    if getattr(original, "names_no_gpu_on_cpu", False):
        return

    @functools.wraps(original)
    def data_parallel(module: torch.nn.Module, **options: Any) -> torch.nn.Module:
        if all(parameter.device.type == "cpu" for parameter in module.parameters()):
            options.update(device_ids=None, output_device=None)
        return original(module=module, **options)

    data_parallel.names_no_gpu_on_cpu = True  # type: ignore[attr-defined]
    distributed_fairseq_model.DistributedDataParallel = data_parallel


def help_with_all_options() -> None:
    """Wrap the parsing of command lines: ``--help`` waits for the options of what was chosen.

    fairseq parses twice, and asks ``modify_parser`` before each time; by the second all options are
    there. Where the first already fails, for want of a task, say, the help is the general one.
    """
    original = options.parse_args_and_arch
    if getattr(original, "helps_with_all_options", False):
        return

    @functools.wraps(original)
    def parse_args_and_arch(
        parser: argparse.ArgumentParser, input_args: Any = None, **kwargs: Any
    ) -> Any:
        given = sys.argv[1:] if input_args is None else list(input_args)
        if not {"-h", "--help"} & set(given):
            return original(parser, input_args, **kwargs)
        times = itertools.count(1)

        def second_time(complete: argparse.ArgumentParser) -> None:
            if next(times) == 2:
                complete.print_help()
                raise SystemExit(0)

        rest = [argument for argument in given if argument not in ("-h", "--help")]
        try:
            return original(parser, rest, **{**kwargs, "modify_parser": second_time})
        except SystemExit as stop:
            if stop.code:
                parser.print_help()
            raise SystemExit(0) from None

    parse_args_and_arch.helps_with_all_options = True  # type: ignore[attr-defined]
    options.parse_args_and_arch = parse_args_and_arch


def list_shared_parameters_only() -> None:
    """Wrap the trainer's search for shared parameters, which compares those that are None, too.

    The search calls itself by its name in the module, once for each submodule; only the outermost
    call, the one without a ``memo``, has a result.
    """
    original = trainer._catalog_shared_params
    if getattr(original, "lists_shared_parameters_only", False):
        return

    @functools.wraps(original)
    def catalog_shared_params(module: torch.nn.Module, memo: Any = None, prefix: str = "") -> Any:
        found = original(module, memo, prefix)
        if found is None:
            return None
        return [names for names in found if operator.attrgetter(names[0])(module) is not None]

    catalog_shared_params.lists_shared_parameters_only = True  # type: ignore[attr-defined]
    trainer._catalog_shared_params = catalog_shared_params


def ask_for_settings_of_groups() -> None:
    """Wrap the making of a composite optimizer: groups without settings are named, with the remedy.

    The settings of groups are mappings, which only a YAML configuration can hold.
    """
    original = FairseqCompositeOptimizer.__init__
    if getattr(original, "asks_for_settings_of_groups", False):
        return

    @functools.wraps(original)
    def __init__(self: FairseqCompositeOptimizer, cfg: Any, params: Iterable[Any]) -> None:
        params = list(params)
        if not cfg.dynamic_groups:
            there = {getattr(parameter, "param_group", "default") for parameter in params}
            absent = ", ".join(sorted(there - set(cfg.groups)))
            if absent:
                raise UsageError(
                    f"--optimizer composite: no settings for the parameters of {absent}. Give "
                    "optimizer.groups in a YAML configuration to fairseq-hydra-train, or use "
                    "--optimizer adam, which trains groups in turn as well"
                )
        original(self, cfg, params)

    __init__.asks_for_settings_of_groups = True  # type: ignore[attr-defined]
    FairseqCompositeOptimizer.__init__ = __init__


def hide_others_warnings() -> None:
    """Leave out warnings that only fairseq's authors could follow; -W and PYTHONWARNINGS rule."""
    if sys.warnoptions:
        return
    warnings.filterwarnings("ignore", module="hydra")
    # Told of whoever called hydra, not of hydra.
    warnings.filterwarnings("ignore", message=r"\s*'config' is validated against ConfigStore")
    # fairseq pins without asking whether there is an accelerator.
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no acc")


def apply() -> None:
    """Apply the mends; a second call changes nothing."""
    keep_last_batch()
    forget_unknown_parts()
    look_into_folders_only()
    name_no_gpu_on_cpu()
    help_with_all_options()
    list_shared_parameters_only()
    ask_for_settings_of_groups()
    hide_others_warnings()
    tell_in_a_line()
    for noisy in ("PIL", "hydra"):
        logging.getLogger(noisy).setLevel(logging.INFO)
    torch.serialization.add_safe_globals(checkpoint_classes())


apply()
