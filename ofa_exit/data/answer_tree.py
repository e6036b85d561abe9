"""A closed set of answers laid out for a decoder that runs each shared beginning once."""

from collections.abc import Sequence
from itertools import count

import torch

from ofa_exit.data.trie import AnswerTrie

# Tokens of the tree in one row. A row's self-attention bias holds heads · layers · (prompt + room)²
# numbers, so that small rows cost little memory, and large ones repeat prompt and beginnings less.
# Measured: 3,129 made-up answers (772 decisions), OFA base at 480 pixels, 13 tokens of prompt, one
# CPU thread. Beyond the encoder's own peak a sentence takes 75 MB with 64 or 128, 105 with 256 and
# 210 in one row; processor time is the same within a tenth.
ROOM = 128


class AnswerTree:
    """What is fed to a decoder behind the prompt, where it decides, and how answers add up.

    The tokens fed are those that lead to a decision: a prefix of an answer after which the next
    token is asked for. With ``over_vocabulary`` that is every prefix, and log-probabilities are
    normalised over the whole vocabulary; otherwise only those after which the trie leaves a choice,
    and they are normalised over the tokens that it allows.

    Fed are F tokens in each of G rows. A row holds, with each of its tokens, those before it, so
    that no row depends on another: what is computed of a token is the same in whichever row.

    answers: [A], each with its eos. tokens, depth (1 for the first behind the prompt): Long [G, F];
    ancestors: Bool [G, F, F]. decisions: [D] prefixes; place_row, place_column: Long [D], in which
    row and where each is made, column -1 behind the prompt's last token. words: Long [W], those
    that can be chosen anywhere, and allowed: Bool [D, W]; both None over the whole vocabulary. An
    edge is a token chosen at a decision: edge_decision, edge_word (a column of words, or a token)
    Long [E], decisions ascending. edges: Long [A, T], of every answer's tokens, E where nothing is
    decided.
    """

    def __init__(self, trie: AnswerTrie, over_vocabulary: bool = False, room: int = ROOM) -> None:
        """Raises ValueError if nothing is to be decided."""
        self.answers = [[*answer, trie.eos] for answer in trie.answers]
        self.decisions = trie.prefixes() if over_vocabulary else trie.branches()
        if not self.decisions:
            raise ValueError(f"there is only one answer, {trie.answers[0]}: nothing to choose from")
        self.longest = max(map(len, self.answers))
        self.deepest = max(map(len, self.decisions))
        fed = sorted({d[:n] for d in self.decisions for n in range(1, len(d) + 1)})
        home = self._lay_out(_parted(fed, room))
        places = [home.get(decision, (0, -1)) for decision in self.decisions]
        self.place_row, self.place_column = torch.tensor(places).unbind(dim=1)
        self._number_edges(trie, over_vocabulary)

    @property
    def rows(self) -> int:
        return self.tokens.size(0)

    def _lay_out(
        self, chunks: list[list[tuple[int, ...]]]
    ) -> dict[tuple[int, ...], tuple[int, int]]:
        """Fills the rows; returns in which and where each prefix is asked, the first it is in."""
        width = max(map(len, chunks))
        self.tokens = torch.zeros(len(chunks), width, dtype=torch.long)
        self.depth = torch.zeros_like(self.tokens)
        self.ancestors = torch.zeros(len(chunks), width, width, dtype=torch.bool)
        home: dict[tuple[int, ...], tuple[int, int]] = {}
        for row, chunk in enumerate(chunks):
            column = {prefix: at for at, prefix in enumerate(chunk)}
            for prefix, at in column.items():
                home.setdefault(prefix, (row, at))
                self.tokens[row, at] = prefix[-1]
                self.depth[row, at] = len(prefix)
                seen = [column[prefix[:n]] for n in range(1, len(prefix) + 1)]
                self.ancestors[row, at, seen] = True
        return home

    def _number_edges(self, trie: AnswerTrie, over_vocabulary: bool) -> None:
        following = [trie.allowed_next(decision) for decision in self.decisions]
        word = {token: token for tokens in following for token in tokens}
        self.words = self.allowed = None
        if not over_vocabulary:
            self.words = torch.tensor(sorted(word))
            word = {token: at for at, token in enumerate(sorted(word))}
            self.allowed = torch.zeros(len(following), len(word), dtype=torch.bool)
            for row, tokens in enumerate(following):
                self.allowed[row, [word[token] for token in tokens]] = True
        pairs = [(at, token) for at, tokens in enumerate(following) for token in tokens]
        self.edge_decision = torch.tensor([at for at, _ in pairs])
        self.edge_word = torch.tensor([word[token] for _, token in pairs])
        number = {(self.decisions[at], token): edge for edge, (at, token) in enumerate(pairs)}
        self.edges = torch.full((len(self.answers), self.longest), len(pairs))
        for row, answer in enumerate(self.answers):
            edges = [
                number.get((tuple(answer[:t]), answer[t]), len(pairs)) for t in range(len(answer))
            ]
            self.edges[row, : len(edges)] = torch.tensor(edges)


def _parted(fed: Sequence[tuple[int, ...]], room: int) -> list[list[tuple[int, ...]]]:
    """Prefixes in the order of a dictionary, in as few and then as equal rows as ``room`` allows.

    A row begins with the prefixes that lead to its first one; one path longer than ``room`` makes
    a longer row.
    """
    rows = len(_filled(fed, room))
    for size in count(-(-len(fed) // rows)):
        parted = _filled(fed, size)
        if len(parted) <= rows or size >= room:
            return parted
    raise AssertionError


def _filled(fed: Sequence[tuple[int, ...]], size: int) -> list[list[tuple[int, ...]]]:
    rows: list[list[tuple[int, ...]]] = [[]]
    for prefix in fed:
        if len(rows[-1]) >= size:
            rows.append([prefix[:n] for n in range(1, len(prefix))])
        rows[-1].append(prefix)
    return rows
