"""Personal data gives way to its kind; what only looks like it stays."""

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


# The patterns as one would write them down.
PLAIN = {
    "_IBAN_START": r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}",
    "_DIGITS": r"(?<![\w.])\d(?:[ -]?\d)*(?!\w|\.\d)",
    "_IPV4": r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)",
    "_PHONE": r"(?<![\w.+-])(?:(?:\+|00)\d{1,3}[ .-]?(?:\(0?\d{1,4}\)|\d{1,4})(?:[ ./-]?\d{2,4}){2,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|[2-9]\d{2} \d{3} \d{4}|\d{3}[.-]\d{3}[.-]\d{4}"
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{2,5})(?![\w-])",
}
NEARLY = st.lists(
    st.sampled_from(["+49", "0", "00", "30", "555", "1234", "12", "DE89", "1", "a", "x", "é", "٣", "(", ")", "(0", "+"])
    | st.sampled_from([" ", ".", "-", "/", ":", "@", "_", "\n", "555 123 4567", "555-123-4567", "192.168.17.4"])
).map("".join)


@settings(max_examples=1000)
@given(NEARLY)
def test_patterns_find_what_their_plain_forms_find(text: str) -> None:
    """Fast ones begin with a character and look behind it; the places are the same."""
    for name, plain in PLAIN.items():
        fast: re.Pattern[str] = getattr(pii, name)
        found = [match.span() for match in fast.finditer(text)]
        assert found == [match.span() for match in re.finditer(plain, text)], name


def test_long_rows_of_numbers_take_linear_time() -> None:
    """A table of numbers on one line is read about once, not once for each of its numbers."""
    row = " ".join(["1234"] * 50_000)
    began = time.monotonic()
    pii.replace(row)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "text", ["version 1.2.3 of 2024-11-24", "4111 1111 1111 1112 fails Luhn's test", "at 10:45:30"]
)
def test_other_numbers_stay(text: str) -> None:
    """Dates, versions, times and numbers without a valid check digit are no personal data."""
    assert pii.replace(text) == (text, {})
