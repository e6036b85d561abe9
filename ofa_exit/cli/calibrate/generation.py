"""One pass over model and data: every setting's answer to every row."""

import hashlib
from typing import Any

from fairseq import utils
from fairseq.logging import progress_bar
from torch.utils.data import DataLoader

from ofa_exit.cli.calibrate.candidates import Candidates
from ofa_exit.cli.calibrate.outcomes import (
    Outcome,
    Place,
    fill_grid,
    outcomes_of,
    select_rows,
)
from ofa_exit.cli.generation import batches, is_cuda
from ofa_exit.cli.sweep_setting import Setting, load
from ofa_exit.evaluation.calibration.losses import COSTS, Sentence, SentenceFile
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.saved_arguments import SavedCheckpoint, parse_overrides

WARM_UP_BATCHES = 2  # generated once before the clock counts


def generate(
    cfg: Any,
    task: Any,
    saved: SavedCheckpoint,
    found: Candidates,
    store: SentenceFile,
) -> str:
    """Generate the rows that the file lacks with every setting, and append them batch by batch.

    For a complete file, every setting runs on every batch, in an order that rotates, so that times
    and FLOPs can be compared. Otherwise outcomes that follow from others are not generated.

    Returns:
        A line that says how much was generated.
    Raises:
        UsageError: no row could be used.
    """
    done = store.rows
    if len(done) >= len(task.dataset(cfg.dataset.gen_subset)):
        return f"{len(done)} rows are generated already: nothing was run"
    overrides = parse_overrides(cfg.common_eval.model_overrides)
    loaded = load(saved.path, overrides, task, cfg)
    settings = [Setting(one, loaded, None) for one in found.settings]
    batches(task, cfg, [loaded.model])  # plans them; the loader reads only those that are missing
    parts = ([row for row in part if int(row) not in done] for part in task.progress.batches)
    planned = [part for part in parts if part]
    dataset = task.dataset(cfg.dataset.gen_subset)
    loader = DataLoader(
        dataset,
        batch_sampler=planned,
        collate_fn=dataset.collater,
        num_workers=cfg.dataset.num_workers,
    )
    ran = rows_read = 0
    for number, sample in enumerate(
        progress_bar.progress_bar(_Sized(loader, len(planned)), default_log_format="tqdm")
    ):
        if not sample:
            continue
        sample = utils.move_to_cuda(sample) if is_cuda(cfg) else sample
        if store.is_complete or not found.shape:
            rows, count = _all_settings(settings, sample, number), len(settings) * len(sample["id"])
        else:
            rows, count = _derived(settings, found, sample)
        ran, rows_read = ran + count, rows_read + len(sample["id"])
        store.append(
            Sentence(
                int(row),
                list(references),
                [one.text for one in outcomes],
                {name: [one.costs[name] for one in outcomes] for name in COSTS},
                image_key(dataset.rows.examples.file.row(int(row))["image"]),
            )
            for row, references, outcomes in zip(sample["id"], sample["references"], rows)
        )
    if not store.sentences:
        raise UsageError("no row could be used: nothing was generated")
    total = len(settings) * rows_read
    rest = ", the others follow from them" if ran < total else ""
    return f"{rows_read} rows, {len(settings)} settings: ran {ran} of {total} generations{rest}"


def image_key(field: str) -> str:
    """Return a short name of an image: the beginning of the SHA-256 of its field."""
    return hashlib.sha256(field.encode()).hexdigest()[:16]


class _Sized:
    """A loader with the attributes that fairseq's progress bar asks for."""

    def __init__(self, loader: Any, size: int) -> None:
        self.loader, self.size, self.n = loader, size, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Any:
        for sample in self.loader:
            self.n += 1
            yield sample


def _all_settings(
    settings: list[Setting], sample: dict[str, Any], number: int
) -> list[list[Outcome]]:
    """Run every setting on the batch; return the outcomes of each row."""
    turn = number % len(settings)
    order = [*range(len(settings))][turn:] + [*range(len(settings))][:turn]
    found: dict[int, list[Outcome]] = {}
    for place in order:
        if number < WARM_UP_BATCHES:
            settings[place].warm_up(sample)
        found[place] = outcomes_of(settings[place], sample, with_paths=False)
    return [[found[place][row] for place in range(len(settings))] for row in _rows(sample)]


def _derived(
    settings: list[Setting], found: Candidates, sample: dict[str, Any]
) -> tuple[list[list[Outcome]], int]:
    """Run what does not follow from other settings.

    Returns:
        The outcomes of each row, and how many were generated.
    """
    full, *grid = settings
    at_full_depth = outcomes_of(full, sample, with_paths=True)
    is_first_full = never_exits(grid[0])
    count = len(at_full_depth)
    strides = [1]
    for size in reversed(found.shape[1:]):
        strides.insert(0, strides[0] * size)

    def number_of(place: Place) -> int:
        return sum(step * value for step, value in zip(strides, place))

    def run(place: Place, rows: list[int]) -> list[Outcome]:
        nonlocal count
        if is_first_full and not any(place):
            return [at_full_depth[row] for row in rows]
        count += len(rows)
        return outcomes_of(grid[number_of(place)], select_rows(sample, rows), with_paths=True)

    outcomes = fill_grid(found.shape, _rows(sample), run)
    places = sorted(outcomes[0], key=number_of)
    rows = _rows(sample)
    return [[at_full_depth[row], *(outcomes[row][one] for one in places)] for row in rows], count


def never_exits(setting: Setting) -> bool:
    """Return whether a setting computes what full depth does: no gate, no head, all tokens."""
    policy = setting.setting.policy
    if setting.setting.token_exits is not None or policy is None:
        return False
    parts = ("image", "text") if setting.model.cfg.split_modalities else ("joint",)
    has_gate = any(policy.gate(part) is not None for part in (*parts, "decoder"))
    return not has_gate and not setting.model.decoder.active_heads(policy)


def _rows(sample: dict[str, Any]) -> list[int]:
    return [*range(sample["nsentences"])]
