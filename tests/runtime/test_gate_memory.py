"""What a gate keeps in ``seen.memory`` follows its rows, in encoder and decoder."""

from dataclasses import dataclass

import pytest
import torch
from helpers.small_models import batch, generate, nano, select

from ofa_exit.policies.base import ExitPolicy, GateInput
from ofa_exit.policies.measures import hidden_saturation, sample_saturation


@dataclass
class SummingExit(ExitPolicy):
    """Exits by chance, as the sum of the row's similarities over the layers so far falls."""

    def image_gate(self, seen: GateInput) -> torch.Tensor:
        return self._by_sum(seen, sample_saturation(seen.previous, seen.current, seen.padding_mask))

    text_gate = joint_gate = image_gate

    def decoder_gate(self, seen: GateInput) -> torch.Tensor:
        return self._by_sum(seen, hidden_saturation(seen.previous, seen.current))

    @staticmethod
    def _by_sum(seen: GateInput, similarity: torch.Tensor) -> torch.Tensor:
        assert all(len(tensor) == len(seen.current) for tensor in seen.memory.values())
        assert ("total" in seen.memory) == (seen.layer > 1)  # cleared for each pass and step
        total = seen.memory.get("total", torch.zeros_like(similarity)) + similarity
        seen.memory["total"] = total
        return (200 * total).floor() % 3 == 0


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.usefixtures("reading")
@torch.no_grad()
def test_rows_of_a_batch_decide_as_they_do_alone(split, beam):
    model = nano(split)
    model.configure_exits(SummingExit())
    net_input = batch(6)
    together = generate(model, net_input, beam_size=beam)
    trace = model.last_trace
    tokens = [[hyp["tokens"].tolist() for hyp in hyps] for hyps in together]
    depths = trace.depths(tokens)
    assert len({layers for hyps in depths for hyp in hyps for layers in hyp}) > 1
    assert len(set(trace.text_layers.tolist())) > 1
    for row in range(6):
        alone = generate(model, select(net_input, row), beam_size=beam)[0]
        assert [hyp["tokens"].tolist() for hyp in alone] == tokens[row]
        assert model.last_trace.depths([tokens[row]]) == [depths[row]]
        assert model.last_trace.text_layers.tolist() == [trace.text_layers[row]]
        assert model.last_trace.image_layers.tolist() == [trace.image_layers[row]]
