"""Image-text similarity: the cosine of what a ranker makes of an image and of a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from ofa_exit.prepare.capfilt.checkpoint import load_dual_encoder

DUAL_ENCODER_FILE = "checkpoint_best.pt"


class Ranker(Protocol):
    """Embeds images and texts in one space; the similarity of a pair is the dot product."""

    def embed_images(self, images: Sequence[Image]) -> Tensor:
        """N pictures -> Float [N, D], rows of length 1."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """N texts -> Float [N, D], rows of length 1."""
        ...


class ClipRanker:
    """CLIP by Hugging Face's transformers; the paper ranks with openai/clip-vit-large-patch14.

    source: a folder of ``save_pretrained`` (model, tokenizer, image processor), or a name on
    the hub.
    Texts longer than the model's positions are cut. Raises ImportError without transformers,
    ValueError where ``source`` holds no CLIP.
    """

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        try:
            from transformers import AutoModel, AutoProcessor
        except ImportError as error:
            raise ImportError(
                "ranking with CLIP needs transformers, which is not installed: pip install "
                "'ofa-exit[clip]', or train a dual encoder by ofa-exit capfilt train"
            ) from error
        try:
            self.processor = AutoProcessor.from_pretrained(source)
            model = AutoModel.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(f"{source}: no CLIP could be loaded ({error})") from error
        if not hasattr(model, "get_image_features"):
            raise ValueError(f"{source} is a {type(model).__name__}, no CLIP")
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image]) -> Tensor:
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device)
        return unit_rows(self.model.get_image_features(**inputs))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        inputs = self.processor(
            text=list(texts), return_tensors="pt", padding=True, truncation=True
        ).to(self.device)
        return unit_rows(self.model.get_text_features(**inputs))


def unit_rows(features: Any) -> Tensor:
    """Features [N, D], from transformers 5 on inside an output object, with rows of length 1."""
    features = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(features.float(), dim=-1)


def load_ranker(
    source: str, device: str | torch.device = "cpu", bpe_dir: str | None = None
) -> Ranker:
    """The dual encoder in ``source``, a file or folder of ``capfilt train``, or else CLIP.

    bpe_dir: where the dual encoder's vocabulary lies now; default: where it lay in training.
    """
    path = Path(source)
    if path.is_dir() and (path / DUAL_ENCODER_FILE).is_file():
        path = path / DUAL_ENCODER_FILE
    if path.is_file():
        return load_dual_encoder(path, device, bpe_dir)
    if bpe_dir is not None:
        raise ValueError(f"--bpe-dir is for a dual encoder, and {source} is none")
    return ClipRanker(source, device)


def similarities(
    ranker: Ranker, images: Sequence[Image], captions: Sequence[Sequence[str]]
) -> list[list[float]]:
    """The cosine of each image with each of its own captions; one pass for all of a batch.

    Raises FloatingPointError where the ranker's numbers are none.
    """
    seen = ranker.embed_images(images)
    counts = torch.tensor([len(of) for of in captions], device=seen.device)
    read = ranker.embed_texts([caption for of in captions for caption in of])
    scores = (seen.repeat_interleave(counts, dim=0) * read).sum(dim=-1)
    if not scores.isfinite().all():
        raise FloatingPointError("the ranker's similarities are not numbers: is its file sound?")
    return [part.tolist() for part in scores.split(counts.tolist())]
