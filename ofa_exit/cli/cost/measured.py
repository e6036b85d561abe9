"""Seconds that a sample takes on this machine, by a model of random weights."""

import base64
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from fairseq.sequence_generator import SequenceGenerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ofa_exit.cli.cost.counted import Answer, Lengths, training_step
from ofa_exit.data.images import ImageLoader
from ofa_exit.models.ofa import OFAModel

WIDTH, HEIGHT = 640, 480  # of a picture of COCO
QUALITY = 90


def picture() -> str:
    """A JPEG of a photograph's size as base64, as a row holds it: smooth noise of fixed seed."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, HEIGHT // 4, WIDTH // 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic")
    pixels = (fine.clamp(0, 1) * 255).byte()[0].permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    return base64.b64encode(stream.getvalue()).decode()


def measure(
    model: OFAModel, lengths: Lengths, answer: Answer, repeats: int, layer_weights: str = "uniform"
) -> dict[str, float]:
    """Seconds, medians of ``repeats`` after one that does not count, on the model's device.

    Of one sample: reading a picture (base64, JPEG, resizing), a training step of ``mue_loss``
    forward and backward, answering at full depth by beam search. Of one update: Adam.
    """
    device = next(model.parameters()).device
    field, load = picture(), ImageLoader(lengths.size)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-9)

    def step() -> None:
        training_step(model.train(), 1, lengths, layer_weights).backward()

    parts: dict[str, Callable[[], Any]] = {
        f"reading a picture of {len(field) * 3 // 4 // 1000} KB": lambda: load(field),
        "training, forward and backward": step,
        "an update by Adam": optimizer.step,
        f"beam {answer.beam}, {answer.steps} steps": search(model, lengths, answer),
    }
    return {name: median(part, repeats, device, name) for name, part in parts.items()}


def search(model: OFAModel, lengths: Lengths, answer: Answer) -> Callable[[], Any]:
    """A beam search over one picture that takes all its steps."""
    device = next(model.parameters()).device
    steps = answer.steps - 1  # the last is the end's
    net_input: dict[str, Tensor] = {
        "src_tokens": torch.full((1, lengths.source), 5, device=device),
        "src_lengths": torch.full((1,), lengths.source, device=device),
        "patch_images": torch.zeros(1, 3, lengths.size, lengths.size, device=device),
        "patch_masks": torch.ones(1, dtype=torch.bool, device=device),
    }
    generator = SequenceGenerator(
        [model], model.decoder.dictionary, answer.beam, max_len_b=steps, min_len=steps
    )

    @torch.no_grad()
    def run() -> None:
        model.eval()
        generator.generate([model], {"net_input": net_input}, bos_token=0)

    return run


def median(run: Callable[[], Any], repeats: int, device: torch.device, name: str) -> float:
    seconds = []
    for _ in tqdm(range(1 + repeats), desc=name, leave=False, disable=None):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
