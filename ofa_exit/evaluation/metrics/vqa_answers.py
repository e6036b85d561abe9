"""VQA accuracy of one answer, with the answer processing of the VQA challenge's evaluation.

The rules are those of https://visualqa.org/evaluation.html and of the published evaluation
(GT-Vision-Lab/VQA, `vqaEval.py`), its quirks included, because numbers in papers have them:

- neither the prediction nor the annotators' answers are processed where all annotators wrote the
  same: "Yes" is wrong then if they wrote "yes", and "two" if they wrote "2";
- a full stop goes wherever no digit follows it (the rule says "unless it is a decimal point", the
  pattern written for it looks behind in vain), but at most 32 of them;
- a mark of punctuation is removed where it stands beside a space anywhere in the answer, or where
  the answer holds a number like 1,000; otherwise it becomes a space;
- contractions are restored from a fixed list, which lacks some ("lets", "shes") and has
  "somebody'd" the wrong way round.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

_MARKS = ';/[]"{}()=+\\_->@`,?!<'
_FULL_STOP = re.compile(r"\.(?![0-9])")
_MOST_FULL_STOPS = 32  # the published code passes re.UNICODE, which is 32, as the count
_THOUSANDS = re.compile(r"[0-9],[0-9]")
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = dict(
    none="0", zero="0", one="1", two="2", three="3", four="4", five="5", six="6", seven="7",
    eight="8", nine="9", ten="10",
)  # fmt: skip
# The published list has each of these without one of its apostrophes.
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
    word[:at] + word[at + 1 :]: word
    for word in _CONTRACTED.split()
    for at, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}
"""Word as written → word as compared.

Differs from the published list in leaving out what does nothing there: words mapped to themselves
(let's, she's), and keys with a capital letter (Im, Ive, I'dve, Id've), which no word in lower case
ever equals.
"""


# VizWiz's evaluation has the same list with ’ in the place of ', but for these.
_STRAIGHT = frozenset(["aint", "arent", "cant", "couldve", "couldnt", "weve", "wheres", "whove"])
_STRAIGHT_KEYS = frozenset(("couldn'tve", "hadn'tve"))
VIZWIZ_CONTRACTIONS = {
    key if key in _STRAIGHT_KEYS else key.replace("'", "’"): (
        word if key in _STRAIGHT else word.replace("'", "’")
    )
    for key, word in CONTRACTIONS.items()
}
"""The same for VizWiz: "dont" becomes "don’t" there, which no answer with ' equals."""


def strip_answer(answer: str) -> str:
    """Line breaks and tabs as spaces, none at the ends: done to every answer."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)  # the same few thousand answers come again and again
def normalise_answer(answer: str) -> str:
    """The answer without punctuation, capitals and articles, numbers as digits, don't for dont."""
    return _words(_punctuation(answer), CONTRACTIONS)


@lru_cache(maxsize=1 << 16)
def normalise_vizwiz_answer(answer: str) -> str:
    """The same by VizWiz's evaluation, whose contractions are written otherwise."""
    return _words(_punctuation(answer), VIZWIZ_CONTRACTIONS)


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy of a prediction, 0 to 1: the mean of min(1, matches / 3) over leaving one out.

    Antol et al. 2015, section 4, as averaged since by the challenge over the ten sets of nine
    annotators. Prediction and answers are normalised only where the annotators differ.

    Differs from the published code in leaving an answer out by its place: the code leaves out all
    that equal it with confidence and id, which is the same where answers carry ids. VQA v2 and
    OK-VQA do. Raises ValueError without answers.
    """
    prediction, answers = strip_answer(prediction), [strip_answer(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalise_answer(prediction), list(map(normalise_answer, answers))
    return _leave_one_out(prediction, answers)


def vizwiz_answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VizWiz's accuracy of a prediction, 0 to 1: VQA's formula on answers as they are published.

    Its evaluation always normalises the prediction and never the annotators' answers, which its
    annotation files hold in that form already. Raises ValueError without answers.
    """
    return _leave_one_out(normalise_vizwiz_answer(strip_answer(prediction)), answers)


def _leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    if not answers:
        raise ValueError("VQA accuracy needs the annotators' answers, here there are none")
    matches = sum(answer == prediction for answer in answers)
    # Leaving a matching answer out leaves one match fewer.
    left = matches * min(1, (matches - 1) / 3) + (len(answers) - matches) * min(1, matches / 3)
    return left / len(answers)


def _punctuation(answer: str) -> str:
    thousands = _THOUSANDS.search(answer) is not None
    text = answer
    for mark in _MARKS:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or thousands else " ")
    return _FULL_STOP.sub("", text, count=_MOST_FULL_STOPS)


def _words(answer: str, contractions: Mapping[str, str]) -> str:
    words = (_NUMBERS.get(word, word) for word in answer.lower().split())
    return " ".join(contractions.get(word, word) for word in words if word not in _ARTICLES)
