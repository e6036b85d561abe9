"""Equal texts of a split encoder: one pass in a batch, one for a constant prompt, equal results."""

from __future__ import annotations

import pytest
import torch
from helpers import small_models as helpers

from ofa_exit.cli.saturation.states import layer_states
from ofa_exit.evaluation.efficiency.flops import batch_flops
from ofa_exit.models.positions import KEPT_SHAPES
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit
from ofa_exit.testing import random_tokens

POLICIES = {
    "full": None,
    "similarity": SimilarityExit(0.97, 0.9, 0.97, decoder_threshold=0.9, schedule="static"),
    "never": SimilarityExit(1, 1, 1, decoder_threshold=1),
    "static": StaticExit((2, 3, 3)),
}


def prompted(rows: int, name: str = "prompt") -> dict:
    """Sentences of one text, with images of their own; row 2 has none."""
    inputs = helpers.batch(rows)
    inputs["src_tokens"] = random_tokens(name, (1, 7), helpers.VOCAB).repeat(rows, 1)
    inputs["src_lengths"] = torch.full((rows,), 7)
    return {**inputs, "text_keys": [name] * rows}


def without_keys(inputs: dict) -> dict:
    return {name: value for name, value in inputs.items() if name != "text_keys"}


@pytest.fixture
def model():
    return helpers.nano(True)


@pytest.fixture
def rows_run(model):
    """Rows of texts (7 tokens, images have 4) that every layer call ran."""
    ran: list[int] = []

    def note(layer, inputs, output):
        if output.size(1) == 7:
            ran.append(len(output))

    for layer in model.encoder.layers:
        layer.register_forward_hook(note)
    return ran


def check(model, inputs: dict, rows_run: list[int]) -> None:
    """Scores, layers and FLOPs are those without keys, and hooks count the layers run."""
    rows_run.clear()
    with torch.no_grad():
        found, _ = model(**inputs)
        trace, ran = model.last_trace, sum(rows_run)
        expected, _ = model(**without_keys(inputs))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    if model.encoder.exit_policy is None:
        return
    plain = model.last_trace
    for name in ("image_layers", "text_layers", "source_tokens"):
        assert torch.equal(getattr(trace, name), getattr(plain, name))
    assert torch.equal(trace.steps[-1].layers_used, plain.steps[-1].layers_used)
    assert ran == int(trace.text_layers_run.sum()) <= int(trace.text_layers.sum())
    assert int(plain.text_layers_run.sum()) == sum(rows_run) - ran
    assert batch_flops(trace) == batch_flops(plain)


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_texts_of_a_batch_share_a_pass(model, rows_run, policy):
    model.configure_exits(POLICIES[policy])
    inputs = helpers.batch(5)  # row 1 has a shorter text, row 2 no image
    inputs["src_tokens"][3] = inputs["src_tokens"][0]
    inputs["src_tokens"][4] = inputs["src_tokens"][1]
    inputs["src_lengths"] = inputs["src_tokens"].ne(1).sum(1)
    for _ in range(2):  # texts that differ are not kept
        check(model, {**inputs, "text_keys": ["a", "b", "c", "a", "b"]}, rows_run)
        assert rows_run[0] == 3 and max(rows_run) == 5


@pytest.mark.parametrize("policy", POLICIES)
def test_the_pass_of_a_prompt_is_run_once(model, rows_run, policy):
    """Whatever the batches: of one row, of several, with images missing, without padding."""
    model.configure_exits(POLICIES[policy])
    for number, rows in enumerate((1, 4, 1, 2)):
        inputs = prompted(rows)
        inputs["patch_images"] = inputs["patch_images"] + number
        if rows < 3:
            inputs["padded"] = False
        check(model, inputs, rows_run)
        assert (rows_run[0] == 1) if number == 0 else (set(rows_run) == {rows})


def test_a_row_is_the_same_alone(model, rows_run):
    model.configure_exits(POLICIES["similarity"])
    inputs = prompted(4)
    with torch.no_grad():
        together, _ = model(**inputs)
        for row in range(4):
            alone = {**helpers.select(inputs, row), "text_keys": inputs["text_keys"][:1]}
            torch.testing.assert_close(model(**alone)[0][0], together[row], atol=1e-5, rtol=1e-5)
    assert set(rows_run) == {1} and len(rows_run) == int(model.last_trace.text_layers[0])


def load_other_weights(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in state.items():
        if name.startswith("encoder.layers") and value.is_floating_point():
            value *= 0.9
    model.load_state_dict(state)


def load_layers_alone(model):
    """Through a submodule, whose loading the encoder does not see."""
    layers = model.encoder.layers
    layers.load_state_dict({name: value * 0.9 for name, value in layers.state_dict().items()})


def load_words_alone(model):
    """The decoder has the same embedding."""
    state = model.decoder.state_dict()
    model.decoder.load_state_dict(
        {**state, "embed_tokens.weight": state["embed_tokens.weight"] * 2}
    )


def lower_threshold(model):
    model.encoder.exit_policy.text_threshold = 0.1


CHANGES = {
    "weights": load_other_weights,
    "layers": load_layers_alone,
    "words": load_words_alone,
    "training": lambda model: model.train().eval(),
    "dtype": lambda model: model.double(),
    "threshold": lower_threshold,
    "policy": lambda model: model.configure_exits(StaticExit((2, 1, 3))),
    "no policy": lambda model: model.configure_exits(None, trace=True),
    "another text": lambda model: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_pass_runs_it_again(model, rows_run, change):
    policy = SimilarityExit(0.97, 0.9, 0.97, decoder_threshold=0.9, schedule="static")
    model.configure_exits(policy)
    check(model, prompted(3), rows_run)
    CHANGES[change](model)
    inputs = prompted(3, "another" if change == "another text" else "prompt")
    if change == "dtype":
        inputs["patch_images"] = inputs["patch_images"].double()
    check(model, inputs, rows_run)
    assert rows_run[0] == 1


@torch.no_grad()
def test_questions_do_not_fill_the_memory(model):
    inputs = prompted(1)
    for number in range(KEPT_SHAPES["prompt"] + 5):
        model.encoder(**{k: v for k, v in inputs.items() if k != "prev_output_tokens"}
                      | {"text_keys": [str(number)]})  # fmt: skip
    assert len(model.encoder.__dict__["_by_shape"]["prompt"]) == KEPT_SHAPES["prompt"]


def test_training_runs_every_row(model, rows_run):
    model.train()
    inputs = prompted(3)
    gradients = []
    for given in (inputs, without_keys(inputs)):
        model.zero_grad()
        torch.manual_seed(1)
        model(**given)[0].square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert set(rows_run) == {3}
    assert all(map(torch.equal, *gradients))
    rows_run.clear()
    model.eval()(**inputs)  # with gradients
    assert set(rows_run) == {3}


@torch.no_grad()
def test_an_autocast_pass_is_not_kept(model, rows_run):
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            model(**prompted(3))
    assert rows_run == [1] * 12


def test_states_of_a_prompt_are_recorded_for_every_row(model):
    for _ in range(2):
        states = layer_states(model, prompted(3))
        assert [len(state) for state in states["text"]] == [3] * 7


def test_one_key_per_row(model):
    with pytest.raises(ValueError, match="2 entries and src_tokens 3 rows"), torch.no_grad():
        model(**{**prompted(3), "text_keys": ["a", "a"]})
