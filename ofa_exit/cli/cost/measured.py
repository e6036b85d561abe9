"""Seconds per sample on this machine, measured with a model of random weights."""

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

WIDTH, HEIGHT = 640, 480  # pixels, as an image of COCO
JPEG_QUALITY = 90


def image_field() -> str:
    """Return the image field of a row: base64 of a JPEG of smooth noise, as large as a photo's."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, HEIGHT // 4, WIDTH // 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic")
    pixels = (fine.clamp(0, 1) * 255).byte()[0].permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(stream.getvalue()).decode()


def measure(
    model: OFAModel, lengths: Lengths, answer: Answer, repeats: int, layer_weights: str = "uniform"
) -> dict[str, float]:
    """Time a sample: reading an image, training, an update by Adam, answering.

    Reading is base64, JPEG and resizing. Training is ``mue_loss`` forward and backward. Answering
    is a beam search at full depth.

    Returns:
        Name -> seconds, the median of ``repeats`` after one warm-up, on the model's device.
    """
    device = next(model.parameters()).device
    field, load = image_field(), ImageLoader(lengths.size)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-9)

    def train_step() -> None:
        training_step(model.train(), 1, lengths, layer_weights).backward()

    parts: dict[str, Callable[[], Any]] = {
        f"reading an image of {len(field) * 3 // 4 // 1000} KB": lambda: load(field),
        "training, forward and backward": train_step,
        "an update by Adam": optimizer.step,
        f"beam {answer.beam}, {answer.steps} steps": search(model, lengths, answer),
    }
    return {name: median(part, repeats, device, name) for name, part in parts.items()}


def search(model: OFAModel, lengths: Lengths, answer: Answer) -> Callable[[], Any]:
    """Return a function that runs a beam search over one image for all of its steps."""
    device = next(model.parameters()).device
    steps = answer.steps - 1  # the last step is the end's
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
    """Return the median seconds of ``run``, after one warm-up."""
    seconds = []
    for _ in tqdm(range(1 + repeats), desc=name, leave=False, disable=None):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
