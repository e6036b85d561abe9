"""Plain lower-case words from the names and shortcodes of emoji."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

# Not descriptions of a picture: abuse, chat slang, nicknames, country codes.
UNWANTED = frozenset({"shit", "wtf", "lmao", "hankey", "hocho", "koko", "ng", "uk", "us"})
SIGNS = {"#": "number sign", "*": "asterisk", "&": "and"}
MAX_REFERENCES = 5
# A numbered duplicate, a code point, a long number, a family as initials of its members.
CODE = re.compile(r"[a-z]+[0-9]+|u[0-9a-f]{4}|[0-9]{4,}|[mwgb]{2,4}")


def plain_words(text: str) -> str:
    """Convert to lower-case ASCII words, separated by single spaces, without punctuation.

    Hyphens and underscores separate words, apostrophes join them, accents are dropped.
    """
    for sign, words in SIGNS.items():
        text = text.replace(sign, f" {words} ")
    folded = unicodedata.normalize("NFKD", text)
    folded = "".join(letter for letter in folded if not unicodedata.combining(letter))
    folded = re.sub(r"[’'‘]", "", folded.lower())
    return " ".join(re.findall(r"[a-z0-9]+", folded))


def split_compound(word: str, vocabulary: Collection[str]) -> str:
    """Split `bullettrain` into `bullet train` if both parts, but not the whole, are known words."""
    if word in vocabulary:
        return word
    for cut in range(3, len(word) - 2):
        if word[:cut] in vocabulary and word[cut:] in vocabulary:
            return f"{word[:cut]} {word[cut:]}"
    return word


def shortcode_words(code: str, vocabulary: Collection[str]) -> str | None:
    """Return a shortcode as words, or None if it is a code rather than words.

    `vocabulary` holds the words of all official names. Codes are: skin tone digits, code points,
    numbered duplicates (`dog2`), abbreviations of one or two letters, family spellings (`mwgb`).
    """
    words = [split_compound(word, vocabulary) for word in plain_words(code).split()]
    words = [{"female": "woman", "male": "man"}.get(word, word) for word in words]
    if words and words[-1] == "sign" and words[0] in ("man", "woman"):  # the female sign itself
        return None
    if words and words[-1].isdigit() and len(words[-1]) == 1:  # thumbs up's "+1", "point up 2"
        return None
    for word in words:
        if word in UNWANTED or CODE.fullmatch(word):
            return None
        if len(word) < 3 and word not in vocabulary:
            return None
    return " ".join(words) or None


def references_of(
    name: str,
    shortcodes: Mapping[str, Sequence[str]],
    vocabulary: Collection[str],
    is_flag: bool,
) -> tuple[str, ...]:
    """Return descriptions of an emoji: the official name, then synonyms, most widely used first.

    `shortcodes` maps a shortcode set to its codes for this emoji. Of a flag's codes only country
    names count; the others are ISO codes.
    """
    votes: Counter[str] = Counter()
    for codes in shortcodes.values():
        for words in {shortcode_words(code, vocabulary) for code in codes}:
            iso = is_flag and words and any(len(word) < 3 for word in words.split())
            if words and not iso:
                votes[words] += 1
    votes.pop(name, None)
    ranked = sorted(votes, key=lambda words: (-votes[words], words))
    return (name, *ranked[: MAX_REFERENCES - 1])
