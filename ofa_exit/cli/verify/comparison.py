"""Numbers of this package's model, made from a fixture's seeds, and those of the official one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from ofa_exit.models.archs import ARCHS
from ofa_exit.models.ofa import OFAModel
from ofa_exit.regular_files import regular_file
from ofa_exit.testing import build_with_weights, random_images, random_tokens, record_states


def build(fixture: dict[str, Any], split: bool = False) -> OFAModel:
    """Build the fixture's model with the fixture's weights, in eval mode.

    Raises:
        ValueError: names or shapes of the state dict differ from the fixture's.
    """
    options = {**ARCHS[fixture["arch"]], **fixture["overrides"], **fixture["flags"]}
    model = build_with_weights(options, fixture["vocab"], split_modalities=split)
    own = {k: list(v.shape) for k, v in model.state_dict().items()}
    wanted = {k: list(v) for k, v in fixture["state_dict"].items()}
    if own != wanted:
        wrong = [k for k in own.keys() | wanted.keys() if own.get(k) != wanted.get(k)]
        raise ValueError(f"state dict differs from the fixture in {sorted(wrong)[:10]}")
    return model


def inputs(fixture: dict[str, Any], target_length: int) -> dict[str, Tensor]:
    """Return the fixture's net input: 9 source tokens; row 1 is shorter, row 2 has no image."""
    batch, vocab, size = fixture["batch"], fixture["vocab"], fixture["image_size"]
    source = random_tokens("src", (batch, 9), vocab)
    source[:, 0], source[:, 8] = 0, 2
    if batch > 1:
        source[1, 6], source[1, 7:] = 2, 1
    masks = torch.ones(batch, dtype=torch.bool)
    if batch > 2:
        masks[2] = False
    prev = random_tokens("prev", (batch, target_length), vocab)
    prev[:, 0] = 0
    return {
        "src_tokens": source,
        "src_lengths": source.ne(1).sum(dim=1),
        "patch_images": random_images("image", (batch, 3, size, size)),
        "patch_masks": masks,
        "prev_output_tokens": prev,
    }


def _as_stored(array: np.ndarray) -> np.ndarray:
    """Return what a fixture stores of an array: of large ones every n-th value."""
    if array.size < 60_000:
        return array
    return array.reshape(-1)[:: max(1, array.size // 20_000)][:20_000]


def _deviation(ours: Tensor, stored: np.ndarray, padding: Tensor | None) -> float:
    """Return the largest difference, relative to the largest stored value.

    Args:
        padding: Bool [B, T]; True where the official numbers are undefined.
    """
    mine, valid = ours.float().cpu().numpy(), np.ones(tuple(ours.shape), dtype=bool)
    if padding is not None:
        valid = np.broadcast_to(~padding.cpu().numpy()[:, :, None], mine.shape)
    mine, valid = _as_stored(mine), _as_stored(np.ascontiguousarray(valid))
    if mine.shape != stored.shape:
        return float("inf")
    difference = np.abs(mine - stored)[valid]
    return float(difference.max() / max(np.abs(stored[valid]).max(), 1e-12))


@torch.no_grad()
def compare_arrays(
    fixture: dict[str, Any],
    arrays: dict[str, np.ndarray],
    split: bool,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[str, float]]:
    """Yield name and largest relative deviation of every array, joint or split encoder."""
    prefix = "split_" if split else ""
    model = build(fixture, split).to(device, dtype)
    net_input = inputs(fixture, arrays["prev_output_tokens"].shape[1])
    for name in ("src_tokens", "prev_output_tokens", "patch_masks"):
        if not np.array_equal(net_input[name].numpy(), arrays[name]):
            raise ValueError(f"rebuilt {name} differ from the fixture's")
    net_input = {name: value.to(device) for name, value in net_input.items()}
    net_input["patch_images"] = net_input["patch_images"].to(dtype)
    with (
        record_states(model.encoder.layers) as encoder_passes,
        record_states(model.decoder.layers) as decoder_passes,
    ):
        source = {k: v for k, v in net_input.items() if k != "prev_output_tokens"}
        out = model.encoder(**source)
        logits, _ = model.decoder(net_input["prev_output_tokens"], out)
    padding = out.padding_mask
    ours: dict[str, tuple[Tensor, Tensor | None]] = {
        "encoder_out": (out.states, padding),
        "logits": (logits, None),
        "logits_argmax": (logits.argmax(-1), None),
    }
    if not split:
        batch = logits.size(0)
        ours["image_features"] = (model.encoder.embed_images(net_input["patch_images"]), None)
        ours["position_embeddings"] = (out.positions.expand(batch, -1, -1), padding)
        ours["encoder_padding_mask"] = (padding, None)
    # A split encoder passes its layers twice: image first, then text.
    for i, states in enumerate(zip(*encoder_passes)):
        ours[f"encoder_state_{i}"] = (torch.cat(states, dim=1), padding)
    for i, state in enumerate(decoder_passes[0]):
        ours[f"decoder_state_{i}"] = (state, None)
    for name, (value, mask) in ours.items():
        if prefix + name in arrays:
            stored = arrays[prefix + name]
            if name == "image_features" and stored.ndim == 3 and value.dim() == 4:
                value = value.flatten(2).transpose(1, 2)
            yield prefix + name, _deviation(value, stored.astype(np.float32), mask)


def compare_generation(fixture: dict[str, Any]) -> Iterator[tuple[str, float, bool]]:
    """Yield setting, largest deviation of scores, and whether the tokens are equal."""
    model = build(fixture)
    net_input = inputs(fixture, 1)
    del net_input["prev_output_tokens"]
    dictionary = model.decoder.dictionary
    for setting, stored in fixture["generation"].items():
        generator = SequenceGenerator([model], dictionary, **json.loads(setting))
        sample = {"net_input": net_input, "id": torch.arange(fixture["batch"])}
        hypotheses = generator.generate([model], sample, bos_token=dictionary.bos())
        worst, same = 0.0, True
        for mine, theirs in zip(hypotheses, stored):
            same &= [h["tokens"].tolist() for h in mine] == [h["tokens"] for h in theirs]
            for a, b in zip(mine, theirs):
                worst = max(worst, abs(float(a["score"]) - b["score"]))
                if len(a["positional_scores"]) == len(b["positional_scores"]):
                    per_token = torch.tensor(b["positional_scores"])
                    worst = max(worst, float((a["positional_scores"] - per_token).abs().max()))
        yield setting, worst, same


def verify(path: Path, tolerance: float) -> bool:
    """Print every deviation of a fixture; return True if all are within ``tolerance``."""
    fixture = json.loads(regular_file(path).read_text())
    with np.load(regular_file(path.with_suffix(".npz"))) as stored:
        arrays = {name: stored[name] for name in stored.files}
    fine = True
    print(f"{path}: {fixture['arch']}, vocabulary {fixture['vocab']}")
    for split in (False, True):
        for name, deviation in compare_arrays(fixture, arrays, split):
            limit = 0.0 if name.endswith(("argmax", "padding_mask")) else tolerance
            fine &= deviation <= limit
            print(f"  {name:28} {deviation:9.2e}{'' if deviation <= limit else '  TOO LARGE'}")
    for setting, deviation, same in compare_generation(fixture):
        good = same and deviation <= tolerance
        fine &= good
        words = "tokens equal" if same else "TOKENS DIFFER"
        print(f"  {setting}: {words}, scores {deviation:.2e}{'' if good else '  TOO LARGE'}")
    return fine
