"""The dual encoder as a file, with its vocabulary, and as a ranker."""

import os
import pickle
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from fairseq.data.encoders.gpt2_bpe_utils import get_encoder
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ofa_exit.data.files import atomic_write, sha256_of
from ofa_exit.data.images import image_transform
from ofa_exit.data.text import TextEncoder, dictionary_path, load_codec, strip_punctuation
from ofa_exit.plugin.vocabulary import OFADictionary

from .dual_encoder import DualEncoder, DualEncoderConfig

KIND = "ofa_exit dual encoder 1"
BEST = "checkpoint_best.pt"


def load_text_encoder(bpe_dir: str | os.PathLike[str]) -> TextEncoder:
    """Return OFA's codec with the words of its vocabulary, which precede its image codes."""
    dictionary = OFADictionary.of_folder(bpe_dir, code_dict_size=0, num_bins=0)
    return TextEncoder(load_codec(bpe_dir, get_encoder), dictionary)


def text_tokens(encoder: TextEncoder, text: str) -> Tensor:
    """Encode a caption as the captioning task does: Long [T], eos at the end."""
    tokens = encoder.encode(" " + strip_punctuation(text))
    return torch.cat([tokens, tokens.new_tensor([encoder.vocabulary.eos()])])


def save(path: Path, model: DualEncoder, bpe_dir: str | os.PathLike[str], **more: Any) -> None:
    """Write the checkpoint atomically."""
    content = {
        "kind": KIND,
        "config": asdict(model.cfg),
        "model": model.state_dict(),
        "bpe_dir": os.fspath(bpe_dir),
        "dictionary": sha256_of(dictionary_path(bpe_dir)),
        **more,
    }
    with atomic_write(path) as stream:
        torch.save(content, stream)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what ``save`` wrote; raise ValueError for any other file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a checkpoint of a dual encoder ({error})") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError(
            f"{path} is not a checkpoint of a dual encoder: train one by "
            "python -m examples.emoji.capfilt_ranker train"
        )
    return content


class DualEncoderRanker:
    """A dual encoder, in eval mode, as a Ranker."""

    def __init__(
        self, model: DualEncoder, text_encoder: TextEncoder, device: str | torch.device
    ) -> None:
        self.model, self.text_encoder, self.device = model, text_encoder, torch.device(device)
        self.transform = image_transform(model.cfg.image_size, model.cfg.mean_std)

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image]) -> Tensor:
        pixels = torch.stack([self.transform(image) for image in images])
        return self.model.embed_images(pixels.to(self.device))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        rows = [text_tokens(self.text_encoder, text) for text in texts]
        tokens = pad_sequence(rows, batch_first=True, padding_value=self.model.cfg.pad)
        return self.model.embed_texts(tokens.to(self.device))


def load_ranker(
    checkpoint: str | os.PathLike[str] | None,
    device: str | torch.device = "cpu",
    bpe_dir: str | None = None,
) -> DualEncoderRanker:
    """Return the ranker in a file or folder of ``train``.

    Args:
        bpe_dir: folder of its vocabulary; default: the one of training.
    Raises:
        ValueError: the folder has no vocabulary, or another one.
    """
    if checkpoint is None:
        raise ValueError("the dual encoder's checkpoint is missing: give --ranker-checkpoint")
    path = Path(checkpoint)
    path = path / BEST if path.is_dir() else path
    content = load(path)
    folder = bpe_dir or content["bpe_dir"]
    try:
        dictionary = sha256_of(dictionary_path(folder))
    except FileNotFoundError as error:
        raise ValueError(f"{error} (the vocabulary that {path} was trained with)") from error
    if dictionary != content["dictionary"]:
        raise ValueError(
            f"{folder}/dict.txt is not the vocabulary that {path} was trained with: give its "
            "folder by --bpe-dir"
        )
    model = DualEncoder(DualEncoderConfig(**content["config"]))
    model.load_state_dict(content["model"])
    return DualEncoderRanker(model.to(device).eval(), load_text_encoder(folder), device)
