"""Sentences without an image: nothing is run in its place, and no number changes."""

import pytest
import torch
from helpers import small_models as helpers

from ofa_exit.data.collate import collate
from ofa_exit.data.example import Example
from ofa_exit.evaluation.efficiency import flops
from ofa_exit.evaluation.efficiency.flops import StemCost
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit

POLICIES = {
    "full": None,
    "similarity": SimilarityExit(0.97, 0.9, 0.97, decoder_threshold=0.9, schedule="static"),
    "shut": SimilarityExit(1, 1, 1, decoder_threshold=1),
    "static": StaticExit((2, 2, 3)),
}


def batch(masks: list[bool]) -> dict:
    found = helpers.batch(len(masks))
    found["patch_masks"] = torch.tensor(masks)
    found["patch_images"] = found["patch_images"] * found["patch_masks"][:, None, None, None]
    return found


def told(inputs: dict) -> dict:
    return {**inputs, "pictured": inputs["patch_masks"].nonzero().flatten()}


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("masks", [[True, False, True, False], [False, True], [False, False]])
def test_leaving_them_out_changes_nothing(split, policy, masks):
    model, inputs = helpers.nano(split), batch(masks)
    model.configure_exits(POLICIES[policy])
    ran = []
    model.encoder.embed_images.register_forward_hook(lambda *of: ran.append(len(of[2])))
    found, traces = [], []
    for given in (told(inputs), inputs):
        with torch.no_grad():
            found.append(model(**given, return_layers=policy == "full"))
        traces.append(model.last_trace)
    assert ran == [sum(masks), len(masks)][not any(masks) :]
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
    if policy == "full":
        ours, theirs = (extra["encoder_out"] for _, extra in found)
        assert len(ours.layer_states) == len(theirs.layer_states)
        seen = ~ours.padding_mask
        assert seen.sum() == (~theirs.padding_mask).sum()
        for state, other in zip(ours.layer_states, theirs.layer_states, strict=True):
            torch.testing.assert_close(
                state[seen], other[~theirs.padding_mask], atol=1e-5, rtol=1e-5
            )
        return
    for name in ("image_layers", "text_layers"):
        assert torch.equal(getattr(traces[0], name), getattr(traces[1], name))
    assert traces[0].image_layers.bool().tolist() == masks


def test_layers_run_for_images_alone():
    model, inputs = helpers.nano(True), batch([True, False, False, True, False])
    ran = []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda *of: ran.append(len(of[2])))
    with torch.no_grad():
        model(**told(inputs))
    layers = len(model.encoder.layers)
    assert ran == [2] * layers + [5] * layers


def test_with_shared_images():
    """Sentences 1 and 2 share an image, sentence 3 has none, sentence 4 one of its own."""
    inputs, rows = batch([True, True, False, True]), torch.tensor([0, 0, 1, 2])
    inputs["patch_images"] = inputs["patch_images"][[0, 2, 3]]
    inputs["image_rows"] = rows
    for split in (True, False):
        model = helpers.nano(split)
        with torch.no_grad():
            expected = model(**inputs)[0]
            found = model(**inputs, pictured=torch.tensor([0, 2]))[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_batch_norms_in_training_see_all_rows():
    model, inputs = helpers.nano(True).train(), batch([True, False, True])
    seen = []
    model.encoder.embed_images.register_forward_hook(lambda *of: seen.append(len(of[2])))
    model(**told(inputs))
    assert seen == [3]


def example(index: int, image: torch.Tensor | None) -> Example:
    tokens = torch.tensor([0, 5])
    return Example(index, str(index), tokens, tokens, tokens, 1, image, ["x"], [])


def test_batches_tell_which_are_there():
    image, other = torch.ones(3, 8, 8), torch.ones(3, 8, 8)
    rows = [example(number, of) for number, of in enumerate([None, image, image, None, other])]
    inputs = collate(rows, 1, 8)["net_input"]
    assert inputs["image_rows"].tolist() == [0, 1, 1, 2, 3]
    assert inputs["pictured"].tolist() == [1, 3]
    assert inputs["patch_images"].flatten(1).any(1).tolist() == [False, True, False, True]
    none = collate(rows[:1], 1, 8)["net_input"]["pictured"]
    assert none.tolist() == [] and none.dtype == torch.long
    assert "pictured" not in collate([rows[1], rows[4]], 1, 8)["net_input"]


def test_their_stem_is_not_counted():
    shape, stem = flops.ModelShape.from_model(helpers.nano(True)), StemCost(1000, 4)
    found = flops.batch_flops(shape, stem, [3, 0], [2, 2], [5, 5], [])
    alone = flops.batch_flops(shape, stem, [3], [2], [5], [])
    for with_both, with_one in ((found.executed, alone.executed), (found.full, alone.full)):
        assert with_both["stem"] == with_one["stem"] > 0
