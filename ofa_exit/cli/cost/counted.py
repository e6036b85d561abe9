"""Operations and memory of a training step and of an answer, counted without computing them.

A training step of ``mue_loss`` runs on tensors without values. It gives the operations (a
multiply-add is 2) and the bytes kept for the backward pass, for batches of 1 and 2. The difference
is the cost of a sample. An answer costs the FLOPs of ``evaluation.efficiency.flops`` at full depth.
"""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ofa_exit.models.archs import ARCHS
from ofa_exit.models.decoder_work import full_work
from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.criterions.mue import MuELoss
from ofa_exit.runtime.flops import PARTS, Work, add_work
from ofa_exit.testing import build_dictionary

VOCABULARY = 59_457  # OFA's: words, 8,192 image codes, 1,000 position bins
CACHE_POSITIONS = 16  # capacity of the decoder's cache at first


@dataclass(frozen=True)
class StepCost:
    """Cost of one step over a batch."""

    forward: int  # operations
    training: int  # operations, forward and backward
    kept: int  # bytes kept for the backward pass, without parameters


@dataclass(frozen=True)
class Lengths:
    """Sizes of a sample.

    Attributes:
        size: side of the image in pixels.
        source, target: tokens.
        prompt: tokens of the target that are fed but not learnt.
        captions: targets per image; the encoder runs once for all of them.
    """

    size: int
    source: int
    target: int
    prompt: int = 0
    captions: int = 1


@dataclass(frozen=True)
class Answer:
    """How a row is answered: by beam search, or by scoring candidates.

    Attributes:
        beam, steps: of the search.
        candidates: tokens of all candidates, shared prefixes once; 0 = beam search.
        words: vocabulary entries scored per token; None = the whole vocabulary.
    """

    beam: int = 5
    steps: int = 17
    candidates: int = 0
    words: int | None = None


def build(arch: str, device: str = "meta", **options: Any) -> OFAModel:
    """Build a split model with OFA's vocabulary: random weights, or none on device meta."""
    task = Namespace(target_dictionary=build_dictionary(VOCABULARY))
    arguments = {**ARCHS[arch], "split_modalities": True, **options}
    with torch.device(device):
        return OFAModel.build_model(Namespace(**arguments), task)


def training_step(model: OFAModel, rows: int, lengths: Lengths, layer_weights: str) -> Tensor:
    """Return the loss of ``mue_loss`` over ``rows`` samples, on the model's device."""
    device = next(model.parameters()).device
    words = torch.full((rows * lengths.captions, lengths.target), 5, device=device)
    target = words.clone()
    target[:, : lengths.prompt] = model.decoder.padding_idx
    net_input = {
        "src_tokens": torch.full((rows, lengths.source), 5, device=device),
        "src_lengths": torch.full((rows,), lengths.source, device=device),
        "patch_images": torch.zeros(rows, 3, lengths.size, lengths.size, device=device),
        "patch_masks": torch.ones(rows, dtype=torch.bool, device=device),
        "prev_output_tokens": words,
    }
    learnt = words.size(0) * (lengths.target - lengths.prompt)
    sample = {"net_input": net_input, "target": target, "ntokens": learnt, "nsentences": rows}
    task = Namespace(target_dictionary=model.decoder.dictionary)
    criterion = MuELoss(task, 0.1, layer_weights, 0.0, 0, False, False)
    loss, _, _ = criterion(model, sample)
    return loss


def step_cost(model: OFAModel, rows: int, lengths: Lengths, layer_weights: str) -> StepCost:
    """Count one training step over ``rows`` samples, on the model's device."""
    weights = {_storage(tensor) for tensor in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor  # a reference, so that its address is not reused
        return tensor

    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = training_step(model, rows, lengths, layer_weights)
        forward = counter.get_total_flops()
        held = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        loss.backward()
    model.zero_grad()
    return StepCost(forward, counter.get_total_flops(), held)


def sample_cost(model: OFAModel, lengths: Lengths, layer_weights: str = "uniform") -> StepCost:
    """Return what a sample adds to a batch, without the position biases, which a batch shares."""
    one, two = (step_cost(model.train(), rows, lengths, layer_weights) for rows in (1, 2))
    return StepCost(two.forward - one.forward, two.training - one.training, two.kept - one.kept)


def answer_flops(model: OFAModel, lengths: Lengths, answer: Answer) -> int:
    """Return the FLOPs of answering one row at full depth, without the position biases."""
    encoder, decoder = model.encoder, model.decoder
    layer: Any = encoder.layers[0]
    image_tokens = encoder.image_tokens(lengths.size, lengths.size)
    passes = layer.flops(image_tokens) + layer.flops(lengths.source)
    words = Work("vocabulary", lambda source: decoder.word_flops(answer.words), [0])
    work = []
    if answer.candidates:  # the prompt and all candidates in one pass
        fed = lengths.prompt + answer.candidates
        work += full_work(decoder, 1, fed, fed, first=True)
        work.append(words._replace(units=[answer.candidates]))
    else:
        for step in range(1, answer.steps + 1):
            capacity = max(CACHE_POSITIONS, 1 << (step - 1).bit_length())  # doubles when full
            work += full_work(decoder, 1, answer.beam, capacity, first=step == 1)
            work.append(words._replace(units=[answer.beam]))
    total = dict.fromkeys(PARTS, 0)
    add_work(total, work, [image_tokens + lengths.source])
    stem = encoder.image_flops(lengths.size, lengths.size)
    return stem + len(encoder.layers) * passes + sum(total.values())


def hours(operations: float, rows: int, epochs: float, tflops: float, gpus: int) -> float:
    """Return the hours of ``epochs`` passes over ``rows`` at ``tflops`` sustained per GPU."""
    return operations * rows * epochs / (tflops * 1e12 * 3600 * gpus)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
