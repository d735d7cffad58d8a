"""Personal data gives way to its kind; what only looks like it stays."""

import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze_api.pretrain import PII, Cleaning
from cloze_trainer.data import pii
from cloze_trainer.data.cleaning import clean
from cloze_trainer.data.spool import Spool


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to ada.lovelace@example.org today", "EMAIL"),
        ("the card 4111 1111 1111 1111 was charged", "CARD"),
        ("account DE89 3704 0044 0532 0130 00 is closed", "IBAN"),
        ("host 192.168.17.4 is down", "IP"),
        ("host 2001:db8::17 is down", "IP"),
        ("call +49 30 1234567 now", "PHONE"),
        ("call (555) 123-4567 now", "PHONE"),
        ("call 555 123 4567 now", "PHONE"),
        ("call 0049 30 1234567 now", "PHONE"),
        ("account be68539007547034 is closed", "IBAN"),
        ("account de89 3704 0044 0532 0130 00 is closed", "IBAN"),
        ("account BE68-5390-0754-7034 is closed", "IBAN"),
        ("account BE68 5390 0754 7034 PAID", "IBAN"),
        ("the card 3782 822463 10005 was charged", "CARD"),
        ("the card 4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 was charged", "CARD"),
        ("host fe80::1ff:fe23:4567:890a is down", "IP"),
        ("account DE 89 3704 0044 0532 0130 00 is closed", "IBAN"),
        ("account GB-29-NWBK-6016-1331-9268-19 is closed", "IBAN"),
        ("the card 4111.1111.1111.1111 was charged", "CARD"),
        ("the card 3782.822463.10005 was charged", "CARD"),
        ("call 1-800-555-1234 now", "PHONE"),
        ("call 1.800.555.1234 now", "PHONE"),
        ("call (089) 123456 now", "PHONE"),
        ("call (089) 12 34 56-78 now", "PHONE"),
        ("write to user@münchen.de today", "EMAIL"),
        ("write to ada@почта.рф today", "EMAIL"),
    ],
)
def test_personal_data_is_replaced_by_its_kind(text: str, kind: str) -> None:
    """The datum is gone, its kind stands in its place, and only a count is kept."""
    replaced, counts = pii.replace(text)
    assert f"[{kind}]" in replaced
    assert counts == {kind: 1}
    assert not any(character.isdigit() for character in replaced)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4111 1111 1111 1111 12/26 123", "[CARD] 12/26 123"),
        ("4111-1111-1111-1111 123 cvv", "[CARD] 123 cvv"),
        ("1 4111 1111 1111 1111", "1 [CARD]"),
        ("order 20 4111111111111111", "order 20 [CARD]"),
        ("4111 1111 1111 1111 5500 0000 0000 0004", "[CARD] [CARD]"),
        ("4111111111111111.", "[CARD]."),
        ("BE68 5390 0754 7034 PAID", "[IBAN] PAID"),
        ("BE68 5390 0754 7034 2024-01-01", "[IBAN] 2024-01-01"),
        ("pay GB29NWBK60161331926819, now", "pay [IBAN], now"),
    ],
)
def test_numbers_beside_a_datum_do_not_hide_it(text: str, expected: str) -> None:
    """Expiry dates, order numbers, amounts and words next to a card or account number."""
    assert pii.replace(text)[0] == expected


BLANKS = [" ", "\u00a0", "\u2007", "\u2009", "\u200a", "\u200b", "\u202f", "\u3000", "\ufeff"]
HYPHENS = ["-", "\u00ad", "\u2010", "\u2011"]
DASHES = ["\u2012", "\u2013", "\u2212"]
WRITTEN = {
    "4111 1111 1111 1111": "CARD",
    "3782 822463 10005": "CARD",
    "DE89 3704 0044 0532 0130 00": "IBAN",
    "DE 89 3704 0044 0532 0130 00": "IBAN",
    "GB29 NWBK 6016 1331 9268 19": "IBAN",
    "+49 30 1234567": "PHONE",
    "0049 30 1234567": "PHONE",
    "089 1234 5678": "PHONE",
    "555 123 4567": "PHONE",
    "(555)123 4567": "PHONE",
}


@given(
    st.sampled_from(sorted(WRITTEN)), st.sampled_from([*BLANKS, *HYPHENS, *DASHES]), st.text("ab, é"), st.text("ab, é")
)
def test_blanks_and_hyphens_of_all_kinds_separate(datum: str, separator: str, before: str, after: str) -> None:
    """What stands between the groups of a number, as word processors and browsers put it there, goes with it."""
    text = f"{before} {datum.replace(' ', separator)} {after}"
    assert pii.replace(text)[0] == f"{before} [{WRITTEN[datum]}] {after}"


def test_places_are_those_that_are_replaced() -> None:
    """Each in the text's order, none within another, with the kind that it is replaced by."""
    text = "DE89 3704 0044 0532 0130 00, ada@example.org or +49 30 1234567; 4111 1111 1111 1111 (10.1.2.3)"
    found = pii.spans(text)
    assert [kind for kind, _ in found] == ["IBAN", "EMAIL", "PHONE", "CARD", "IP"]
    for kind, (start, end) in reversed(found):
        text = f"{text[:start]}[{kind}]{text[end:]}"
    assert text == "[IBAN], [EMAIL] or [PHONE]; [CARD] ([IP])"


@pytest.mark.parametrize(
    "text", ["a::b", "f::d", "std::f::d", "cafe::babe", "a::1", "BE68 5390 0754 7035", "100 200 3000"]
)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    """Names of programs in which hexadecimal letters surround colons, and numbers without a valid check digit."""
    assert pii.replace(text) == (text, {})


def test_documents_with_personal_data_are_dropped_and_counted(tmp_path: Path) -> None:
    """Whole, where that is asked for; nothing of them is left, and the others stay as they are."""
    texts = [
        "write to ada.lovelace@example.org today, or call +49 30 1234567",
        "the card 4111 1111 1111 1111 was charged",
        "version 1.2.3 of 2024-11-24",
    ]
    left = {}
    for wanted in PII:
        with Spool(tmp_path) as spool:
            report = clean(texts, Cleaning(pii=wanted), spool).report
            left[wanted] = list(spool), report.dropped["pii"], report.replaced.total(), report.documents_out
    assert left[PII.KEEP] == (texts, 0, 0, 3)
    assert left[PII.REPLACE][1:] == (0, 3, 3)
    assert left[PII.DROP] == (texts[2:], 2, 0, 1)


# The patterns as one would write them down; a group is what the fast one finds.
PLAIN = {
    "_IBAN_CHECK": r"(?<![A-Za-z0-9])(?:[A-Za-z]{2}|[A-Z]{2}[ -])(\d{2})",
    "_CARD_DOT": r"(?<![\w.])\d{4}(\.(?:\d{4}\.\d{4}\.\d{4}|\d{6}\.\d{5}))(?!\w|\.\d)",
    "_DIGITS": r"(?<![\w.])\d(?:[ -]?\d)*(?!\w|\.\d)",
    "_IPV4": r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)",
    "_PHONE": r"(?<![\w.+-])(?:(?:\+|00)\d{1,3}[ .-]?(?:\(0?\d{1,4}\)|\d{1,4})(?:[ ./-]?\d{2,4}){2,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|[2-9]\d{2} \d{3} \d{4}|\d{3}[.-]\d{3}[.-]\d{4}"
    r"|1[.-][2-9]\d{2}[.-]\d{3}[.-]\d{4}|\(0\d{2,4}\) ?(?=(?:[ /-]?\d){5})\d{2,8}(?:[ /-]\d{2,5}){0,3}"
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{2,5})(?![\w-])",
}
NEARLY = st.lists(
    st.sampled_from(["+49", "0", "00", "30", "555", "1234", "12", "DE89", "1", "a", "x", "é", "٣", "(", ")", "(0", "+"])
    | st.sampled_from([" ", ".", "-", "/", ":", "@", "_", "\n", "555 123 4567", "555-123-4567", "192.168.17.4"])
    | st.sampled_from(["4111.1111.1111.1111", "3782.822463.10005", "DE ", "89", "(089)", "1-800-555-1234"])
).map("".join)


@settings(max_examples=300)
@given(NEARLY, st.randoms(use_true_random=False))
def test_a_blank_or_hyphen_is_like_any_other(text: str, chance: random.Random) -> None:
    """The same places, whatever they are written with."""
    odd = re.sub("[ -]", lambda sign: chance.choice(BLANKS if sign[0] == " " else HYPHENS), text)
    assert pii.spans(odd) == pii.spans(text)


@settings(max_examples=1000)
@given(NEARLY)
def test_patterns_find_what_their_plain_forms_find(text: str) -> None:
    """Fast ones begin with a character and look behind it; the places are the same."""
    for name, plain in PLAIN.items():
        fast: re.Pattern[str] = getattr(pii, name)
        found = [match.span() for match in fast.finditer(text)]
        assert found == [match.span(match.lastindex or 0) for match in re.finditer(plain, text)], name


def test_long_rows_of_numbers_take_linear_time() -> None:
    """A table of numbers on one line is read about once, not once for each of its numbers."""
    row = " ".join(["1234"] * 50_000)
    began = time.monotonic()
    pii.replace(row)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3 of 2024-11-24",
        "4111 1111 1111 1112 fails Luhn's test",
        "4111.1111.1111.1112 fails it, too",
        "at 10:45:30",
        "ISBN 978-3-16-148410-0 or 1-86197-271-7",
        "in 1990\u20131999, from 1. to 24.\u00a012.\u00a02024",
        "1\u202f234\u202f567,89\u00a0€ and 12\u00a0345\u00a0678\u00a0kr",
        "1.234.567,89 or 1.234.567.890",
        "2345.6789012345675 and 0.4111111111111111 and 1234.5678 2345.6789",
        "(0123) 4567, (2024) 123456 and (007) 12",
        "at 61 1904 3002 3457 3201",
    ],
)
def test_other_numbers_stay(text: str) -> None:
    """Dates, versions, times, amounts and numbers without a valid check digit are no personal data."""
    assert pii.replace(text) == (text, {})
