"""VQA accuracy of one answer, with the answer processing of the VQA challenge's evaluation.

The rules are those of https://visualqa.org/evaluation.html and of the published evaluation
(GT-Vision-Lab/VQA, `vqaEval.py`), including its quirks, which the numbers in papers have, too:

- If all annotators wrote the same, neither their answers nor the prediction are processed: "Yes" is
  wrong if they wrote "yes", and "two" if they wrote "2".
- A full stop is removed unless a digit follows it (the rule says "unless it is a decimal point"),
  but at most 32 times.
- A punctuation mark is removed if it is next to a space anywhere in the answer, or if the answer
  contains a number like 1,000. Otherwise it becomes a space.
- Contractions are restored from a fixed list, which lacks some ("lets", "shes") and reverses
  "somebody'd".
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

_MARKS = ';/[]"{}()=+\\_->@`,?!<'
_FULL_STOP = re.compile(r"\.(?![0-9])")
_MAX_FULL_STOPS = 32  # the published code passes re.UNICODE, which is 32, as the count
_THOUSANDS = re.compile(r"[0-9],[0-9]")
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = dict(
    none="0", zero="0", one="1", two="2", three="3", four="4", five="5", six="6", seven="7",
    eight="8", nine="9", ten="10",
)  # fmt: skip
# The published list maps each of these without one of its apostrophes to itself.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
CONTRACTIONS = {
    word[:index] + word[index + 1 :]: word
    for word in _CONTRACTED.split()
    for index, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}
"""Word as written → word as compared.

Differs from the published list, which also has entries without effect: words mapped to themselves
(let's, she's), and keys with a capital letter (Im, Ive, I'dve, Id've), which no lower-cased word
equals.
"""


# VizWiz's evaluation has the same list with ’ instead of ', except for these.
_STRAIGHT = frozenset(["aint", "arent", "cant", "couldve", "couldnt", "weve", "wheres", "whove"])
_STRAIGHT_KEYS = frozenset(("couldn'tve", "hadn'tve"))
VIZWIZ_CONTRACTIONS = {
    key if key in _STRAIGHT_KEYS else key.replace("'", "’"): (
        word if key in _STRAIGHT else word.replace("'", "’")
    )
    for key, word in CONTRACTIONS.items()
}
"""The list of VizWiz, where "dont" becomes "don’t", which no answer with ' equals."""


def strip_answer(answer: str) -> str:
    """Replace line breaks and tabs by spaces, and strip the ends, as for every answer."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)  # a few thousand answers recur
def normalise_answer(answer: str) -> str:
    """Remove punctuation, capitals and articles; write numbers as digits, and dont as don't."""
    return _words(_punctuation(answer), CONTRACTIONS)


@lru_cache(maxsize=1 << 16)
def normalise_vizwiz_answer(answer: str) -> str:
    """Normalise an answer as VizWiz's evaluation does, with its own contractions."""
    return _words(_punctuation(answer), VIZWIZ_CONTRACTIONS)


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the VQA accuracy of a prediction, 0 to 1.

    It is min(1, matches / 3), averaged over the ten sets of nine annotators (Antol et al. 2015,
    Section 4, and the challenge). Prediction and answers are normalised only if the annotators
    differ.
    Differs from the published code, which leaves out all answers with the same text, confidence and
    id, while this leaves out one answer. With ids, as in VQA v2 and OK-VQA, both are equal.

    Raises ValueError without answers.
    """
    prediction, answers = strip_answer(prediction), [strip_answer(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalise_answer(prediction), list(map(normalise_answer, answers))
    return _leave_one_out(prediction, answers)


def vizwiz_answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return VizWiz's accuracy of a prediction, 0 to 1: VQA's formula on the published answers.

    Its evaluation always normalises the prediction, and never the annotators' answers, which its
    files hold in normalised form. Raises ValueError without answers.
    """
    return _leave_one_out(normalise_vizwiz_answer(strip_answer(prediction)), answers)


def _leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    if not answers:
        raise ValueError("VQA accuracy needs the annotators' answers, but there are none")
    matches = sum(answer == prediction for answer in answers)
    # A set without a matching answer has one match fewer.
    total = matches * min(1, (matches - 1) / 3) + (len(answers) - matches) * min(1, matches / 3)
    return total / len(answers)


def _punctuation(answer: str) -> str:
    thousands = _THOUSANDS.search(answer) is not None
    text = answer
    for mark in _MARKS:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or thousands else " ")
    return _FULL_STOP.sub("", text, count=_MAX_FULL_STOPS)


def _words(answer: str, contractions: Mapping[str, str]) -> str:
    words = (_NUMBERS.get(word, word) for word in answer.lower().split())
    return " ".join(contractions.get(word, word) for word in words if word not in _ARTICLES)
