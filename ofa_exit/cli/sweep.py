"""Measure many exit settings over one checkpoint; model and data are loaded once.

  ofa-exit sweep GRID.json OUT.csv DATA --path CHECKPOINT …

GRID.json holds a list of settings. Each is an object of fairseq-generate's exit options in Python
spelling, for instance {"exit_decoder_threshold": 0.9}. The others are compared with the first,
usually {}, full depth. A `run` names the curve of a setting; --run names that of all others.
Everything else on the command line goes to fairseq-generate's parser unchanged.

Every setting generates every batch, in an order that rotates with the batches, so that all settings
meet the same machine. measured_time_reduction is 1 minus the median over batches of the time
relative to the first setting. The CSV has one line per setting, with the columns that ofa-exit plot
draws, and gflops_per_sentence and milliseconds_per_sentence.

--reference CHECKPOINT compares with another model at full depth, as OFA tiny with OFA base. It
takes its turn at every batch. flop_reduction and measured_time_reduction are then relative to it,
and the CSV has a last line for it, run `reference`. Milliseconds of two separate sweeps measure two
states of the machine: compare times only within one sweep. --reference-layers ENCODER,DECODER
compares expected_time_reduction with the layers of such a model.

OUT.csv is written when the sweep finishes. Until then OUT.partial.csv holds the same lines over the
sentences so far (column `sentences`). It is rewritten about once a minute and when the sweep fails
or is interrupted. --time-only sweeps over a split without published answers.

The same command resumes a sweep that was stopped: OUT.partial.jsonl keeps the batches that all
settings have generated. It is removed in the end, and rejected if settings, checkpoint, data or
options are others.
"""

import csv
import io
import logging
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

from fairseq import options, scoring, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import progress_bar
from fairseq.scoring import SCORER_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from ofa_exit.cli.generation import batches, is_cuda
from ofa_exit.cli.grid import ExitSetting, Grid, exit_settings, read_grid
from ofa_exit.cli.parsing import check_outputs, new_parser, prints_errors
from ofa_exit.cli.sweep_setting import Setting, load
from ofa_exit.cli.sweep_state import FinishedBatches
from ofa_exit.data.files import locked, write_bytes
from ofa_exit.plugin.calibrated import reject_foreign_config, warn_of_settings
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.reporting import file_record, run_record
from ofa_exit.plugin.saved_arguments import parse_overrides, saved_arguments
from ofa_exit.plugin.search.options import UNSUPPORTED, reject_options
from ofa_exit.plugin.tasks.base import OFATask
from ofa_exit.plugin.tasks.dataset import RowDataset
from ofa_exit.writing import write_errors

logger = logging.getLogger(__name__)

WARM_UP_BATCHES = 2  # generated once before the clock starts
SECONDS_BETWEEN_WRITES = 60.0
WRITE_TIME_SHARE = 0.05  # of the run: metrics in Java take many seconds per setting


class PartialCsv:
    """The lines so far in a file of their own, in case the sweep does not finish.

    Written every ``SECONDS_BETWEEN_WRITES``, less often if that would take more than
    ``WRITE_TIME_SHARE`` of the time, and when the block ends by an error or an interruption.
    Without a path nothing is written.
    """

    def __init__(
        self, path: Optional[Path], settings: Sequence[Setting], baseline: Setting
    ) -> None:
        self.path, self.settings, self.baseline = path, settings, baseline
        self.next_write = time.monotonic() + SECONDS_BETWEEN_WRITES

    def write_when_due(self) -> None:
        start = time.monotonic()
        if start >= self.next_write:
            self.write()
            took = time.monotonic() - start
            pause = max(SECONDS_BETWEEN_WRITES, took / WRITE_TIME_SHARE)
            self.next_write = start + took + pause

    def write(self) -> bool:
        """Write the lines; return whether that worked. The sweep continues if it does not."""
        if self.path is None or not all(setting.seconds for setting in self.settings):
            return False
        try:
            write_csv([setting.row(self.baseline) for setting in self.settings], self.path)
        except (OSError, RuntimeError, ValueError) as error:  # the disk, Java, a scorer
            logger.warning("could not write the lines so far to %s: %s", self.path, error)
            return False
        return True

    def __enter__(self) -> "PartialCsv":
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if error is not None and self.write():
            print(f"\nthe sweep did not finish: its lines so far are in {self.path}",
                  file=sys.stderr)  # fmt: skip


def sweep(
    grid: Grid | Callable[[Any], Grid],
    arguments: list[str],
    where: str = "the grid",
    run: str = "sweep",
    partial: Optional[Path] = None,
    time_only: bool = False,
    reference: Optional[str] = None,
    state: Optional[Path] = None,
) -> list[dict[str, Any]]:
    """Generate the subset with every setting.

    Args:
        grid: the settings, or a function that makes them from the loaded model.
        arguments: those of fairseq-generate.
        where: the grid's name in errors.
        run: curve of the settings without a ``run``.
        partial: file for the lines so far.
        time_only: do not score.
        reference: checkpoint whose full depth FLOPs and times are compared with.
        state: file of the finished batches, to resume from.
    Returns:
        The CSV's lines, in the grid's order, the reference last.
    Raises:
        UsageError: an invalid setting, or one that does not fit the model; a scorer without named
            values; rows without references; the state of another sweep. Raised before anything
            is generated, and, for settings given as a list, all but the last two before weights
            and data are read.
    """
    parser = options.get_generation_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))
    utils.import_user_module(cfg.common)
    path, task_class = _one_checkpoint(cfg), TASK_REGISTRY[cfg.task._name]
    if not issubclass(task_class, OFATask):
        raise UsageError(f"--task {cfg.task._name} has no exits: give one of this package's tasks")
    reject_options(cfg.generation, {**UNSUPPORTED, "score_reference": "a sweep generates"})

    def checked(given: Grid, model_arguments: Any) -> list[ExitSetting]:
        settings = exit_settings(given, cfg.task, task_class.exit_defaults, where, run)
        for setting in settings if model_arguments is not None else ():
            setting.check_arguments(model_arguments)
        return settings

    # 1. What can be checked without weights: the settings, the scorer.
    with usage_errors():
        saved_model = saved_arguments(path, cfg.common_eval.model_overrides)
        overrides = parse_overrides(cfg.common_eval.model_overrides)
        if reference is not None and not Path(reference).is_file():
            raise UsageError(f"--reference {reference}: no such checkpoint")
    settings = [] if callable(grid) else checked(grid, saved_model)
    scorer = None if time_only else _scorer_factory(cfg)

    # 2. Models and data, as fairseq-generate loads them.
    task = tasks.setup_task(cfg.task)
    with usage_errors():
        for one in settings:
            reject_foreign_config(task.cfg, task.prefix, one.given.get("exit_config"))
    loaded = [load(path, overrides, task, cfg)]
    model = loaded[0].model
    if callable(grid):
        settings = checked(grid(model), model.cfg)
    on_model = [Setting(s, loaded[0], scorer and scorer()) for s in settings]
    baseline, subset = on_model[0], cfg.dataset.gen_subset
    if reference is not None:
        loaded.append(load(reference, {}, task, cfg))
        full_depth = ExitSetting("--reference", "reference", {}, Namespace(exit_kv=None), None)
        baseline = Setting(full_depth, loaded[1], scorer and scorer())
        on_model.append(baseline)
    for each in loaded:  # rejects data options that differ from those in training
        task.load_dataset(subset, task_cfg=each.saved.task)
    if not time_only:
        check_has_references(task.dataset(subset))
    configs = (one.given.get("exit_config") for one in settings)
    warn_of_settings(configs, cfg.generation, task.dataset(subset).rows.examples.file.path)
    samples = batches(task, cfg, [one.model for one in loaded])
    record = _record(cfg, task, on_model, loaded, reference) if state else {}
    finished = FinishedBatches(state, record)
    for batch in finished.batches:
        for setting, measured in zip(on_model, batch, strict=True):
            setting.add_finished(measured)
    if finished.batches:
        print(f"resumes after {len(finished.batches)} batches of {state}", file=sys.stderr)

    # 3. Every setting generates every batch; the order rotates.
    with PartialCsv(partial, on_model, baseline) as partial_csv:
        shown = progress_bar.progress_bar(samples, default_log_format="tqdm")
        for number, sample in enumerate(shown):
            sample = utils.move_to_cuda(sample) if is_cuda(cfg) else sample
            if not sample or number <= finished.last:
                continue
            turn = number % len(on_model)
            for setting in on_model[turn:] + on_model[:turn]:
                if number - finished.last <= WARM_UP_BATCHES:
                    setting.warm_up(sample)
                setting.add_batch(sample)
            finished.add(number, [setting.batch() for setting in on_model])
            partial_csv.write_when_due()
        if not baseline.seconds:
            raise UsageError(f"no row of {subset} could be used: nothing was generated")
        return [setting.row(baseline) for setting in on_model]


def _record(
    cfg: Any, task: Any, settings: Sequence[Setting], loaded: Sequence[Any], reference: Any
) -> dict[str, Any]:
    """Return what makes a sweep, so that only the same one resumes."""
    models, dataset = [one.model for one in loaded], cfg.dataset
    return {
        **run_record(task, cfg.generation, models, task.dataset(dataset.gen_subset)),
        "settings": [
            [one.setting.run, {k: v for k, v in vars(one.setting.options).items() if v is not None}]
            for one in settings
        ],
        "--reference": reference and str(file_record(reference)),
        "--scoring": None if settings[0].scorer is None else str(cfg.scoring),
        "batches": [dataset.batch_size, dataset.max_tokens, dataset.required_batch_size_multiple],
        "device": "cuda" if is_cuda(cfg) else "cpu",
    }


def _one_checkpoint(cfg: Any) -> str:
    if not cfg.common_eval.path:
        raise UsageError("--path is missing: name the checkpoint to sweep over")
    paths = utils.split_paths(cfg.common_eval.path)
    if len(paths) > 1:
        raise UsageError(f"a sweep takes one checkpoint, and --path names {len(paths)}")
    return paths[0]


def _scorer_factory(cfg: Any) -> Callable[[], Any]:
    """Return a function that makes scorers; make one now, so that an unusable one is rejected."""
    name = getattr(cfg.scoring, "_name", cfg.scoring)
    if not hasattr(SCORER_REGISTRY[name], "values"):
        known = sorted(n for n, scorer in SCORER_REGISTRY.items() if hasattr(scorer, "values"))
        raise UsageError(
            f"--scoring {name} has no named values for the CSV: choose one of "
            f"{', '.join(known)}, or --time-only"
        )

    def make() -> Any:
        return scoring.build_scorer(cfg.scoring, None)

    with usage_errors():
        make()
    return make


def check_has_references(dataset: RowDataset) -> None:
    """Raise UsageError if the first usable row has no reference.

    Test splits whose answers are not published have none in any row.
    """
    first = next((row for row in map(dataset.__getitem__, range(len(dataset))) if row), None)
    if first is not None and not any(map(str.strip, first.references)):
        file = dataset.rows.examples.file.path
        raise UsageError(
            f"{file}, line {first.index + 1}: {first.uniq_id} has no answer to score against. "
            "Choose a split with answers (--gen-subset valid), or measure layers and times only: "
            "--time-only"
        )


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the lines atomically; fractions and scores with six digits."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_bytes(path, text.getvalue().encode())


@prints_errors("sweep")
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(
        "sweep",
        __doc__,
        usage="%(prog)s [--run RUN] [--time-only] [--reference CHECKPOINT] GRID.json OUT.csv DATA "
        "--path CHECKPOINT [options of fairseq-generate]",
        allow_abbrev=False,
    )
    parser.add_argument("grid", type=Path, metavar="GRID.json", help="the settings")
    parser.add_argument("out", type=Path, metavar="OUT.csv", help="file to write")
    parser.add_argument("--run", default="sweep", help="name of the curve (default: %(default)s)")
    parser.add_argument(
        "--reference",
        metavar="CHECKPOINT",
        help="another model, whose full depth the FLOPs and times are compared with",
    )
    parser.add_argument(
        "--time-only",
        action="store_true",
        help="measure layers, FLOPs and times but no quality, for splits without published answers",
    )
    args, arguments = parser.parse_known_args(argv)
    # fairseq's parser looks for --user-dir there; the name starts its errors.
    sys.argv = [parser.prog, *arguments]
    grid = read_grid(args.grid)
    partial = args.out.with_name(f"{args.out.stem}.partial{args.out.suffix}")
    state = args.out.with_name(f"{args.out.stem}.partial.jsonl")
    with usage_errors():
        if args.out.is_dir():
            raise UsageError(f"{args.out} is a folder: name a file")
        check_outputs(args, "out", inputs=arguments)
        with write_errors(args.out.parent):
            args.out.parent.mkdir(parents=True, exist_ok=True)
    with locked(state.with_suffix(".lock")) as is_alone:
        if not is_alone:
            raise UsageError(f"{args.out}: another sweep writes it. Wait, or name another file")
        try:
            rows = sweep(
                *(grid, arguments, str(args.grid), args.run),
                *(partial, args.time_only, args.reference, state),
            )
        except KeyboardInterrupt:
            print("interrupted: the same command resumes", file=sys.stderr)
            return 130  # as shells number it
        write_csv(rows, args.out)
        for path in (partial, state):
            path.unlink(missing_ok=True)
    for row in rows:
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
    return 0
