"""Forms in which people share a state dict."""

from __future__ import annotations

import re
from argparse import Namespace

import torch


def hugging_face_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As Hugging Face's conversion of OFA renames them; buffers of versions are left out there."""
    renamed = {}
    for name, value in weights.items():
        name = name.replace("self_attn_ln", "self_attn_mid_layer_norm")
        name = name.replace("ffn_layernorm", "ffn_layer_norm")
        name = name.replace("cross_attn_ln", "cross_attn_mid_layer_norm")
        name = name.replace("encoder_attn", "cross_attn")
        name = re.sub(r"(?<!_)attn_ln", "self_attn_mid_layer_norm", name)
        renamed[name] = value
    return {name: value for name, value in renamed.items() if "version" not in name}


FORMS = {
    "bare": lambda w: w,
    "model alone": lambda w: {"model": w},
    "cfg and args None": lambda w: {"model": w, "cfg": None, "args": None},
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "data parallel": lambda w: {"model": {f"module.{name}": v for name, v in w.items()}},
    "Hugging Face": hugging_face_names,
}


def official(checkpoint, path, form, task, **options):
    """Store a checkpoint as official OFA does, under ``args`` or ``cfg``."""
    state = torch.load(checkpoint)
    own = dict(vars(state["cfg"]["model"]))
    model = {k: v for k, v in own.items() if k.startswith(("encoder", "decoder", "resnet"))}
    model.update(arch="ofa_nano", _name="ofa_nano", split_modalities=True)
    options = {"code_dict_size": 0, "num_bins": 0, "patch_image_size": 32, **options}
    if form == "args":
        state.update(args=Namespace(**model, task=task, **options), cfg=None)
    else:
        state["cfg"].update(model=Namespace(**model), task={"_name": task, **options})
    torch.save(state, path)
    return path
