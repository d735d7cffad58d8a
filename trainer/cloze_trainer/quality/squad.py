"""Exact match and token F1 of answers, as SQuAD 2.0 defines them (Rajpurkar et al., arXiv:1806.03822).

They are shares here, and percentages there.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normal(answer: str) -> str:
    """In small letters, without punctuation, English articles and white space that tells nothing apart."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 for an answer that is one of the right ones; without any, for the empty answer."""
    return max(float(normal(answer) == normal(each)) for each in _right(right))


def f1(answer: str, right: Sequence[str]) -> float:
    """Best F1 of the answer's words over the right answers; without any, 1 for the empty answer."""
    return max(_overlap(normal(answer).split(), normal(each).split()) for each in _right(right))


def _right(answers: Sequence[str]) -> list[str]:
    return [answer for answer in answers if normal(answer)] or [""]


def _overlap(answer: Sequence[str], right: Sequence[str]) -> float:
    if not answer or not right:
        return float(answer == right)
    common = (Counter(answer) & Counter(right)).total()
    return 2 * common / (len(answer) + len(right))
