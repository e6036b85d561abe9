"""The steps of ``ofa-exit fit-gate``: check, generate at full depth, fit, write."""

import argparse
import math
import sys
from typing import Any

from fairseq.logging import progress_bar

from ofa_exit.cli.fit_gate.records import Records, recording
from ofa_exit.cli.generation import (
    NOT_COMPARABLE,
    Generation,
    load_checkpoint,
    names,
    task_of,
)
from ofa_exit.cli.parsing import check_outputs
from ofa_exit.data.files import write_bytes
from ofa_exit.models.checkpoint_file import read_checkpoint
from ofa_exit.objectives.logistic import area_under_curve, fit_logistic
from ofa_exit.plugin.calibrated import search_of
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.exit_config import checkpoint_fingerprint, data_fingerprint
from ofa_exit.plugin.saved_arguments import SavedCheckpoint, parse_overrides
from ofa_exit.plugin.search.options import UNSUPPORTED, reject_options
from ofa_exit.policies.gate_file import GateFile, read_gate
from ofa_exit.policies.measures import GATE_FEATURES

DEFAULT_BATCH = "16"
SMALLEST_SCALE = 1e-6


def run(args: argparse.Namespace, arguments: list[str], prog: str) -> int:
    """Fit a gate, write it and print what was found; return the exit status."""
    generation, saved = prepare(args, arguments, prog)
    records = record(generation, saved)
    dataset = generation.task.dataset(generation.subset)
    layers = [fitted_layer(records, layer, args.ridge) for layer in range(1, records.layers)]
    gate = GateFile(
        features=list(GATE_FEATURES),
        layers=layers,
        checkpoint=checkpoint_fingerprint(saved.path),
        task=generation.task.fingerprint(),
        data=data_fingerprint(dataset.rows.examples.file.path),
        fit={
            "rows": len(dataset),
            "words": len(records),
            "ridge": args.ridge,
            "search": search_of(generation.cfg.generation),
        },
    )
    with usage_errors():
        write_bytes(args.out, gate.text().encode())
    for number, layer in enumerate(layers, start=1):
        area = "-" if layer["auc"] is None else f"{layer['auc']:.3f}"
        print(
            f"layer {number}: the last layer's word in {100 * layer['agreement']:.1f} % of "
            f"{len(records)}, accuracy {layer['accuracy']:.3f}, AUC {area}"
        )
    print(args.out)
    return 0


def prepare(
    args: argparse.Namespace, arguments: list[str], prog: str
) -> tuple[Generation, SavedCheckpoint]:
    """Check all options against the checkpoint's arguments, and open the data; read no weights.

    Raises:
        UsageError: options, files or rows that do not fit.
    """
    if args.out.is_dir():
        raise UsageError(f"--out {args.out} is a folder: name a file in it")
    if args.out.exists():
        try:
            read_gate(str(args.out))
        except ValueError as error:
            raise UsageError(f"--out would overwrite a file. {error}") from error
    with usage_errors():
        check_outputs(args, "out", inputs=arguments)
        saved = SavedCheckpoint(
            args.checkpoint, read_checkpoint(args.checkpoint, weights=False), {}
        )
    for one in arguments:
        if one.startswith("--exit-"):
            option = one.partition("=")[0]
            raise UsageError(f"{option}: fit-gate runs the model at full depth. Leave it out")
    own = [] if any(names(one, "--task") for one in arguments) else ["--task", task_of(saved)]
    given = [args.data, "--batch-size", DEFAULT_BATCH, *own, *arguments]
    sys.argv = [prog, *given]  # fairseq's parser looks for --user-dir there
    generation = Generation(prog, given, [args.checkpoint])
    cfg = generation.cfg
    with usage_errors():
        saved.overrides = parse_overrides(cfg.common_eval.model_overrides)
        reject_options(cfg.generation, {**UNSUPPORTED, **NOT_COMPARABLE})
    layers = getattr(saved.model_arguments, "decoder_layers", None)
    if layers == 1:
        raise UsageError(f"{saved.path}: its decoder has one layer, so that no word can exit")
    generation.task.load_dataset(generation.subset, task_cfg=saved.task_options)
    return generation, saved


def record(generation: Generation, saved: SavedCheckpoint) -> Records:
    """Generate all rows at full depth, and return what was recorded.

    Raises:
        UsageError: no row could be used.
    """
    cfg, task = generation.cfg, generation.task
    model, _ = load_checkpoint(saved.path, saved.overrides, task, cfg)
    model.configure_exits(None)
    generator = task.make_generator([model], cfg.generation)
    batches = progress_bar.progress_bar(generation.batches(model), default_log_format="tqdm")
    with recording(model.decoder) as records:
        for sample in generation.on_device(batches, model):
            task.generate(generator, [model], sample)
    if not len(records):
        raise UsageError(f"no row of {generation.subset} could be used: nothing was generated")
    return records


def fitted_layer(records: Records, layer: int, ridge: float) -> dict[str, Any]:
    """Return the numbers of a layer, as ``GateFile`` keeps them."""
    features, labels = records.of_layer(layer)
    features = features.double()
    if not features.isfinite().all():
        raise UsageError(f"states after layer {layer} are not finite: the checkpoint is unusable")
    mean = features.mean(dim=0)
    # A feature that never varies gets weight 0 by the ridge.
    scale = features.std(dim=0, correction=0).clamp_min(SMALLEST_SCALE)
    scaled = (features - mean) / scale
    weights, bias = fit_logistic(scaled, labels, ridge)
    logits = scaled @ features.new_tensor(weights) + bias
    area = area_under_curve(logits, labels)
    return {
        "mean": mean.tolist(),
        "scale": scale.tolist(),
        "weights": weights,
        "bias": bias,
        "agreement": labels.double().mean().item(),
        "accuracy": ((logits >= 0) == labels).double().mean().item(),
        "auc": None if math.isnan(area) else area,
    }
