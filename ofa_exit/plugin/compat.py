"""Repair fairseq 0.12 under current torch and numpy. Importing this module applies all repairs.

``compat_saving.py`` has those of how training saves and resumes.

1. ``batch_by_size`` drops sentences: it discards its last batch if the batch's size is not a
   multiple of ``--required-batch-size-multiple`` (default 8), in generation too.
2. ``torch.load`` rejects fairseq's checkpoints. Since torch 2.6 it builds only objects of allowed
   classes (``weights_only``). Allow those that fairseq and the official OFA release store, and
   those that processes exchange when one of them reads for all. ``weights_only`` stays on.
3. A checkpoint with ``args`` cannot be read if its task or criterion is not registered, although
   loading the model into another task needs neither. The options of such a task are lost.
4. ``fairseq-train`` lists the task's data as a folder to find unused validation sets. It fails on
   OFA's ``train.tsv,valid.tsv``, and takes side files (``valid1.tsv.manifest.json``) for sets.
5. ``--ddp-backend pytorch_ddp`` passes a GPU's number for a model on the CPU, which torch rejects.
6. ``--help`` prints before the options of the chosen task, model, criterion and scorer are added.
7. The trainer reports all parameters that are None as shared, one log line each.
8. ``--optimizer composite`` fails with a KeyError if a parameter group has no settings, and the
   command line of ``fairseq-train`` cannot give any.
9. Every command prints deprecation warnings about fairseq's own calls to hydra and omegaconf.
10. Damaged files, and other files than checkpoints, end in deep tracebacks or load nothing.
    Checkpoints without arguments, and those of ``DistributedDataParallel`` or Hugging Face, cannot
    be read. All files go through ``models/checkpoint_file.py``.
11. fairseq-validate takes options that differ from the checkpoint's training without a word.
12. fairseq-train hides the reason why a checkpoint does not fit in a traceback of three errors,
    and trains from scratch if --restore-file is missing.
13. A criterion with parameters cannot start from an exported checkpoint, which has no criterion.
14. A diverged training ends in an error of fairseq's NaN detector, which reads outputs as tuples.
15. fairseq-generate empties the file of ``--results-path`` before it reads the data, and stops at
    an assertion for ``--sampling`` without ``--nbest``. numpy rejects some seeds in a traceback.
16. A word in place of a number, as in ``--lr nan``, ends in an error that does not say which.
    Digits of other scripts are read as numbers.
17. A module of fairseq enables debug messages for every logger; hydra and pillow log many.
18. An unknown option prints the usage of all options, which fills screens, before its own line.
19. An unknown task or criterion prints the usage, too, and fairseq-interactive without --task looks
    for a language pair.
20. fairseq-generate prints an empty T- line for a row without references, if others of its batch
    have some.
"""

import argparse
import collections
import functools
import itertools
import logging
import operator
import os
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import fairseq_cli.generate
import numpy as np
import omegaconf
import torch
from fairseq import checkpoint_utils, options, trainer, utils
from fairseq.data import data_utils
from fairseq.dataclass import utils as dataclass_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.models import distributed_fairseq_model
from fairseq.optim.composite import FairseqCompositeOptimizer
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY
from omegaconf.base import ContainerMetadata, Metadata

from ofa_exit.models.checkpoint_file import check_is_file, read_checkpoint
from ofa_exit.plugin.command_options import check_early_options, reject_names
from ofa_exit.plugin.command_ranges import read_ascii_numbers
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.options import shortened
from ofa_exit.plugin.save_folder import LAST_CHECKPOINT
from ofa_exit.plugin.saved_arguments import SavedCheckpoint, parse_overrides
from ofa_exit.plugin.trained_options import reject_given_differences
from ofa_exit.spelling import unknown_option

# numpy 1 wrote the first module name into its pickles, numpy 2 writes the second.
NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


def patch(owner: Any, name: str) -> Callable[[Callable], Callable]:
    """Replace ``owner.name`` by a function that gets the original as its first argument.

    ``owner`` is the module in which fairseq looks the name up when it calls it, so that all callers
    are reached. Several replacements stack, the last outermost. The same one twice changes nothing.
    """

    def decorate(replacement: Callable) -> Callable:
        original = getattr(owner, name)
        # By name: a reloaded module has other functions.
        key = f"{replacement.__module__}.{replacement.__qualname__}"
        applied: frozenset[str] = getattr(original, "replacements", frozenset())
        if key in applied:
            return original

        @functools.wraps(original)
        def patched(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs)

        patched.replacements = applied | {key}  # type: ignore[attr-defined]
        setattr(owner, name, patched)
        return patched

    return decorate


@patch(data_utils, "batch_by_size")
def keep_last_batch(
    batch_by_size: Callable, indices: Iterable[int], *args: Any, **kwargs: Any
) -> list:
    if not isinstance(indices, np.ndarray):
        indices = np.fromiter(indices, dtype=np.int64, count=-1)
    if len(indices) == 0:  # fairseq would read the size of a last batch that does not exist
        return []
    batches = batch_by_size(indices, *args, **kwargs)
    batched = sum(len(batch) for batch in batches)
    # Batches follow the order of the indices, so the missing ones are the last.
    return batches if batched == len(indices) else [*batches, indices[batched:]]


def checkpoint_classes() -> list:
    """Return the classes and functions in checkpoints of fairseq and OFA, for torch's allow list.

    ``Namespace``: arguments of model and task, in every checkpoint. numpy: best scores and meters.
    omegaconf: the configuration as early releases stored it, always untyped (typed ones hold enums
    that cannot be pickled). ``_TensorPlaceholder``: a tensor in a checkpoint that one process reads
    and broadcasts. All of them only hold data.
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


@patch(checkpoint_utils, "convert_namespace_to_omegaconf")
def drop_unknown_parts(convert: Callable, args: argparse.Namespace) -> omegaconf.DictConfig:
    """Drop names of a checkpoint's ``args`` that are not registered, but never the architecture."""
    known = {"task": TASK_REGISTRY, **{k: v["registry"] for k, v in REGISTRIES.items()}}
    kept = {k: v for k, v in vars(args).items() if k not in known or v in known[k]}
    config = convert(argparse.Namespace(**kept))
    if config.task is None:  # fairseq reads its fields
        plain = {k: v for k, v in vars(args).items() if isinstance(v, (str, int, float))}
        config.task = {**plain, "_name": getattr(args, "task", None)}
    return config


class _TorchOfCheckpointUtils:
    """torch as ``fairseq.checkpoint_utils`` sees it: ``load`` checks what it reads."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(file: typing.BinaryIO, **options: Any) -> dict[str, Any]:
        return read_checkpoint(file.name)


checkpoint_utils.torch = _TorchOfCheckpointUtils()


@patch(checkpoint_utils, "load_checkpoint_to_cpu")
@usage_errors()
def check_file_and_options(
    load: Callable, path: str, arg_overrides: Any = None, *args: Any, **kwargs: Any
) -> dict[str, Any]:
    if "://" not in str(path):
        check_is_file(path)  # before fairseq opens it: opening a pipe waits for ever
        if arg_overrides and "path" in arg_overrides:  # only fairseq-validate overrides it
            meant = parse_overrides(arg_overrides.get("model_overrides", "{}"))
            saved = SavedCheckpoint(path, read_checkpoint(path, weights=False), meant)
            reject_given_differences(saved, arg_overrides)
    try:
        return load(path, arg_overrides, *args, **kwargs)
    except (AttributeError, LookupError, TypeError) as error:  # as fairseq upgrades what it reads
        raise ValueError(
            f"{path}: fairseq cannot read what is beside the weights ({error!r}). Save the weights "
            "alone: torch.save(state['model'], FILE)"
        ) from error


@patch(checkpoint_utils, "load_model_ensemble_and_task")
def name_file(load: Callable, filenames: list[str], *args: Any, **kwargs: Any) -> Any:
    try:
        return load(filenames, *args, **kwargs)
    except OSError as error:
        raise UsageError(f"--path: {error}. Give an existing file") from error
    except UsageError as error:
        if any(str(name) in str(error) for name in filenames):
            raise
        raise UsageError(f"{', '.join(map(str, filenames))}: {error}") from error


def print_but_empty_targets(*values: Any, **options: Any) -> None:
    """Print what fairseq-generate does, but no T- line without a text."""
    if not re.fullmatch(r"T-\d+\t", str(values[0]) if values else ""):
        print(*values, **options)


fairseq_cli.generate.print = print_but_empty_targets


@patch(trainer.Trainer, "load_checkpoint")
def name_misfit(
    load: Callable, self: trainer.Trainer, filename: str, *args: Any, **kwargs: Any
) -> Any:
    """Reject a start that is missing or does not fit. Of a missing file fairseq loads nothing."""
    given = self.cfg.checkpoint
    starts = (given.finetune_from_model, getattr(given, "continue_once", None))
    is_named = given.restore_file != LAST_CHECKPOINT or any(starts)
    if is_named and not PathManager.isfile(filename):
        raise UsageError(f"{filename}: no such checkpoint. Give an existing file to start from")
    try:
        return load(self, filename, *args, **kwargs)
    except Exception as error:
        if isinstance(error.__context__, UsageError):
            raise error.__context__ from None
        raise


@patch(data_utils, "_find_extra_valid_paths")
def search_tsv_files_of_folders(find: Callable, dataset_path: str) -> set[str]:
    folders = filter(os.path.isdir, utils.split_paths(dataset_path))
    found = ((folder, name) for folder in folders for name in find(folder))
    return {name for folder, name in found if os.path.isfile(os.path.join(folder, f"{name}.tsv"))}


@patch(distributed_fairseq_model, "DistributedDataParallel")
def no_device_ids_on_cpu(
    data_parallel: Callable, module: torch.nn.Module, **kwargs: Any
) -> torch.nn.Module:
    if all(parameter.device.type == "cpu" for parameter in module.parameters()):
        kwargs.update(device_ids=None, output_device=None)
    return data_parallel(module=module, **kwargs)


@patch(options, "parse_args_and_arch")
def help_with_all_options(
    parse: Callable, parser: argparse.ArgumentParser, input_args: Any = None, **kwargs: Any
) -> Any:
    """Print the help in the second of fairseq's two parses, when all options have been added.

    fairseq calls ``modify_parser`` before each parse. If the first fails, for example because the
    task is missing, print the general help.
    """
    given = sys.argv[1:] if input_args is None else list(input_args)
    if not {"-h", "--help"} & set(given):
        return parse(parser, input_args, **kwargs)
    parses = itertools.count(1)

    def print_second_time(complete: argparse.ArgumentParser) -> None:
        if next(parses) == 2:
            complete.print_help()
            raise SystemExit(0)

    rest = [argument for argument in given if argument not in ("-h", "--help")]
    try:
        return parse(parser, rest, **{**kwargs, "modify_parser": print_second_time})
    except UsageError:  # the command itself is rejected
        raise
    except SystemExit as stop:
        if stop.code:
            parser.print_help()
        raise SystemExit(0) from None


@patch(options, "parse_args_and_arch")
def name_unknown_option(
    parse: Callable, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any
) -> Any:
    """Reject an unknown option on one line in fairseq's last parse, when all have been added."""

    def parse_args(arguments: Any = None) -> argparse.Namespace:
        error = unknown_option(parser, sys.argv[1:] if arguments is None else arguments)
        if error is not None:
            raise UsageError(error)
        return type(parser).parse_args(parser, arguments)

    parser.parse_args = parse_args  # type: ignore[method-assign, assignment]
    return parse(parser, *args, **kwargs)


@patch(options, "parse_args_and_arch")
def name_task_and_criterion(
    parse: Callable, parser: argparse.ArgumentParser, input_args: Any = None, **kwargs: Any
) -> Any:
    reject_names(parser, sys.argv[1:] if input_args is None else list(input_args))
    return parse(parser, input_args, **kwargs)


@patch(options, "parse_args_and_arch")
def check_before_the_task(
    parse: Callable, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any
) -> Any:
    read_ascii_numbers(parser)
    parsed = parse(parser, *args, **kwargs)
    with usage_errors():
        check_early_options(parsed[0] if isinstance(parsed, tuple) else parsed)
    return parsed


@patch(dataclass_utils, "eval_str_list")
def reject_words(evaluate: Callable, text: Any, kind: type = float) -> Any:
    try:
        return evaluate(text, kind)
    except (NameError, SyntaxError, ArithmeticError, ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(
            f"{shortened(text)} is no number and no list of numbers"
        ) from error


@patch(trainer, "_catalog_shared_params")
def list_shared_parameters_only(
    catalog: Callable, module: torch.nn.Module, memo: Any = None, prefix: str = ""
) -> Any:
    # The original calls itself by its name, that is, through here, once for each submodule. Only
    # the outermost call, the one without a memo, returns a list.
    found = catalog(module, memo, prefix)
    if found is None:
        return None
    return [names for names in found if operator.attrgetter(names[0])(module) is not None]


@patch(trainer, "NanDetector")
def name_divergence(detector: Callable, model: torch.nn.Module, **options: Any) -> typing.NoReturn:
    """Raise UsageError where fairseq looks for the module that makes NaN, after a failed update."""
    broken = next((n for n, w in model.named_parameters() if not w.isfinite().all()), None)
    found = "the gradients are NaN or infinite"
    if broken is not None:
        found = f"the weights {broken} hold NaN or infinity"
    raise UsageError(
        f"the training diverged: {found}. Lower --lr, or limit the gradients by --clip-norm; "
        "crash.pt in --save-dir holds the state"
    )


@patch(FairseqCompositeOptimizer, "__init__")
def require_settings_of_groups(
    init: Callable, self: FairseqCompositeOptimizer, cfg: Any, params: Iterable[Any]
) -> None:
    params = list(params)
    if not cfg.dynamic_groups:
        groups = {getattr(parameter, "param_group", "default") for parameter in params}
        missing = ", ".join(sorted(groups - set(cfg.groups)))
        if missing:
            raise UsageError(
                f"--optimizer composite: settings are missing for the parameter groups {missing}. "
                "Give optimizer.groups in a YAML configuration to fairseq-hydra-train, or use "
                "--optimizer adam"
            )
    init(self, cfg, params)


def hide_warnings_about_fairseq() -> None:
    """Hide warnings that only fairseq's authors could act on. -W and PYTHONWARNINGS override."""
    if sys.warnoptions:
        return
    warnings.filterwarnings("ignore", module="hydra")
    # Attributed to hydra's caller.
    warnings.filterwarnings("ignore", message=r"\s*'config' is validated against ConfigStore")
    # fairseq pins memory without checking for an accelerator.
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no acc")


hide_warnings_about_fairseq()
for _noisy in ("PIL", "hydra", "filelock"):
    logging.getLogger(_noisy).setLevel(logging.INFO)
torch.serialization.add_safe_globals(checkpoint_classes())
