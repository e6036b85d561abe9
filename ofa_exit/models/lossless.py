"""Self-speculative greedy decoding: the first layers draft, the other layers verify at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Optional

import torch
from torch import Tensor

from ofa_exit.models.cpu import linear, row_slices
from ofa_exit.models.decoder_stack import DecoderStack
from ofa_exit.models.decoder_work import full_work
from ofa_exit.models.encoder_out import EncoderOut
from ofa_exit.models.word_scores import MAX_SCORES_AT_ONCE
from ofa_exit.runtime.drafts import AllowedWords, DraftBuffer, Drafting
from ofa_exit.runtime.flops import Work
from ofa_exit.runtime.kv_cache import KVCache
from ofa_exit.runtime.rows import from_host, to_host
from ofa_exit.runtime.trace import DecoderStep

MAX_DRAFT_WORDS = 8192
"""Words that drafts are chosen from, the first of the vocabulary. Dictionaries are sorted by
frequency, and scoring all 59,457 words of OFA base reads as many weights as 5.5 decoder layers."""

EOS = 2  # of every fairseq dictionary


class LosslessDecoding:
    """The decoder of a greedy search, step by step, with drafts (LayerSkip, Section 4.3).

    The search asks for the scores after its newest tokens. If they are not known, a round begins:

        newest token ─► layers 1 … E ─► head ─► draft 1 ─► layers 1 … E ─► head ─► draft 2 …
        states after layer E of all of them ─► layers E + 1 … N ─► word scores of each

    Scores after the drafts are kept. While the search chooses the drafts, its next steps run
    nothing. If it chooses another token, a new round begins there. The search itself is
    fairseq's, so everything that it does with the scores applies.

    Keys and values of rejected drafts are overwritten by the next round. Until then the causal
    bias hides them. All rows of a round begin at the same position, that of the search. A row that
    still has scores sits the round out.

    Differs from LayerSkip: layers 1 … E also run for the last draft, so that a round whose drafts
    are all accepted yields one more token. Drafts are chosen from the ``MAX_DRAFT_WORDS`` first
    words.

    Attributes:
        allowed: what the search is known to allow; drafts keep to it.
    """

    def __init__(
        self, decoder: DecoderStack, drafting: Drafting, allowed: Optional[AllowedWords]
    ) -> None:
        self.decoder, self.drafting, self.allowed = decoder, drafting, allowed
        cfg = decoder.cfg
        self.cache = KVCache(len(decoder.layers), 1, cfg.max_target_positions)
        self.buffer: Optional[DraftBuffer] = None
        self.last_position = cfg.max_target_positions - 1

    def step(self, tokens: Tensor, encoder_out: EncoderOut) -> tuple[Tensor, DecoderStep]:
        """Return the word scores [N, 1, V] after the tokens, Long [N, L], and what was run."""
        position = tokens.size(1) - 1
        if self.buffer is None:
            self._begin(len(tokens), encoder_out)
        assert self.buffer is not None
        prefixes: list[list[int]] = to_host(tokens)
        missing = self.buffer.missing(position, [prefix[-1] for prefix in prefixes])
        first = self.cache.kv is None
        counts = _Counts.of(len(tokens))
        for row in set(range(len(tokens))) - set(missing):
            counts.accepted[row] = 1
        if missing:
            drafted = _Round(self, encoder_out, missing, position, counts)
            self.buffer.add(missing, position, *drafted.run(tokens, prefixes))
        return self.buffer.scores(position), self._trace(tokens, encoder_out, counts, first)

    def reorder(self, new_order: Tensor) -> None:
        """Follow the search, see ``EncoderOut.reordered``."""
        self.cache.reorder(new_order)
        if self.buffer is not None:
            self.buffer.reorder(new_order)

    def guess(
        self, hidden: Tensor, prefixes: Sequence[Sequence[int]], choices: Sequence[Sequence[int]]
    ) -> list[int]:
        """Return a draft for each row, from the states [R, C] after the drafting layer.

        Args:
            prefixes: the tokens of each row, bos included.
            choices: the words to choose from in each row; none for any word.
        """
        decoder = self.decoder
        features, weight = decoder.layer_norm(hidden), decoder.output_projection.weight
        drafts: list[int] = [words[0] if words else 0 for words in choices]
        free = [row for row, words in enumerate(choices) if not words]
        limited = [row for row, words in enumerate(choices) if len(words) > 1]
        best = []
        if free:
            states = features if len(free) == len(choices) else features[free]
            best.append(linear(states, weight[:MAX_DRAFT_WORDS]).argmax(dim=1))  # [rows]
        for row in limited:
            index = from_host(list(choices[row]), hidden.device)
            best.append(linear(features[row], weight[index]).argmax(dim=0, keepdim=True))
        places: list[int] = to_host(torch.cat(best)) if best else []  # one read for all rows
        for row, place in zip([*free, *limited], places, strict=True):
            drafts[row] = choices[row][place] if choices[row] else place
        return drafts

    def _begin(self, rows: int, encoder_out: EncoderOut) -> None:
        if (encoder_out.group or 1) > 1:
            raise ValueError(
                "--exit-lossless verifies one hypothesis per sentence: generate with --beam 1"
            )
        self.buffer = DraftBuffer(rows)
        if encoder_out.step_limit is not None:
            # A sentence of N tokens ends with the scores at position N.
            longest = int(encoder_out.step_limit.max())
            self.last_position = min(self.last_position, longest)

    def _trace(
        self, tokens: Tensor, encoder_out: EncoderOut, counts: _Counts, first: bool
    ) -> DecoderStep:
        decoder, keys, depth = self.decoder, self.cache.capacity, len(self.decoder.layers)
        rows, layer = len(tokens), decoder.layer(1)
        layers = [positions * depth for positions in counts.positions]
        draft_words = min(MAX_DRAFT_WORDS, decoder.output_projection.weight.size(0))
        work = [
            Work("decoder", partial(layer.flops, keys), layers),
            Work("exits", lambda source: decoder.word_flops(draft_words), counts.scored),
            Work("exits", lambda source: decoder.word_flops(1), counts.words_scored),
            Work("vocabulary", lambda source: decoder.word_flops(), counts.positions),
        ]
        if first:
            work.append(Work("cross_kv", layer.cross_kv_flops, [depth] * rows))
        full = full_work(decoder, rows, 1, keys, first)
        full.append(Work("vocabulary", lambda source: decoder.word_flops(), [1] * rows))
        device = tokens.device
        layers_run = torch.tensor(layers)
        return DecoderStep(
            tokens=tokens.clone(),
            sentence=encoder_out.sentences,
            layers_used=torch.full((rows, 1), depth, device=device),
            layers_run=layers_run,
            kv_backfilled=torch.zeros_like(layers_run),
            keys=keys,
            work=work,
            full_work=full,
            drafted=torch.tensor(counts.drafted),
            accepted=torch.tensor(counts.accepted),
        )


@dataclass
class _Counts:
    """What each of N rows went through in a call, a number per row.

    Attributes:
        positions: positions that ran all layers.
        drafted: drafts that were verified; accepted: whether the newest token was such a draft.
        scored: tokens for which any word was scored to draft the next one.
        words_scored: words scored where only some were allowed.
    """

    positions: list[int]
    drafted: list[int]
    accepted: list[int]
    scored: list[int]
    words_scored: list[int]

    @classmethod
    def of(cls, rows: int) -> _Counts:
        """Return zeros."""
        return cls(*([0] * rows for _ in fields(cls)))


class _Round:
    """One round of drafts, for some rows, from a position on."""

    def __init__(
        self,
        decoding: LosslessDecoding,
        encoder_out: EncoderOut,
        rows: list[int],
        start: int,
        counts: _Counts,
    ) -> None:
        self.decoding, self.decoder, self.cache = decoding, decoding.decoder, decoding.cache
        self.encoder_out, self.rows, self.start, self.counts = encoder_out, rows, start, counts
        sentences = encoder_out.states.size(0)
        self.index: Optional[Tensor] = None
        self.slices: Optional[list[slice]] = None
        if len(rows) < sentences:
            self.index = from_host(rows, encoder_out.states.device)
            self.slices = row_slices(rows, encoder_out.states)
        self.sentences: list[int] = []
        if decoding.allowed is not None:
            self.sentences = to_host(encoder_out.sentences)
        self._cross: dict[int, tuple[Tensor, Tensor]] = {}

    def run(self, tokens: Tensor, prefixes: list[list[int]]) -> tuple[list[list[int]], Tensor]:
        """Draft after the newest tokens of Long [N, L], and verify.

        Returns:
            The newest token and the drafts of each of the R rows, and the scores [R, P, V] after
            them. A row whose draft is the end of the sentence has fewer tokens than P.
        """
        decoder, drafting = self.decoder, self.decoding.drafting
        room = MAX_SCORES_AT_ONCE // decoder.output_projection.weight.size(0) // len(tokens)
        longest = max(0, min(drafting.tokens, self.decoding.last_position - self.start, room - 1))
        self._reserve(longest + 1)
        newest = tokens[:, -1:] if self.index is None else tokens[self.index, -1:]  # Long [R, 1]
        known = [list(prefixes[row]) for row in self.rows]
        ended = [False] * len(self.rows)
        length, hidden = len(prefixes[0]), []
        for number in range(longest + 1):
            x = decoder.layernorm_embedding(decoder.embed_tokens(newest))  # [R, 1, C]
            x = self._run(range(drafting.layer), x, self.start + number)
            hidden.append(x)
            if number == longest:
                break
            drafts = self._draft(x[:, 0], known, ended)
            for row, draft in enumerate(drafts):
                ended[row] = ended[row] or draft in (EOS, decoder.padding_idx)
                if not ended[row]:
                    known[row].append(draft)
            if all(ended):
                break
            newest = from_host([[draft] for draft in drafts], tokens.device)
        x = torch.cat(hidden, dim=1)  # [R, P, C]
        x = self._run(range(drafting.layer, len(decoder.layers)), x, self.start)
        for row, row_tokens in zip(self.rows, known):
            self.counts.positions[row] = x.size(1)
            self.counts.drafted[row] = len(row_tokens) - length
        scores = decoder.output_layer(decoder.layer_norm(x))  # [R, P, V]
        return [row_tokens[length - 1 :] for row_tokens in known], scores

    def _draft(self, hidden: Tensor, known: list[list[int]], ended: list[bool]) -> list[int]:
        """Return a draft per row from its states [R, C], padding for a row that has ended.

        Counts what was scored.
        """
        choices: list[Sequence[int]] = [()] * len(known)
        for number, (row, prefix) in enumerate(zip(self.rows, known)):
            if ended[number]:
                choices[number] = (self.decoder.padding_idx,)
            elif self.decoding.allowed is not None:
                choices[number] = self.decoding.allowed(self.sentences[row], prefix) or ()
            words = choices[number]
            self.counts.scored[row] += not words
            self.counts.words_scored[row] += len(words) if len(words) > 1 else 0
        return self.decoding.guess(hidden, known, choices)

    def _reserve(self, positions: int) -> None:
        cfg, cache = self.decoder.cfg, self.cache
        cache.length = self.start
        like, heads = self.encoder_out.states, cfg.decoder_attention_heads
        head_dim = cfg.decoder_embed_dim // heads
        cache.reserve(like.size(0), heads, head_dim, like, positions)

    def _run(self, slots: range, x: Tensor, start: int) -> Tensor:
        """Run layers, by their slots in the cache, over x [R, P, C] at positions from ``start``."""
        decoder, positions = self.decoder, slice(start, start + x.size(1))
        self_biases, cross_bias = decoder.biases(start, self.encoder_out, self.cache)
        cross_bias = cross_bias[:, :, positions]  # [S, heads, P, T]
        if self.index is not None:
            cross_bias = cross_bias[self.index]
        for slot in slots:

            def extend(key: Tensor, value: Tensor, slot: int = slot) -> tuple[Tensor, Tensor]:
                self.cache.store(slot, self.index, positions, key, value)
                return self.cache.load(slot, None if self.slices is not None else self.index)

            x = decoder.layer(slot + 1)(
                x,
                self_biases[slot][:, :, positions],
                self._cross_kv(slot),
                cross_bias,
                extend,
                (self.slices, self.slices),
            )
        return x

    def _cross_kv(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return the cross-attention K/V of the rows, copied at most once a round."""
        if slot not in self._cross:
            module, states = self.decoder.layer(slot + 1), self.encoder_out.states
            (key, value), _ = self.decoder.cross_kv(slot, module, states, self.cache)
            if self.index is not None and self.slices is None:
                key, value = key[self.index], value[self.index]
            self._cross[slot] = key, value
        return self._cross[slot]
