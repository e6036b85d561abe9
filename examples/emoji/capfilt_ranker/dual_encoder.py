"""A small dual encoder: image tower, text tower, one space, and the loss that joins them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.models.archs import RESNET_STAGES
from ofa_exit.models.stem import ResNetStem

# As in CLIP: log of the scale (1 / temperature) at the start, and its upper limit.
START_LOG_SCALE, MAX_LOG_SCALE = math.log(1 / 0.07), math.log(100)


@dataclass(frozen=True)
class DualEncoderConfig:
    """Sizes; ``vocabulary``: rows of the embedding, ``longest``: tokens read of a text."""

    vocabulary: int
    pad: int
    resnet_type: str = "resnet_nano"
    resnet_width: int = 24
    text_dim: int = 128
    text_layers: int = 2
    text_heads: int = 4
    dim: int = 128
    longest: int = 64
    dropout: float = 0.1
    image_size: int = 64
    mean_std: str = "half"


class DualEncoder(nn.Module):
    """ResNet stem and mean pooling for images; embedding, transformer and mean pooling for texts.

    Both end in a linear projection to ``dim`` and are scaled to length 1, as in CLIP (Radford et
    al. 2021, Figure 3). The stem is OFA's, so the weights of an OFA checkpoint fit.
    """

    def __init__(self, cfg: DualEncoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.stem = ResNetStem(RESNET_STAGES[cfg.resnet_type], cfg.resnet_width)
        self.image_projection = nn.Linear(self.stem.out_channels, cfg.dim, bias=False)
        self.embed_tokens = nn.Embedding(cfg.vocabulary, cfg.text_dim, cfg.pad)
        self.embed_positions = nn.Embedding(cfg.longest, cfg.text_dim)
        layer = nn.TransformerEncoderLayer(
            cfg.text_dim, cfg.text_heads, 4 * cfg.text_dim, cfg.dropout, "gelu",
            batch_first=True, norm_first=True,
        )  # fmt: skip
        self.text_layers = nn.TransformerEncoder(
            layer, cfg.text_layers, nn.LayerNorm(cfg.text_dim), enable_nested_tensor=False
        )
        self.text_projection = nn.Linear(cfg.text_dim, cfg.dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(START_LOG_SCALE))
        nn.init.normal_(self.embed_tokens.weight, std=cfg.text_dim**-0.5)
        nn.init.zeros_(self.embed_tokens.weight[cfg.pad])
        nn.init.normal_(self.embed_positions.weight, std=0.02)

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed Float [B, 3, H, W] as [B, dim], rows of length 1."""
        pooled = self.stem(images).mean(dim=(2, 3))
        return F.normalize(self.image_projection(pooled), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Embed Long [B, T], padded on the right, as [B, dim], rows of length 1."""
        tokens = tokens[:, : self.cfg.longest]
        padding = tokens.eq(self.cfg.pad)
        positions = torch.arange(tokens.size(1), device=tokens.device)
        x = self.embed_tokens(tokens) + self.embed_positions(positions)  # [B, T, text_dim]
        x = self.text_layers(x, src_key_padding_mask=padding)
        words = (~padding).unsqueeze(-1).to(x)
        pooled = (x * words).sum(dim=1) / words.sum(dim=1).clamp(min=1)
        return F.normalize(self.text_projection(pooled), dim=-1)

    @property
    def scale(self) -> Tensor:
        """The factor of the similarities, 1 / temperature."""
        return self.log_scale.clamp(max=MAX_LOG_SCALE).exp()


def info_nce(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss, a mean over the batch (CLIP, Figure 3).

        −(1 / 2B) Σ_i Σ_j P_ij (log softmax_j(s·u_i·v_j) + log softmax_j(s·v_i·u_j))

    P spreads each row's weight evenly over the fitting texts, as ALBEF does for captions of one
    image (Li et al. 2021). With the diagonal alone this is CLIP's loss.

    Args:
        images, texts: u and v, Float [B, D], rows of length 1.
        scale: s.
        same: Bool [B, B], True where text j fits image i.
    """
    logits = scale * images @ texts.t()
    wanted = same.to(logits)
    of_images = (wanted / wanted.sum(dim=1, keepdim=True) * logits.log_softmax(dim=1)).sum(dim=1)
    wanted, logits = wanted.t(), logits.t()
    of_texts = (wanted / wanted.sum(dim=1, keepdim=True) * logits.log_softmax(dim=1)).sum(dim=1)
    return -(of_images + of_texts).mean() / 2


def start_from_ofa(model: DualEncoder, state: dict[str, Tensor]) -> None:
    """Copy stem and text embedding from an OFA model's state dict.

    The embedding there may have more rows.

    Raises:
        ValueError: names the weights that do not fit.
    """
    prefix, words = "encoder.embed_images.", "encoder.embed_tokens.weight"
    stem = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    own = model.stem.state_dict()
    for name in own:
        if name.endswith("num_batches_tracked"):
            stem.setdefault(name, own[name])
    wrong = [k for k in own if k not in stem or stem[k].shape != own[k].shape]
    weight = model.embed_tokens.weight
    rows = state.get(words)
    if rows is None or rows.size(0) < weight.size(0) or rows.size(1) != weight.size(1):
        found = "none" if rows is None else tuple(rows.shape)
        wrong.append(f"{words} (checkpoint {found}, wanted {tuple(weight.shape)})")
    if wrong or len(stem) != len(own):
        raise ValueError(
            "stem and words of the checkpoint do not fit: "
            f"{', '.join(wrong[:8]) or 'the stem has more blocks'}. "
            "Is it an OFA checkpoint, and --bpe-dir its vocabulary?"
        )
    model.stem.load_state_dict(stem)
    with torch.no_grad():
        weight.copy_(rows[: weight.size(0)])  # type: ignore[index]
