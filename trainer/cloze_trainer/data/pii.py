"""Replaces personal data by words that name its kind; what was found is counted, never kept.

They are searched in a copy of the text, of the same length, in which every kind of blank and hyphen is the plain one.

Card and account numbers are told from other digits by their check digits. They stand next to other numbers often (an
expiry date, an order number, an amount), so within each run of groups every start and every valid length is tried.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator

Span = tuple[int, int]

# Some blanks have no width.
_BLANK = re.compile(r"[\u00a0\u1680\u2000-\u200b\u202f\u205f\u2060\u3000\ufeff]")
# A dash is one between digits, capitals and brackets alone: elsewhere it sets words apart.
_HYPHEN = re.compile(
    r"[\u00ad\u2010-\u2013\u2212\ufe63\uff0d](?:(?<=[\u00ad\u2010\u2011\ufe63\uff0d])|(?<=[\dA-Z)].)(?=[\dA-Z(]))"
)

# Patterns begin with a character, of which the library finds the next at once, and look behind it afterwards.
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b")
# Check digits of an account number, behind its country; with a blank or hyphen between them behind capitals alone, as
# `at 10` and `is 20` are words.
_IBAN_CHECK = re.compile(
    r"\d\d(?:(?<=[A-Za-z]{2}\d\d)(?<![A-Za-z0-9][A-Za-z]{2}\d\d)|(?<=[A-Z]{2}[ -]\d\d)(?<![A-Za-z0-9][A-Z]{2}[ -]\d\d))"
)
# Digits and single separators between them, as far as they go.
_DIGITS = re.compile(r"\d(?<![\w.]\d)(?:[ -]?\d)*(?!\w|\.\d)")
# The first dot of a card number: dots are in other numbers, too, so that only the usual lengths of its parts count.
_CARD_DOT = re.compile(r"\.(?<=(?<![\w.])\d{4}\.)(?:\d{4}\.\d{4}\.\d{4}|\d{6}\.\d{5})(?!\w|\.\d)")
_GROUP = re.compile(r"\d+")
_IPV4 = re.compile(r"\d(?<![\d.]\d)\d{0,2}\.(?:\d{1,3}\.){2}\d{1,3}(?![\d.]*\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_PHONE = re.compile(
    r"[+(\d](?<![\w.+-][+(\d])"
    r"(?:(?:(?<=\+)|(?<=0)0)\d{1,3}[ .-]?(?:\(0?\d{1,4}\)|\d{1,4})(?:[ ./-]?\d{2,4}){2,4}"
    r"|(?<=\()\d{3}\) ?\d{3}[ .-]\d{4}|(?<=[2-9])\d{2} \d{3} \d{4}|(?<=\d)\d{2}[.-]\d{3}[.-]\d{4}"
    r"|(?<=1)[.-][2-9]\d{2}[.-]\d{3}[.-]\d{4}|(?<=\()0\d{2,4}\) ?(?=(?:[ /-]?\d){5})\d{2,8}(?:[ /-]\d{2,5}){0,3}"
    r"|(?<=0)\d{2,4}[ /-]\d{3,4}[ -]?\d{2,5})(?![\w-])"
)

_CARD_DIGITS = range(13, 20)
"""Lengths of card numbers (ISO/IEC 7812-1)."""
# First digits of payment cards; 0, 1 and 7 belong to other industries.
_CARD_STARTS = frozenset({2, 3, 4, 5, 6, 8, 9})

IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ DZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}
"""Characters of an account number by country (ISO 13616, SWIFT's IBAN registry)."""


def luhn(number: str) -> bool:
    """Whether the digits carry a valid check digit (ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in number if character.isdigit()]
    total = sum(digits[-1::-2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return len(digits) in _CARD_DIGITS and total % 10 == 0 and digits[0] in _CARD_STARTS


def iban(number: str) -> bool:
    """Whether the account number has its country's length and valid check digits (ISO 13616, modulus 97)."""
    compact = re.sub("[ -]", "", number).upper()
    if len(compact) != IBAN_LENGTHS.get(compact[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def _ibans(text: str) -> Iterator[Span]:
    """Account numbers, in one piece or with single blanks or hyphens, whatever follows them after a blank or a sign."""
    for match in _IBAN_CHECK.finditer(text):
        start = match.start() - (3 if text[match.start() - 1] in " -" else 2)
        length = IBAN_LENGTHS.get(text[start : start + 2].upper())
        if length is None:
            continue
        at, characters = start, 0
        while at < len(text) and characters < length:
            if text[at].isascii() and text[at].isalnum():
                characters += 1
            elif text[at] not in " -" or text[at - 1] in " -":
                break
            at += 1
        ends = at == len(text) or not text[at].isalnum()
        if characters == length and ends and iban(text[start:at]):
            yield start, at


def _cards(text: str) -> Iterator[Span]:
    """Card numbers: whole groups of digits, the longest valid number first, from the leftmost group on."""
    for match in _DIGITS.finditer(text):
        groups = [(match.start() + group.start(), match.start() + group.end()) for group in _GROUP.finditer(match[0])]
        first = 0
        while first < len(groups):
            for last in _card_ends(groups, first):
                if luhn(text[groups[first][0] : groups[last][1]]):
                    yield groups[first][0], groups[last][1]
                    first = last
                    break
            first += 1


def _dotted_cards(text: str) -> Iterator[Span]:
    for match in _CARD_DOT.finditer(text):
        start, end = match.start() - 4, match.end()
        if luhn(text[start:end]):
            yield start, end


def _card_ends(groups: list[Span], first: int) -> list[int]:
    """Groups with which a number that begins with the first one may end, the farthest first.

    Cards are written in one piece, in groups of four or more digits but for the last, or digit by digit; other series
    of numbers would pass the check by chance, one in ten.
    """
    sizes = [end - start for start, end in groups[first : first + _CARD_DIGITS[-1]]]
    if len(groups) in _CARD_DIGITS and first == 0 and set(sizes) == {1}:
        return [len(groups) - 1]
    ends, digits = [], 0
    for last, size in enumerate(sizes, start=first):
        digits += size
        if digits in _CARD_DIGITS:
            ends.append(last)
        if digits >= _CARD_DIGITS[-1] or size < 4:
            break
    return ends[::-1]


def _matches(pattern: re.Pattern[str], valid: Callable[[str], bool] = bool) -> Callable[[str], Iterator[Span]]:
    def find(text: str) -> Iterator[Span]:
        return (match.span() for match in pattern.finditer(text) if valid(match.group()))

    return find


def _ipv6(text: str) -> bool:
    """Whether it's an address, and one with as much in it as no `a::b` of a program has."""
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    groups = [group for group in text.split(":") if group]
    telling = any(len(group) > 2 and any(map(str.isdigit, group)) for group in groups)
    return text == "::1" or (len(groups) > 1 and telling) or len(groups) > 3


def _ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


# Kind, a sign that all data of the kind hold, if there is one, and what finds them.
_KINDS: tuple[tuple[str, str, Callable[[str], Iterator[Span]]], ...] = (
    ("EMAIL", "@", _matches(_EMAIL)),
    ("IBAN", "", _ibans),
    ("CARD", "", _cards),
    ("CARD", ".", _dotted_cards),
    ("IP", ".", _matches(_IPV4, _ipv4)),
    ("IP", ":", _matches(_IPV6, _ipv6)),
    ("PHONE", "", _matches(_PHONE)),
)


def plain(text: str) -> str:
    """The text, character by character, with a plain blank or hyphen for each other one that may be within a number."""
    return text if text.isascii() else _HYPHEN.sub("-", _BLANK.sub(" ", text))


def spans(text: str) -> list[tuple[str, Span]]:
    """Kind and place of such data, in the text's order; none within another."""
    found: list[tuple[str, Span]] = []
    text = plain(text)
    for kind, sign, find in _KINDS:
        if sign not in text:
            continue
        parts, done = [], 0
        for start, end in find(text):
            if start < done:
                continue
            found.append((kind, (start, end)))
            parts += [text[done:start], "\n" * (end - start)]
            done = end
        # What was found is no part of another kind's, and the places of the rest stay.
        text = "".join([*parts, text[done:]])
    return sorted(found, key=lambda each: each[1])


def replace(text: str) -> tuple[str, Counter[str]]:
    """The text with `[EMAIL]`, `[IBAN]`, `[CARD]`, `[IP]`, `[PHONE]` in place of such data, and how many of each."""
    parts, done, found = [], 0, spans(text)
    for kind, (start, end) in found:
        parts += [text[done:start], f"[{kind}]"]
        done = end
    return "".join([*parts, text[done:]]), Counter(kind for kind, _ in found)
