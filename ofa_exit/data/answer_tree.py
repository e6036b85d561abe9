"""A closed set of answers, laid out so that a decoder runs each shared prefix once."""

from collections.abc import Sequence
from itertools import count

import torch

from ofa_exit.data.trie import AnswerTrie

# Tokens of the tree per row. A row's self-attention bias has heads · layers · (prompt + tokens)²
# elements: short rows take less memory, long rows repeat prompt and prefixes less often.
# Measured with 3,129 answers (772 decisions), OFA base at 480 pixels, 13 prompt tokens and one CPU
# thread: beyond the encoder's own peak a sentence takes 75 MB with 64 or 128 tokens, 105 MB with
# 256, and 210 MB in one row. The processor time is equal within 10 %.
TOKENS_PER_ROW = 128


class AnswerTree:
    """The decoder's input after the prompt, where it decides, and which decisions make an answer.

    A decision is a prefix of an answer after which the next token is scored. With
    ``over_vocabulary`` every prefix is a decision, and log-probabilities are normalised over the
    whole vocabulary. Otherwise only prefixes with several continuations are decisions, and
    log-probabilities are normalised over the tokens that the trie allows.

    The decoder is fed F tokens in each of G rows. A row holds each of its tokens after all tokens
    of its prefix. So no row depends on another, and a token's states are the same in every row.

    Attributes:
        answers: A lists of tokens, each with its eos.
        tokens, depth: Long [G, F]; the first token after the prompt has depth 1.
        ancestors: Bool [G, F, F], True where the second token is on the path to the first.
        decisions: D prefixes.
        place_row, place_column: Long [D], where each decision is made; column -1 stands for the
            prompt's last token.
        words: Long [W], the tokens that can be chosen at a decision; None over the vocabulary.
        allowed: Bool [D, W]; None over the vocabulary.
        edge_decision, edge_word: Long [E]. An edge is a token chosen at a decision; edge_word is a
            column of ``words``, or a token over the vocabulary. Decisions ascend.
        edges: Long [A, T], the edge of every token of an answer; E where nothing is decided.
    """

    def __init__(self, trie: AnswerTrie, over_vocabulary: bool = False) -> None:
        """Lay out the answers of ``trie``. Raises ValueError if there is nothing to decide."""
        self.answers = [[*answer, trie.eos] for answer in trie.answers]
        self.decisions = trie.prefixes() if over_vocabulary else trie.branches()
        if not self.decisions:
            raise ValueError(f"there is only one answer, {trie.answers[0]}: nothing to choose from")
        self.longest = max(map(len, self.answers))
        self.deepest = max(map(len, self.decisions))
        fed = sorted({d[:n] for d in self.decisions for n in range(1, len(d) + 1)})
        home = self._lay_out(_split_into_rows(fed, TOKENS_PER_ROW))
        places = [home.get(decision, (0, -1)) for decision in self.decisions]
        self.place_row, self.place_column = torch.tensor(places).unbind(dim=1)
        self._number_edges(trie, over_vocabulary)

    @property
    def rows(self) -> int:
        return self.tokens.size(0)

    def _lay_out(
        self, chunks: list[list[tuple[int, ...]]]
    ) -> dict[tuple[int, ...], tuple[int, int]]:
        """Fill the rows. Return the first (row, column) of each prefix."""
        width = max(map(len, chunks))
        self.tokens = torch.zeros(len(chunks), width, dtype=torch.long)
        self.depth = torch.zeros_like(self.tokens)
        self.ancestors = torch.zeros(len(chunks), width, width, dtype=torch.bool)
        home: dict[tuple[int, ...], tuple[int, int]] = {}
        for row, chunk in enumerate(chunks):
            column_of = {prefix: column for column, prefix in enumerate(chunk)}
            for prefix, column in column_of.items():
                home.setdefault(prefix, (row, column))
                self.tokens[row, column] = prefix[-1]
                self.depth[row, column] = len(prefix)
                path = [column_of[prefix[:n]] for n in range(1, len(prefix) + 1)]
                self.ancestors[row, column, path] = True
        return home

    def _number_edges(self, trie: AnswerTrie, over_vocabulary: bool) -> None:
        """Number the tokens of each decision, and spell every answer in these numbers."""
        following = [trie.allowed_next(decision) for decision in self.decisions]
        word = {token: token for tokens in following for token in tokens}
        self.words = self.allowed = None
        if not over_vocabulary:
            self.words = torch.tensor(sorted(word))
            word = {token: column for column, token in enumerate(sorted(word))}
            self.allowed = torch.zeros(len(following), len(word), dtype=torch.bool)
            for row, tokens in enumerate(following):
                self.allowed[row, [word[token] for token in tokens]] = True
        pairs = [(number, token) for number, tokens in enumerate(following) for token in tokens]
        self.edge_decision = torch.tensor([decision for decision, _ in pairs])  # [E]
        self.edge_word = torch.tensor([word[token] for _, token in pairs])  # [E]
        edge_of = {(self.decisions[d], token): edge for edge, (d, token) in enumerate(pairs)}
        self.edges = torch.full((len(self.answers), self.longest), len(pairs))
        for row, answer in enumerate(self.answers):
            edges = [
                edge_of.get((tuple(answer[:t]), answer[t]), len(pairs)) for t in range(len(answer))
            ]
            self.edges[row, : len(edges)] = torch.tensor(edges)


def _split_into_rows(fed: Sequence[tuple[int, ...]], room: int) -> list[list[tuple[int, ...]]]:
    """Split sorted prefixes into as few rows as ``room`` allows, of equal length if possible.

    A row begins with the prefixes of its first one. A path longer than ``room`` makes a longer row.
    """
    rows = len(_filled(fed, room))
    for size in count(-(-len(fed) // rows)):
        split = _filled(fed, size)
        if len(split) <= rows or size >= room:
            return split
    raise AssertionError


def _filled(fed: Sequence[tuple[int, ...]], size: int) -> list[list[tuple[int, ...]]]:
    """Fill rows of ``size`` tokens one after the other."""
    rows: list[list[tuple[int, ...]]] = [[]]
    for prefix in fed:
        if len(rows[-1]) >= size:
            rows.append([prefix[:n] for n in range(1, len(prefix))])
        rows[-1].append(prefix)
    return rows
