"""Models and batches of fake CUDA tensors."""

from __future__ import annotations

from argparse import Namespace

import torch

from ofa_exit.models.archs import ARCHS
from ofa_exit.models.encoder_out import EncoderOut
from ofa_exit.models.ofa import OFAModel
from ofa_exit.testing import build_dictionary


def fake_batch(device: str = "cuda", sentences: int = 3) -> dict[str, torch.Tensor]:
    """Inputs as fairseq moves them to the GPU; only shapes and devices mean anything here."""
    return {
        "src_tokens": torch.full((sentences, 7), 5, device=device),
        "src_lengths": torch.full((sentences,), 7, device=device),
        "patch_images": torch.randn(sentences, 3, 32, 32, device=device),
        "patch_masks": torch.ones(sentences, dtype=torch.bool, device=device),
        "prev_output_tokens": torch.full((sentences, 5), 6, device=device),
    }


def fake_model(
    split: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str = "cuda",
    exits: str | None = None,
    head: str = "transformer",
) -> OFAModel:
    options = {**ARCHS["ofa_nano"], "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64}
    options.update(encoder_layers=2, decoder_layers=4, exit_layers=exits, exit_head=head)
    task = Namespace(target_dictionary=build_dictionary(60))
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):  # fake parameters cannot be moved there afterwards
            return OFAModel.build_model(Namespace(**options, split_modalities=split), task)
    finally:
        torch.set_default_dtype(torch.float32)


def encode(model, dtype) -> tuple[EncoderOut, dict]:
    net_input = fake_batch()
    del net_input["prev_output_tokens"]
    net_input["patch_images"] = net_input["patch_images"].to(dtype)
    with torch.no_grad():
        out = model.encoder(**net_input, step_limit=torch.full((3,), 8, device="cuda"))
    return model.encoder.reorder_encoder_out(out, torch.arange(6, device="cuda")), {}
