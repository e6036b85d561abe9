"""Training of the dual encoder on a caption TSV; a killed run resumes after its last epoch."""

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ofa_exit.data.caption import COLUMNS, CaptionExamples
from ofa_exit.data.dataset import OFADataset
from ofa_exit.data.formats import CAPTION_COLS
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.text import TextEncoder
from ofa_exit.data.tsv import TsvFile
from ofa_exit.models.checkpoint_file import read_checkpoint
from ofa_exit.plugin.saved_arguments import saved_arguments

from . import checkpoint
from .dual_encoder import DualEncoder, DualEncoderConfig, info_nce, start_from_ofa
from .recall import evaluate

LAST = "checkpoint_last.pt"


@dataclass(frozen=True)
class Training:
    """Options of a run. A run resumes only with the same options."""

    train: str
    valid: str
    bpe_dir: str
    init_from: str | None = None
    selected_cols: str = CAPTION_COLS
    epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip_norm: float = 1.0
    image_size: int = 64
    mean_std: str = "half"
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "image_size", "batch_size"):
            least = 2 if name == "batch_size" else 1  # a single pair has no contrast
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: give at least {least}")
        for name in ("lr", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)}: give a number above 0")
        if not 0 <= self.weight_decay < math.inf or not 0 <= self.warmup < 1:
            raise ValueError("weight_decay must be 0 or more, warmup a share below 1")


def train(
    run: Training, out: Path, device: str | torch.device = "cpu", workers: int = 0
) -> dict[str, Any]:
    """Train into the folder ``out``.

    ``checkpoint_last.pt`` is written after each epoch; a killed run resumes from it.
    ``checkpoint_best.pt`` has the best mean recall@1 on the validation file.

    Returns:
        The last epoch's numbers; ``log`` in the file keeps those of all epochs.
    Raises:
        ValueError: ``out`` holds another run.
        FloatingPointError: the loss is not finite.
    """
    encoder = checkpoint.load_text_encoder(run.bpe_dir)
    load_image = ImageLoader(run.image_size, run.mean_std)
    rows = CaptionExamples(
        run.train, encoder, load_image, train=True, selected_cols=run.selected_cols
    )
    data = OFADataset(rows, encoder.vocabulary.pad(), run.image_size)
    valid = TsvFile(run.valid, run.selected_cols, COLUMNS)
    batches_per_epoch = len(data) // run.batch_size
    if not batches_per_epoch:
        raise ValueError(
            f"{run.train} has {len(data)} rows, fewer than a batch of {run.batch_size}"
        )
    torch.manual_seed(run.seed)
    model = build(run, len(encoder.vocabulary), encoder.vocabulary.pad()).to(device)
    optimizer = torch.optim.AdamW(_groups(model, run.weight_decay), run.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, _factor(run.epochs * batches_per_epoch, run.warmup)
    )
    log = _resume(run, out, model, optimizer, schedule)
    for epoch in range(len(log) + 1, run.epochs + 1):
        # Seeded per epoch, so that a resumed run draws what an uninterrupted one would.
        torch.manual_seed(run.seed * 100_003 + epoch)
        loader = DataLoader(
            data, run.batch_size, shuffle=True, drop_last=True, num_workers=workers,
            collate_fn=data.collater,
        )  # fmt: skip
        loss = _epoch(model, loader, optimizer, schedule, run, epoch, device)
        log.append({"epoch": epoch, "loss": loss, **_validate(model, run, encoder, valid, device)})
        print("  ".join(f"{k} {v:.4g}" for k, v in log[-1].items()), flush=True)
        if log[-1]["recall"] >= max(entry["recall"] for entry in log):
            checkpoint.save(out / checkpoint.BEST, model, run.bpe_dir, log=log)
        checkpoint.save(
            out / LAST, model, run.bpe_dir, log=log, run=asdict(run),
            optimizer=optimizer.state_dict(), schedule=schedule.state_dict(),
        )  # fmt: skip
    return log[-1]


def build(run: Training, vocabulary: int, pad: int) -> DualEncoder:
    """Return a new model, with stem and words of the OFA checkpoint ``run.init_from`` if given.

    Raises:
        ValueError: that file is not a checkpoint of OFA, or has another vocabulary.
    """
    sizes = {"image_size": run.image_size, "mean_std": run.mean_std}
    if run.init_from is None:
        return DualEncoder(DualEncoderConfig(vocabulary, pad, **sizes))  # type: ignore[arg-type]
    arguments = saved_arguments(run.init_from, "{}")
    if arguments is None:
        raise ValueError(f"{run.init_from} is not a checkpoint of OFA")
    state = read_checkpoint(run.init_from)["model"]
    model = DualEncoder(
        DualEncoderConfig(
            vocabulary,
            pad,
            resnet_type=arguments.resnet_type,
            resnet_width=arguments.resnet_width,
            text_dim=arguments.encoder_embed_dim,
            text_heads=arguments.encoder_attention_heads,
            **sizes,  # type: ignore[arg-type]
        )
    )
    start_from_ofa(model, state)
    return model


def same_pairs(ids: list[int], captions: list[str], images: Tensor) -> Tensor:
    """Return Bool [B, B]: True for the pair itself, equal captions and equal images.

    A caption of one of two equal images also fits the other.

    Args:
        ids: numbers of the rows.
        images: Float [B, 3, H, W].
    """
    words: dict[str, int] = {}
    text = torch.tensor([words.setdefault(caption, row) for row, caption in zip(ids, captions)])
    same = text.unsqueeze(0) == text.unsqueeze(1)
    flat = images.flatten(1)
    # Nearly all different images have different sums; only equal sums are compared by pixel.
    sums = flat.sum(dim=1)
    rows, columns = (sums.unsqueeze(0) == sums.unsqueeze(1)).triu(1).nonzero(as_tuple=True)
    for i, j in zip(rows.tolist(), columns.tolist()):
        if torch.equal(flat[i], flat[j]):
            same[i, j] = same[j, i] = True
    return same


def _epoch(
    model: DualEncoder,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    run: Training,
    epoch: int,
    device: str | torch.device,
) -> float:
    """Train one epoch; return its mean loss."""
    model.train()
    total = torch.zeros((), device=device)
    with tqdm(loader, desc=f"epoch {epoch}/{run.epochs}", unit="batch") as bar:
        for batch in bar:
            _check_images(batch)
            images = batch["net_input"]["patch_images"]
            captions = [references[0] for references in batch["references"]]
            same = same_pairs(batch["id"].tolist(), captions, images).to(device)
            loss = info_nce(
                model.embed_images(images.to(device)),
                model.embed_texts(batch["target"].to(device)),
                model.scale,
                same,
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), run.clip_norm)
            optimizer.step()
            schedule.step()
            total += loss.detach()
    mean = float(total) / len(loader)
    if not math.isfinite(mean):
        raise FloatingPointError(f"the loss of epoch {epoch} is {mean}: lower the learning rate")
    return mean


def _check_images(batch: dict[str, Any]) -> None:
    masks = batch["net_input"]["patch_masks"]
    if not masks.all():
        name = batch["uniq_ids"][masks.tolist().index(False)]
        raise ValueError(f"the row {name} has no image: remove it from the training file")


def _validate(
    model: DualEncoder, run: Training, encoder: TextEncoder, valid: TsvFile, device: Any
) -> dict[str, float]:
    model.eval()
    ranker = checkpoint.DualEncoderRanker(model, encoder, device)
    to_text, to_image, _ = evaluate(ranker, valid, run.batch_size, show=False)
    return {"image_to_text": to_text, "text_to_image": to_image, "recall": (to_text + to_image) / 2}


def _groups(model: DualEncoder, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: matrices decay; biases, norms and the temperature do not (CLIP)."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _factor(steps: int, warmup: float) -> Callable[[int], float]:
    """Return the factor of the learning rate by step: a linear rise, then half a cosine to 0."""
    warmup_steps = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor


def _resume(
    run: Training, out: Path, model: DualEncoder, optimizer: Any, schedule: Any
) -> list[dict[str, Any]]:
    """Load the last epoch of this run from ``out``; return its log, [] if there is none."""
    path = out / LAST
    if not path.is_file():
        return []
    content = checkpoint.load(path)
    now, then = asdict(run), content["run"]
    changed = [name for name in now if now[name] != then.get(name)]
    if changed or content["config"] != asdict(model.cfg):
        raise ValueError(
            f"{path} belongs to another run ({', '.join(changed) or '--init-from'} differs): "
            "give the same options to resume it, or another folder"
        )
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    schedule.load_state_dict(content["schedule"])
    print(f"{path}: resuming after epoch {len(content['log'])}", file=sys.stderr)
    return content["log"]
