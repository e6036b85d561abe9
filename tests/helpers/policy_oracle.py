"""Slow loops that decide for each token where it exits, by rules in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from helpers.candidate_samples import PAD, TRIE, sample
from helpers.head_samples import SlowHeads, noisy
from helpers.small_models import batch, generate, nano, select
from ofa_exit.plugin.search.candidates import AllCandidateGenerator
from ofa_exit.policies.base import ExitPolicy

STEPS = 8
DEPTH = 6
ROWS = 7
HEADS = {  # kind of model -> (arguments, layers that a head follows)
    "none": ({}, [1, 2, 3, 4, 5]),
    "transformer": ({"exit_layers": "1,2,4"}, [1, 2, 4]),
    "linear": ({"exit_layers": "1,2,3,5", "exit_head": "linear"}, [1, 2, 3, 5]),
    "meta": ({"exit_layers": "1,2,4,5", "exit_head": "meta"}, [1, 2, 4, 5]),
    "adapter": ({"exit_layers": "1,2,3,5", "exit_head": "adapter"}, [1, 2, 3, 5]),
    "imitation": ({"exit_layers": "1,2,3,4,5", "exit_head": "imitation"}, [1, 2, 3, 4, 5]),
}
WORD_HEADS = [kind for kind in HEADS if kind != "meta"]  # whose words differ
KV_CASES = [(kind, kv) for kind in WORD_HEADS for kv in ("propagate", "recompute")]
COPY_CASES = [("linear", "copy"), ("imitation", "copy")]  # which rejects heads with K/V


@torch.no_grad()
def model_of(kind: str) -> Any:
    """Return a small model; linear heads are the decoder's own with noise, so that some agree."""
    if kind in ("adapter", "imitation"):
        return noisy(kind, HEADS[kind][0]["exit_layers"])
    model = nano(**HEADS[kind][0])
    if kind == "linear":
        generator = torch.Generator().manual_seed(3)
        for head in model.decoder.exit_heads.values():
            head["norm"].load_state_dict(model.decoder.layer_norm.state_dict())
            weight = model.decoder.output_projection.weight
            noise = 0.5 * weight.std() * torch.randn(weight.shape, generator=generator)
            head["output_projection"].weight.copy_(weight + noise)
    return model


@dataclass
class Layer:
    """What a rule sees of one token after a layer that a head follows.

    Attributes:
        number: of the layer, from 1. previous, state: its input and output, [C].
        words: log-probabilities of the allowed words, in their order.
        learned: probability of class 1 of a meta classifier.
    """

    number: int
    step: int
    previous: Tensor
    state: Tensor
    words: list[float]
    learned: Optional[float]


Rule = Callable[[Layer], bool]


class SlowDecoder:
    """Decodes one sequence, token by token, without a cache: the inputs of every layer are kept.

    ``copy`` alone is about K/V. After a token exits at layer k, every deeper layer gets the
    self-attention K/V of layer k, of all positions so far, and its cross-attention K/V. A layer
    that a later token reaches attends to what it has been given, and to that token.
    """

    def __init__(self, model: Any, net_input: dict[str, Tensor], kv: str, heads: list[int]) -> None:
        self.model, self.kv, self.heads = model, kv, heads
        self.decoder = model.decoder
        inputs = {k: v for k, v in net_input.items() if k != "prev_output_tokens"}
        self.out = model.encoder(**inputs)
        self.inputs: dict[Any, list[Tensor]] = {}
        self.words = SlowHeads(model, model.cfg.exit_head)
        self.self_kv: dict[int, list[Tensor]] = {}  # keys, values [1, heads, positions, d]
        self.cross_kv: dict[int, Any] = {}

    def run(self, name: Any, module: Any, place: int) -> Tensor:
        """Run a transformer layer for the newest token, over its kept inputs."""
        block = torch.cat(self.inputs[name], dim=1)
        biases, cross_bias = self.decoder.biases(block.size(1), self.out, None)
        cross = module.encoder_attn.project_kv(self.out.states)
        return module(block, biases[place], cross, cross_bias)[:, -1:]

    def run_on_copies(self, number: int, layer: Any) -> Tensor:
        """Run a layer for the newest token, over the K/V that it was given and its own."""
        state = self.inputs[number][-1]
        own, earlier = layer.self_kv(state), self.self_kv.get(number)
        kv = [torch.cat(pair, 2) for pair in zip(earlier, own)] if earlier else list(own)
        assert kv[0].size(2) == len(self.inputs[1])
        self.self_kv[number] = kv
        if number not in self.cross_kv:
            self.cross_kv[number] = layer.encoder_attn.project_kv(self.out.states)
        biases, cross_bias = self.decoder.biases(kv[0].size(2), self.out, None)
        newest = biases[number - 1][:, :, -1:], self.cross_kv[number], cross_bias[:, :, -1:]
        return layer(state, *newest, lambda key, value: tuple(kv))

    def keep(self, name: Any, state: Tensor) -> None:
        self.inputs.setdefault(name, []).append(state)

    def head(self, number: int, states: list[Tensor]) -> tuple[Tensor, Optional[float]]:
        """Return word scores [V] after a layer, and the learned confidence if there is one.

        Args:
            states: of the token after layers 1 … ``number``, [C] each.
        """
        heads, learned = self.decoder.exit_heads, None
        if heads.caches_kv:
            features = self.run(("head", number), heads[str(number)], number)
            return self.decoder.shared_scores(features)[0, 0], None
        if heads.has_confidence:
            classifier = heads["classifier"]
            logits = classifier.weight @ states[-1] + classifier.bias
            learned = float(logits.double().softmax(-1)[1])
        return self.words.scores(states), learned

    def feed(
        self, step: int, token: int, rule: Rule, allowed: Optional[Sequence[int]]
    ) -> tuple[Tensor, int]:
        """Return the log-probabilities of the allowed words after a token, and its layers."""
        words = slice(None) if allowed is None else list(allowed)
        state = self.decoder.layernorm_embedding(self.decoder.embed_tokens(torch.tensor([[token]])))
        answer, depth, states = None, DEPTH, []
        for number, layer in enumerate(self.decoder.layers, start=1):
            previous = state
            self.keep(number, state)
            if answer is None and self.kv == "copy":
                state = self.run_on_copies(number, layer)
            elif answer is None or self.kv == "recompute":
                state = self.run(number, layer, number - 1)
            states.append(state[0, 0])
            if number not in self.heads:
                continue
            self.keep(("head", number), state)
            if answer is None:
                scores, learned = self.head(number, states)
                found = scores[words].log_softmax(-1)
                seen = Layer(
                    number, step, previous[0, 0], state[0, 0], found.double().tolist(), learned
                )
                if rule(seen):
                    answer, depth = found, number
        if answer is None:
            answer = self.decoder.shared_scores(state)[0, 0][words].log_softmax(-1)
        for deeper in range(depth + 1, DEPTH + 1) if self.kv == "copy" else ():
            self.self_kv[deeper], self.cross_kv[deeper] = self.self_kv[depth], self.cross_kv[depth]
        return answer, depth


@torch.no_grad()
def slow_decode(
    model: Any,
    net_input: dict[str, Tensor],
    tokens: Sequence[int],
    new_rule: Callable[[], Rule],
    kv: str,
    heads: list[int],
) -> tuple[list[float], list[int]]:
    """Return the log-probabilities of a caption's tokens, and the layers that each needed.

    Args:
        new_rule: makes the rule of a token: what it remembers is the token's own.
    """
    slow, scores, depths = SlowDecoder(model, net_input, kv, heads), [], []
    for step, (given, token) in enumerate(zip([0, *tokens[:-1]], tokens)):
        words, depth = slow.feed(step, given, new_rule(), None)
        scores.append(float(words[token]))
        depths.append(depth)
    return scores, depths


# ------------------------------------------------------------------ beam search


@torch.no_grad()
def check_captions(
    model: Any, policy: ExitPolicy, new_rule: Callable[[], Rule], kv: str, heads: list[int]
) -> set[int]:
    """Compare beam search at batch 1 and 7 and beam 1 and 5 with the slow loop.

    Beams of ``copy`` share the layer that the deepest reaches, which the loop of one does not know.

    Returns:
        The layers used by any word.
    """
    net_input, used = batch(ROWS), set()
    for beam in (1, 5):
        model.configure_exits(policy, kv)
        together = generate(model, net_input, STEPS, beam_size=beam)
        tokens = [[h["tokens"].tolist() for h in hyps] for hyps in together]
        depths = model.last_trace.depths(tokens)
        for row, hyps in enumerate(together):
            alone = select(net_input, row)
            model.configure_exits(policy, kv)
            (own,) = generate(model, alone, STEPS, beam_size=beam)
            assert [h["tokens"].tolist() for h in own] == tokens[row]
            assert model.last_trace.depths([tokens[row]]) == [depths[row]]
            used.update(number for layers in depths[row] for number in layers)
            model.configure_exits(None)
            checked = list(zip(hyps, depths[row]))[::4]  # the best and the worst
            for hyp, layers in checked if kv != "copy" or beam == 1 else ():
                scores, wanted = slow_decode(
                    model, alone, hyp["tokens"].tolist(), new_rule, kv, heads
                )
                assert layers == wanted
                found = hyp["positional_scores"]
                torch.testing.assert_close(found, torch.tensor(scores), rtol=1e-4, atol=2e-4)
    return used


@torch.no_grad()
def check_incremental(model: Any, policy: ExitPolicy, kv: str) -> set[int]:
    """Compare step by step decoding of given words with one teacher-forced pass."""
    model.configure_exits(policy, kv)
    net_input = {**batch(3), "step_limit": torch.full((3,), STEPS)}
    tokens = net_input.pop("prev_output_tokens")
    whole, _ = model.decoder(tokens, model.encoder(**net_input))
    layers = model.last_trace.steps[-1].layers_used
    out, state = model.encoder(**net_input), {}
    steps = [
        model.decoder(tokens[:, :length], out, incremental_state=state)[0]
        for length in range(1, tokens.size(1) + 1)
    ]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)
    found = torch.cat([step.layers_used for step in model.last_trace.steps], dim=1)
    assert torch.equal(found, layers)
    return set(layers.unique().tolist())


# ------------------------------------------------------------------ closed sets of answers


@torch.no_grad()
def check_answers(
    model: Any, policy: ExitPolicy, new_rule: Callable[[], Rule], kv: str, heads: list[int]
) -> set[int]:
    """Compare the scores of a closed set of answers with the slow loop, and layers per choice.

    Not under ``copy``, where the answers of a question share the layer that the deepest reaches.
    """
    chosen, used = sample(prompts=True, rows=3), set()
    generator = AllCandidateGenerator([model], TRIE, PAD)
    limits = generator.step_limits(chosen["prompt_lengths"])
    chosen["net_input"]["step_limit"] = limits
    model.configure_exits(policy, kv)
    found = generator.generate([model], chosen)
    tokens = [[h["tokens"].tolist() for h in hyps] for hyps in found]
    depths = generator.traces()[0].depths(tokens)
    model.configure_exits(None)
    every = sorted({word for branch in TRIE.branches() for word in TRIE.allowed_next(branch)})
    for row, hyps in enumerate(found):
        alone = select(chosen["net_input"], row)
        prompt = alone.pop("prev_output_tokens")[0, : chosen["prompt_lengths"][row]].tolist()
        for hyp, layers in zip(hyps, depths[row]):
            slow, answer = SlowDecoder(model, alone, kv, heads), hyp["tokens"].tolist()
            scores, wanted = [], []
            for step, token in enumerate([*prompt, *answer[:-1]]):
                place = step - len(prompt) + 1  # in the answer
                following = TRIE.allowed_next(answer[:place]) if place >= 0 else []
                choice = len(following) > 1
                words, depth = slow.feed(step, token, new_rule(), following if choice else every)
                if place >= 0:
                    scores.append(float(words[following.index(answer[place])]) if choice else 0.0)
                    wanted.append(depth if choice else 0)
            assert layers == wanted
            torch.testing.assert_close(
                hyp["positional_scores"], torch.tensor(scores), rtol=1e-4, atol=2e-4
            )
            used.update(wanted)
    return used - {0}


# ------------------------------------------------------------------ thresholds and properties


@torch.no_grad()
def quantile(
    model: Any,
    measure: Callable[[Tensor], Tensor],
    part: float,
    layers: Optional[Sequence[int]] = None,
) -> float:
    """Return a value of ``measure``, of word scores [..., V], that a part of the tokens is below.

    Args:
        layers: whose heads are measured; None for all.
    """
    model.configure_exits(None)
    _, extra = model(**batch(4, target=10), exit_features=True)
    heads, shared = model.decoder.exit_heads, model.decoder.shared_scores
    found = [
        measure(heads.scores(layer, features, None, shared)).flatten()
        for layer, features in extra["head_features"].items()
        if layers is None or layer in layers
    ]
    return float(torch.cat(found).quantile(part))


@torch.no_grad()
def layers_of(model: Any, policy: ExitPolicy) -> Tensor:
    """Return the layers that given words use, Long [N, L]; states are those of the full stack."""
    model.configure_exits(policy, "recompute")
    model(**batch(4))
    return model.last_trace.steps[-1].layers_used


@torch.no_grad()
def check_never(model: Any, policy: ExitPolicy) -> None:
    """Check that a policy that never exits changes no bit and asks no head."""
    net_input, ran = batch(3), []
    model.configure_exits(None)
    plain = generate(model, net_input)
    model.configure_exits(policy)
    hooks = [
        module.register_forward_hook(lambda *_: ran.append(1))
        for module in model.decoder.exit_heads.modules()
    ]
    found = generate(model, net_input)
    for hook in hooks:
        hook.remove()
    assert policy.gate("decoder") is None and not model.decoder.heads_in_use(policy) and not ran
    for hyps, expected in zip(found, plain):
        for left, right in zip(hyps, expected):
            assert torch.equal(left["tokens"], right["tokens"])
            assert torch.equal(left["positional_scores"], right["positional_scores"])
