"""Sentences without an image: a zero image and a mask, and no number depends on either."""

import pytest
import torch
from helpers import small_models as helpers

from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit

POLICIES = {
    "full": None,
    "similarity": SimilarityExit(0.97, 0.9, 0.97, decoder_threshold=0.9, schedule="static"),
    "never": SimilarityExit(1, 1, 1, decoder_threshold=1),
    "static": StaticExit((2, 2, 3)),
}
MASKS = [True, False, True, False]


def batch(masks: list[bool]) -> dict:
    inputs = helpers.batch(len(masks))
    inputs["patch_masks"] = torch.tensor(masks)
    inputs["patch_images"] = inputs["patch_images"] * inputs["patch_masks"][:, None, None, None]
    return inputs


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("masks", [MASKS, [False, True], [False, False]])
@torch.no_grad()
def test_a_row_without_an_image_does_not_depend_on_its_batch(split, policy, masks):
    """In a batch, alone, and as a sentence that never had an image, all results are the same."""
    model, inputs = helpers.nano(split), batch(masks)
    model.configure_exits(POLICIES[policy])
    together, _ = model(**inputs)
    trace = model.last_trace
    if policy != "full":
        assert trace.image_layers.bool().tolist() == masks
        used = torch.cat([step.layers_used for step in trace.steps])
    for row, present in enumerate(masks):
        given = [helpers.select(inputs, row)]
        if not present:
            given.append({k: v for k, v in given[0].items() if not k.startswith("patch")})
        for alone in given:
            scores, _ = model(**alone)
            torch.testing.assert_close(scores[0], together[row], atol=1e-5, rtol=1e-5)
            if policy != "full":
                own = model.last_trace
                assert own.image_layers.tolist() == [trace.image_layers[row]]
                assert own.text_layers.tolist() == [trace.text_layers[row]]
                assert torch.equal(own.steps[-1].layers_used[0], used[row])


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
@torch.no_grad()
def test_what_stands_in_for_an_image_changes_nothing(split, policy):
    model, inputs = helpers.nano(split), batch(MASKS)
    model.configure_exits(POLICIES[policy])
    expected, _ = model(**inputs)
    found, _ = model(**{**inputs, "patch_images": inputs["patch_images"] + 1})
    assert torch.equal(found[~inputs["patch_masks"]], expected[~inputs["patch_masks"]])


@torch.no_grad()
def test_gated_image_layers_run_for_images_alone():
    model, inputs = helpers.nano(True), batch([True, False, False, True, False])
    model.configure_exits(StaticExit((2, 3, 6)))
    ran: list[int] = []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda *call: ran.append(len(call[2])))
    model(**inputs)
    assert ran == [2] * 2 + [5] * 3
    assert model.last_trace.image_layers.tolist() == [2, 0, 0, 2, 0]
    assert model.last_trace.text_layers.tolist() == [3] * 5


def test_batch_norms_in_training_see_all_rows():
    model, inputs = helpers.nano(True).train(), batch([True, False, True])
    seen = []
    model.encoder.embed_images.register_forward_hook(lambda *call: seen.append(len(call[2])))
    model(**inputs)
    assert seen == [3]
