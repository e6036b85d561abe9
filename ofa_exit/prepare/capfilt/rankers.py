"""Image-text similarity: the cosine of a ranker's embeddings of an image and of a text."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor


class Ranker(Protocol):
    """Embeds images and texts in one space; the similarity of a pair is the dot product."""

    def embed_images(self, images: Sequence[Image]) -> Tensor:
        """Return Float [N, D], rows of length 1, of N images."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return Float [N, D], rows of length 1, of N texts."""
        ...


class ClipRanker:
    """CLIP by Hugging Face's transformers; the paper ranks with openai/clip-vit-large-patch14.

    Texts longer than the model's positions are cut.

    Args:
        source: a folder of ``save_pretrained`` (model, tokenizer, image processor), or a name on
            the hub.
    Raises:
        ImportError: transformers is missing.
        ValueError: ``source`` holds no CLIP.
    """

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        try:
            from transformers import AutoModel, AutoProcessor
        except ImportError as error:
            raise ImportError(
                "ranking with CLIP needs transformers, which is not installed: pip install "
                "'ofa-exit[clip]', or give a ranker of your own: --ranker FILE.py"
            ) from error
        try:
            self.processor = AutoProcessor.from_pretrained(source)
            model = AutoModel.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(f"{source}: no CLIP could be loaded ({error})") from error
        if not hasattr(model, "get_image_features"):
            raise ValueError(f"{source} is a {type(model).__name__}, not a CLIP")
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
    """Scale features [N, D] to rows of length 1; transformers 5 wraps them in an output object."""
    features = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(features.float(), dim=-1)


def load_ranker(
    source: str, device: str | torch.device = "cpu", checkpoint: str | None = None, **options: Any
) -> Ranker:
    """Return the ranker of a Python file or package, or else a CLIP.

    Args:
        source: a Python file, or a folder with ``__init__.py``, that defines
            ``load_ranker(checkpoint, device, **options) -> Ranker``; or a CLIP (see ClipRanker).
        checkpoint: for the Python file.
        options: further arguments for it; those that are None are left out.
    Raises:
        ValueError: the file defines no ``load_ranker``; a CLIP is given a checkpoint or options.
    """
    path = Path(source)
    path = path / "__init__.py" if (path / "__init__.py").is_file() else path
    given = {name: value for name, value in options.items() if value is not None}
    if path.suffix != ".py":
        unused = [*(["checkpoint"] if checkpoint else []), *given]
        if unused:
            raise ValueError(f"{', '.join(unused)} given, but {source} is not a Python file")
        return ClipRanker(source, device)
    module = _import_file(path)
    if not hasattr(module, "load_ranker"):
        raise ValueError(f"{path} does not define load_ranker(checkpoint, device)")
    return module.load_ranker(checkpoint, device, **given)


def _import_file(path: Path) -> ModuleType:
    """Import a Python file, or the package that it is the ``__init__.py`` of."""
    is_package = path.name == "__init__.py"
    name = path.parent.name if is_package else path.stem
    folders = [str(path.parent)] if is_package else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for the package's imports of its own modules
    spec.loader.exec_module(module)
    return module


def similarities(
    ranker: Ranker, images: Sequence[Image], captions: Sequence[Sequence[str]]
) -> list[list[float]]:
    """Return the cosine of each image with each of its own captions.

    Raises:
        FloatingPointError: a similarity is not finite.
    """
    image_rows = ranker.embed_images(images)  # [N, D]
    counts = torch.tensor([len(texts) for texts in captions], device=image_rows.device)
    text_rows = ranker.embed_texts([text for texts in captions for text in texts])  # [M, D]
    scores = (image_rows.repeat_interleave(counts, dim=0) * text_rows).sum(dim=-1)  # [M]
    if not scores.isfinite().all():
        raise FloatingPointError("the ranker's similarities are not finite: is its file intact?")
    return [part.tolist() for part in scores.split(counts.tolist())]
