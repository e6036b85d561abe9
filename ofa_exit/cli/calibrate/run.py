"""The steps of ``ofa-exit calibrate``: check, generate, test, write."""

import argparse
import contextlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import TASK_REGISTRY

import ofa_exit.plugin  # noqa: F401  registers the tasks
from ofa_exit.cli.calibrate.candidates import Candidates, candidates
from ofa_exit.cli.calibrate.exits import fitted_digest, fixed_options, in_full
from ofa_exit.cli.calibrate.generation import generate
from ofa_exit.cli.calibrate.metrics import (
    CONSISTENCY,
    OWN_COUNTS,
    check_metric,
    losses_of,
    measure_of,
)
from ofa_exit.cli.generation import NOT_COMPARABLE, is_cuda, names, task_of
from ofa_exit.cli.grid import ExitSetting
from ofa_exit.cli.parsing import check_outputs
from ofa_exit.data.answers import answer_references, parse_answers, reference_answers
from ofa_exit.data.files import hold_lock
from ofa_exit.data.tsv import TsvError
from ofa_exit.evaluation.calibration import statistics as ltt
from ofa_exit.evaluation.calibration.losses import Sentence, SentenceFile, costs_of
from ofa_exit.models.checkpoint_file import read_checkpoint
from ofa_exit.plugin.calibrated import reject_foreign_config, search_of
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.exit_config import (
    ExitConfig,
    checkpoint_fingerprint,
    data_fingerprint,
    read_exit_config,
)
from ofa_exit.plugin.options import COMMON, policy_flags
from ofa_exit.plugin.saved_arguments import SavedCheckpoint, parse_overrides
from ofa_exit.plugin.search.options import UNSUPPORTED, reject_options
from ofa_exit.plugin.tasks.base import OFATask
from ofa_exit.writing import write_errors

DEFAULT_POLICY = "similarity"
DEFAULT_BATCH = "16"


@dataclass
class Job:
    """What is calibrated, checked.

    Attributes:
        cfg: of fairseq-generate.
        saved: the checkpoint, without its weights.
        task: with the data of ``cfg.dataset.gen_subset``.
        found: the settings to try.
    """

    cfg: Any
    task: Any
    saved: SavedCheckpoint
    found: Candidates

    @property
    def kind(self) -> str:
        return self.task.prefix

    @property
    def dataset(self) -> Any:
        return self.task.dataset(self.cfg.dataset.gen_subset)

    @property
    def file(self) -> Path:
        return self.dataset.rows.examples.file.path


def run(args: argparse.Namespace, arguments: list[str], prog: str) -> int:
    """Calibrate, write the file and print what was found; return the exit status."""
    job = prepare(args, arguments, prog)
    rows = len(job.dataset)
    reject_too_few(rows, args)
    record = run_record(job, args)
    rows_file = args.out.with_suffix(".rows.jsonl")
    with usage_errors():
        with write_errors(args.out.parent):
            args.out.parent.mkdir(parents=True, exist_ok=True)
        if not hold_lock(rows_file.with_suffix(".lock")):
            raise ValueError(f"{rows_file}: another process writes it. Choose another --out")
        store = SentenceFile(rows_file, record, is_complete=args.save != "layers")
    ran = generate(job.cfg, job.task, job.saved, job.found, store)
    sentences = sorted(store.sentences, key=lambda one: one.row)
    finding, testing = ltt.split_rows(len(sentences))
    losses, scores = losses_of(sentences, args.metric, job.kind, finding)
    own_counts = args.metric in OWN_COUNTS
    scored = scores[testing] if scores is not None and own_counts else scores
    reject_too_few(len(sentences), args, None if scored is None else float(scored.mean()))
    costs = costs_to_save(sentences, args.save, job.found.settings, finding)
    result = ltt.calibrate(losses, costs, args.keep, args.confidence, scores, own_counts=own_counts)
    config = exit_config(job, args, record, result)
    config.write(args.out)
    print(ran)
    for line in report(job, args, result):
        print(line)
    return 0


def costs_to_save(
    sentences: Sequence[Sentence],
    name: str,
    settings: Sequence[ExitSetting],
    finding: np.ndarray,
) -> np.ndarray:
    """Return the costs of a name, [S, N]; those of full depth for settings that never exit.

    These save nothing, whatever the clock says. Only the rows that find the path say which never
    exit, because the path must not depend on the others.

    Args:
        finding: numbers of these rows.
    """
    costs = costs_of(sentences, name)
    layers = costs_of(sentences, "layers")[:, finding].mean(axis=1)
    for number, setting in enumerate(settings):
        if layers[number] >= 1 and setting.token_exits is None:  # layers do not count tokens
            costs[number] = costs[0]
    return costs


# ------------------------------------------------------------------ before weights are read


def prepare(args: argparse.Namespace, arguments: list[str], prog: str) -> Job:
    """Check all options against the checkpoint's arguments, and open the data.

    Raises:
        UsageError: options, files or rows that do not fit.
    """
    reject_other_file(args.out)
    with usage_errors():
        check_outputs(args, "out", inputs=arguments)
        saved = SavedCheckpoint(
            args.checkpoint, read_checkpoint(args.checkpoint, weights=False), {}
        )
    own = [] if any(names(one, "--task") for one in arguments) else ["--task", task_of(saved)]
    policy = any(names(one, "--exit-policy") for one in arguments)
    given = [
        *[args.data, "--path", args.checkpoint, "--batch-size", DEFAULT_BATCH, *own],
        *([] if policy else ["--exit-policy", DEFAULT_POLICY]),
        *arguments,
    ]
    for option in ("--path", "--exit-config", "--exit-trace"):
        if any(names(one, option) for one in arguments):
            raise UsageError(f"{option}: calibrate names its checkpoint and its exits itself")
    sys.argv = [prog, *given]  # fairseq's parser looks for --user-dir there
    parser = options.get_generation_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, given))
    utils.import_user_module(cfg.common)
    with usage_errors():
        saved.overrides = parse_overrides(cfg.common_eval.model_overrides)
        reject_options(cfg.generation, {**UNSUPPORTED, **NOT_COMPARABLE})
    task_class = TASK_REGISTRY[cfg.task._name]
    if not issubclass(task_class, OFATask):
        raise UsageError(f"--task {cfg.task._name} has no exits: give one of this package's tasks")
    check_metric(args.metric, task_class.prefix)
    found = candidates(cfg.task, task_class.exit_defaults, saved.model_arguments)
    for name in (*COMMON, *policy_flags(), "exit_late_options"):  # the settings have them
        if name in cfg.task:
            cfg.task[name] = "none" if name == "exit_policy" else None
    task = tasks.setup_task(cfg.task)
    subset = cfg.dataset.gen_subset
    task.load_dataset(subset, task_cfg=saved.task_options)
    with usage_errors():
        reject_foreign_config(task.cfg, task.prefix, policy=found.settings[-1].policy)
    job = Job(cfg, task, saved, found)
    if args.metric != CONSISTENCY:
        reject_without_references(job.dataset.rows.examples, args.metric)
    return job


def reject_other_file(out: Path) -> None:
    """Raise UsageError if ``out`` is a folder, or a file that no calibration wrote."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file in it")
    if out.exists():
        try:
            read_exit_config(str(out))
        except ValueError as error:
            raise UsageError(f"--out would overwrite a file. {error}") from error


def reject_without_references(examples: Any, metric: str) -> None:
    """Raise UsageError for the first row without a reference, and for answers of several forms.

    Images are not read.
    """
    field = next(name for name in ("caption", "label", "answers") if name in examples.file.columns)
    answers = []
    for index in range(len(examples)):
        try:
            text = examples.file.row(index)[field]
        except TsvError:  # raised, or skipped by flag, when the batch is read
            continue
        if not text.strip():
            raise UsageError(
                f"{examples.file.path}, line {index + 1}: column {field!r} is empty, and --metric "
                f"{metric} needs references. Fill it in, or choose --metric {CONSISTENCY}"
            )
        if metric == "vqa":
            with contextlib.suppress(ValueError):  # raised, or skipped, when the batch is read
                answers.append(reference_answers(answer_references(parse_answers(text))))
    if answers:
        measure_of(answers)


def reject_too_few(rows: int, args: argparse.Namespace, full_mean: float | None = None) -> None:
    """Raise UsageError if exits could not pass even if they never changed an answer.

    Args:
        full_mean: mean score of the full model; None before it is known, or without references.
    """
    keep, confidence = args.keep, args.confidence
    if keep == 1:
        raise UsageError(
            "--keep 1: no number of rows guarantees that nothing is ever lost. Give less, as in "
            "0.99, or run without exits"
        )
    known = "" if full_mean is None else f" where the full model's mean score is {full_mean:.4f}"
    if full_mean == 0:
        raise UsageError(f"--metric {args.metric}: the full model scores 0, so nothing can be kept")
    if full_mean is None and args.metric != CONSISTENCY:
        full_mean = 1.0  # at best
    own_counts = args.metric in OWN_COUNTS
    needed = ltt.rows_to_pass(0, keep, confidence, full_mean, own_counts=own_counts)
    if rows < needed:
        raise UsageError(
            f"{rows} rows are too few to promise {keep:g} with confidence {confidence:g}{known}: "
            f"at least {needed:.0f} are needed, more if exits change answers. Give more rows, or a "
            "smaller --keep or --confidence"
        )


# ------------------------------------------------------------------ files and report


def run_record(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """Return what decides the generated sentences, as JSON."""
    cfg = job.cfg
    record = {
        "checkpoint": checkpoint_fingerprint(job.saved.path),
        "task": job.task.fingerprint(),
        "data": data_fingerprint(job.file),
        "search": search_of(cfg.generation),
        "model": [job.saved.overrides, cfg.common.fp16],
        "settings": [one.given for one in job.found.settings],
        "fixed": fixed_options(job.found),
        **fitted_digest(job.found),
    }
    if args.save == "time":
        record["clock"] = [cfg.dataset.batch_size, cfg.dataset.max_tokens, is_cuda(cfg)]
    return record


def exit_config(
    job: Job, args: argparse.Namespace, record: dict[str, Any], result: ltt.Calibration
) -> ExitConfig:
    """Return the file to write; full depth if nothing passed, whose loss is 0."""
    chosen = result.chosen
    exits: dict[str, Any] = {"exit_policy": "none"}
    if chosen is not None:
        given = {**job.found.settings[chosen.setting].given, **record["fixed"]}
        exits = in_full(given, type(job.task).exit_defaults, job.saved.model_arguments)
    certificate = {
        "model": {"overrides": job.saved.overrides, "fp16": job.cfg.common.fp16},
        "metric": args.metric,
        "keep": args.keep,
        "confidence": args.confidence,
        "rows": result.rows,
        "path_rows": result.path_rows,
        "bound": result.bound,
        "level": result.level,
        "mean_loss": chosen.mean_loss if chosen else 0.0,
        "p_value": chosen.p_value if chosen else 0.0,
        "full_mean": result.full_mean,
        "full_lower": result.full_lower,
        "save": args.save,
        "saved": chosen.saved if chosen else 0.0,
        "tested": min(result.passed + 1, len(result.path)),
        "search": record["search"],
        **fitted_digest(job.found),
    }
    return ExitConfig(exits, certificate, record["checkpoint"], record["task"], record["data"])


def report(job: Job, args: argparse.Namespace, result: ltt.Calibration) -> list[str]:
    """Return the lines to print: what was tested, what passed, and what it would take."""
    lines = [
        f"{result.path_rows} rows found a path of {len(result.path)} settings, {result.rows} test "
        f"it: {args.metric} loss at most {result.bound:.4g}, p at most {result.level:.3g}"
    ]
    if result.full_mean is not None:
        lines.append(
            f"full model: mean score {result.full_mean:.4f}, at least {result.full_lower:.4f}"
        )
    for number, one in enumerate(result.path[: result.passed + 1]):
        given = job.found.settings[one.setting].given
        shown = " ".join(f"{k.removeprefix('exit_')}={v}" for k, v in given.items())
        mark = "passes" if number < result.passed else "fails "
        lines.append(
            f"{mark}  loss {one.mean_loss:.4f}  p {one.p_value:.2g}  {args.save} "
            f"{-100 * one.saved:+.1f} %  {shown}"
        )
    if result.chosen is not None:
        lines.append(f"{args.out}: the last one that passes")
        return lines
    lines.append(f"{args.out}: full depth, because no setting passes")
    if not result.path:
        return [*lines, f"no setting saves {args.save}"]
    loss, rows = result.path[0].mean_loss, result.rows + result.path_rows
    promise = args.keep, args.confidence, result.full_mean
    own_counts = args.metric in OWN_COUNTS
    needed = ltt.rows_to_pass(loss, *promise, own_counts=own_counts, failing=rows)
    shown = f"with the first one's loss of {loss:.4f}"
    if math.isfinite(needed):
        return [*lines, f"{shown}, it takes about {needed:.0f} rows"]
    least = ltt.rows_to_pass(0, *promise, own_counts=own_counts)
    return [
        *lines,
        f"{shown}, no number of rows is enough: give a smaller --keep. Without a loss it takes "
        f"{least:.0f} rows",
    ]
