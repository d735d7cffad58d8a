"""A corpus' documents: the same however they are filed and packed, with wrong lines told, bounded and counted."""

import csv
import gzip
import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from cloze_api.pretrain import Corpus, PretrainJobSpec
from cloze_trainer.data import shards
from cloze_trainer.data.documents import documents
from cloze_trainer.data.lines import LONGEST, BrokenLines
from cloze_trainer.data.passes import Unheard
from cloze_trainer.data.source import locate
from cloze_trainer.errors import InputError

FORMATS = ("paragraphs", "lines", "jsonl", "csv", "parquet")
# No line ends, which the plain formats give another meaning, and something besides blanks.
WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=30)


def corpus(form: str, **fields: Any) -> Corpus:
    return Corpus.model_validate({"uri": "file:///x", "format": form, **fields})


def encode(form: str, texts: Sequence[str]) -> bytes:
    if form == "parquet":
        sink = io.BytesIO()
        parquet.write_table(pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())}), sink)
        return sink.getvalue()
    if form == "csv":
        table = io.StringIO(newline="")
        csv.writer(table).writerows([["id", "text"], *enumerate(texts)])
        return table.getvalue().encode()
    if form == "jsonl":
        return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()
    return ("\n\n" if form == "paragraphs" else "\n").join(texts).encode()


def pack(data: bytes, end: str) -> bytes:
    if end == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return bytes(sink.getvalue())
    return gzip.compress(data, compresslevel=1) if end == ".gz" else data


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(FORMATS),
    st.lists(WORDS, min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["", ".gz", ".zst"])), max_size=4),
)
def test_files_and_compression_leave_the_documents_alone(
    form: str, texts: list[str], cuts: list[tuple[int, str]]
) -> None:
    """One file or several, packed in either way or not: the same documents in the same order."""
    with TemporaryDirectory() as folder:
        paths, begin = [], 0
        for number, (cut, end) in enumerate([*sorted(cuts), (len(texts), "")]):
            packing = "" if form == "parquet" else end
            data = pack(encode(form, texts[begin : max(begin, cut)]), packing)
            paths.append(put(Path(folder), f"{number}.{form}{packing}", data))
            begin = max(begin, cut)
        assert list(documents(corpus(form), paths)) == texts


def test_compressed_files_may_be_joined_from_several(tmp_path: Path) -> None:
    """What `cat a.gz b.gz` makes is read to its end."""
    for end in (".gz", ".zst"):
        path = put(tmp_path, f"a.txt{end}", pack(b"one\n", end) + pack(b"two\n", end))
        assert list(documents(corpus("lines"), [path])) == ["one", "two"]


def test_table_rows_may_hold_line_ends(tmp_path: Path) -> None:
    """A quoted field goes over several lines; its document is whole, and the next row's line is right."""
    path = put(tmp_path, "a.csv", b'\xef\xbb\xbfbody,id\r\n"one\r\ntwo, ""three""",1\r\n\r\nfour,2,3\r\nfive,4\r\n')
    counted = BrokenLines(1)
    found = list(documents(corpus("csv", textField="body"), [path], counted))
    assert found == ['one\r\ntwo, "three"', "five"]
    assert counted.places == [f"{path}:5 SourceNotCSV"]


@pytest.mark.parametrize(
    ("rows", "wrong", "found"),
    [
        (["unclosed", "two", "three"], [2], ["two", "three"]),
        (["one", "two", "unclosed"], [4], ["one", "two"]),
        (["unclosed", "two", '"three"', '"four"'], [2], ["two", "three", "four"]),
        (["unclosed", "two", '"three\r\nand ""more"""', "four"], [2], ["two", 'three\r\nand "more"', "four"]),
        (["unclosed", "unclosed", "three", "unclosed", '"five"', "six"], [2, 3, 5], ["three", "five", "six"]),
        (["unclosed", *["x" * 1000] * 10_000, "unclosed", "two"], [2, 10_003], [*["x" * 1000] * 10_000, "two"]),
    ],
    ids=["first", "last", "before quoted", "before several lines", "several", "longest row"],
)
def test_unclosed_quotation_mark_breaks_its_own_line_alone(
    tmp_path: Path, rows: list[str], wrong: list[int], found: list[str]
) -> None:
    """All other rows come, whatever follows: the end, quoted fields, several lines of one, more than a row may have."""
    table = ["id,text", *(f"1,{row}" for row in rows)]
    path = put(tmp_path, "a.csv", "\r\n".join(table).replace("unclosed", '"unclosed').encode())
    counted = BrokenLines(len(wrong))
    assert list(documents(corpus("csv"), [path], counted)) == found
    assert counted.places == [f"{path}:{number} SourceNotCSV" for number in wrong]


def test_broken_lines_of_a_table_keep_their_numbers(tmp_path: Path) -> None:
    """Also within what a quotation mark that isn't closed takes in."""
    path = put(tmp_path, "a.csv", b'id,text\n1,"one\n\xff\n2,two\n\n3,4,5\n6,"six"\n7,8,9\n')
    counted = BrokenLines(4)
    assert list(documents(corpus("csv"), [path], counted)) == ["two", "six"]
    assert sorted(counted.places) == [
        f"{path}:{line} {reason}"
        for line, reason in ((2, "SourceNotCSV"), (3, "SourceNotUTF8"), (6, "SourceNotCSV"), (8, "SourceNotCSV"))
    ]


@given(st.lists(st.tuples(st.text("ab ", min_size=1), st.sampled_from(["plain", "quoted", "unclosed"]))))
def test_whole_rows_come_whatever_is_broken_between_them(rows: list[tuple[str, str]]) -> None:
    """Any order of rows with a quoted field of two lines, one that isn't quoted, and one that isn't closed."""
    forms = {"plain": "{0}", "quoted": '"{0}\n{0}"', "unclosed": '"{0}'}
    with TemporaryDirectory() as folder:
        path = put(
            Path(folder), "a.csv", "\n".join(["text", *(forms[form].format(text) for text, form in rows)]).encode()
        )
        counted = BrokenLines(len(rows))
        found = list(documents(corpus("csv"), [path], counted))
    assert found == [text if form == "plain" else f"{text}\n{text}" for text, form in rows if form != "unclosed"]
    assert counted.counts.total() == sum(form == "unclosed" for _, form in rows)


def test_many_unclosed_quotation_marks_take_linear_time(tmp_path: Path) -> None:
    """Each line closes the quotation of the one before and opens another, so that no row ends before the longest."""
    line, number = b'x","a\n', 20_000
    path = put(tmp_path, "a.csv", b"id,text\n" + line * number)
    counted = BrokenLines(number)
    began = time.monotonic()
    assert not list(documents(corpus("csv"), [path], counted))
    assert time.monotonic() - began < 20
    assert counted.counts == {"SourceNotCSV": number}


GOOD = {"lines": b"fine\n", "jsonl": b'{"text": "fine"}\n', "csv": b"text\nfine\n", "paragraphs": b"fine\n\n"}


@pytest.mark.parametrize(
    ("form", "line", "reason"),
    [
        ("lines", b"\xff\xfe", "SourceNotUTF8"),
        ("lines", b"a\x00b", "SourceBinary"),
        ("lines", b"x" * (10 << 20), "LineTooLong"),
        ("paragraphs", b"\n".join([b"x" * (1 << 20)] * 10), "DocumentTooLong"),
        ("jsonl", b'{"text": ', "SourceNotJSON"),
        ("jsonl", b'["text"]', "SourceNotJSON"),
        ("jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "SourceNotJSON"),
        ("jsonl", b'{"text": ' + b"1" * 5000 + b"}", "SourceNotJSON"),
        ("jsonl", b'{"body": "x"}', "TextFieldMissing"),
        ("jsonl", b'{"text": null}', "TextFieldMissing"),
        ("jsonl", b"\xff", "SourceNotUTF8"),
        ("csv", b"a,b", "SourceNotCSV"),
        ("csv", b'"a"b', "SourceNotCSV"),
        ("csv", b"\xff", "SourceNotUTF8"),
        ("csv", b'"' + b"\n".join([b"x" * (1 << 20)] * 4) + b"\n" + b"y" * (1 << 20) + b'"', "SourceNotCSV"),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_broken_line_is_told_or_passed_over(tmp_path: Path, form: str, line: bytes, reason: str, end: str) -> None:
    """Where none is allowed the first ends the reading, with file and line; else it is counted, the rest is read."""
    head = GOOD[form]
    tail = head.removeprefix(b"text\n")
    path = put(tmp_path, f"a.txt{end}", pack(head + line + (b"\n\n" if form == "paragraphs" else b"\n") + tail, end))
    place = f"{path}:{head.count(10) + 1}"
    with pytest.raises(InputError) as refusal:
        list(documents(corpus(form), [path]))
    assert refusal.value.reason == reason
    assert f"{place} " in refusal.value.message
    assert "maxBrokenLines allows 0" in refusal.value.message
    counted = BrokenLines(1)
    # Of a row that is too long for a table the lines after the first are read as rows of their own.
    if not (form == "csv" and len(line) > LONGEST):
        assert list(documents(corpus(form), [path], counted)) == ["fine", "fine"]
        assert counted.counts == {reason: 1}
        assert counted.places == [f"{place} {reason}"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_the_longest_line_is_one_without_its_end(tmp_path: Path, end: bytes) -> None:
    """Of as many bytes as may be it is read, with one more it is passed over, and what follows is read."""
    longest, broken = b"x" * LONGEST, BrokenLines(1)
    path = put(tmp_path, "long.txt", longest + b"x" + (end or b"\n") + longest + end)
    assert [len(text) for text in documents(corpus("lines"), [path], broken)] == [LONGEST]
    assert broken.counts == {"LineTooLong": 1}


def test_one_broken_line_too_many_ends_the_reading(tmp_path: Path) -> None:
    """The bound holds over all files of a source, and the sentence names the last line and both numbers."""
    paths = [put(tmp_path, f"{number}.jsonl", b'{"text": "x"}\n{}\n') for number in range(3)]
    with pytest.raises(InputError, match=r"2\.jsonl:2 .*so far: 3, corpus\.maxBrokenLines allows 2"):
        list(documents(corpus("jsonl"), paths, BrokenLines(2)))


def test_few_of_many_broken_lines_are_named(tmp_path: Path) -> None:
    """The report stays small, whatever the corpus is like."""
    counted = BrokenLines(1000)
    assert not list(documents(corpus("jsonl"), [put(tmp_path, "a", b"x\n" * 1000)], counted))
    assert (counted.counts["SourceNotJSON"], len(counted.places)) == (1000, 10)


@pytest.mark.parametrize(
    ("form", "name", "data", "reason"),
    [
        ("lines", "a.txt.gz", pack(b"text\n" * 9999, ".gz")[:-20], "SourceDamaged"),
        ("lines", "a.txt.zst", pack(b"text\n" * 9999, ".zst")[:-5], "SourceDamaged"),
        ("lines", "a.txt.gz", b"text\n", "SourceDamaged"),
        ("lines", "a.txt.zst", b"text\n", "SourceDamaged"),
        ("lines", "a.txt", b"\x7fELF\x02\x00\x00", "SourceBinary"),
        ("csv", "a.csv", b"id,body\n1,text\n", "TextFieldMissing"),
        ("parquet", "a.parquet", b"text\n", "SourceNotParquet"),
        ("parquet", "a.parquet", encode("parquet", ["one"])[:-3], "SourceNotParquet"),
        ("parquet", "a.parquet.gz", pack(encode("parquet", ["one"]), ".gz"), "SourceFormatUnsupported"),
    ],
)
def test_unreadable_file_is_told(tmp_path: Path, form: str, name: str, data: bytes, reason: str) -> None:
    """A file that isn't what it says ends the job with its name and what to do."""
    path = put(tmp_path, name, data)
    with pytest.raises(InputError) as refusal:
        list(documents(corpus(form), [path]))
    assert refusal.value.reason == reason
    assert str(path) in refusal.value.message


def test_parquet_column_is_chosen_and_checked(tmp_path: Path) -> None:
    """Another column by `textField`; one that isn't there is refused, and a row without a text is a broken line."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"body": ["one", None, "three"], "n": [1, 2, 3]}), path)
    with pytest.raises(InputError, match=r"no column 'text'.*corpus\.textField"):
        list(documents(corpus("parquet"), [path]))
    counted = BrokenLines(1)
    assert list(documents(corpus("parquet", textField="body"), [path], counted)) == ["one", "three"]
    assert counted.places == [f"{path}:2 TextFieldMissing"]


def spec_of(path: Path, **fields: Any) -> PretrainJobSpec:
    return PretrainJobSpec.model_validate(
        {
            "corpus": [{"uri": f"file://{path}", **fields}],
            "tokenizer": {"vocabSize": 200},
            "model": {"maxLength": 16},
            "registry": {"name": "x"},
        }
    )


def test_report_counts_what_was_passed_over(tmp_path: Path) -> None:
    """Numbers, reasons and the first places are kept with the prepared corpus, also for those who reuse it."""
    texts = "".join(json.dumps({"text": f"the ship number {n} sails"}) + "\n" for n in range(50))
    path = put(tmp_path, "a.jsonl", f"{texts}{{}}\n".encode())
    source = locate(f"file://{path}", corpus_root=tmp_path, downloads=tmp_path)
    spec = spec_of(path, format="jsonl", maxBrokenLines=1)
    for reused in (False, True):
        got, again = shards.prepare(spec, [source], tmp_path / "data", Unheard())
        assert again is reused
        assert got.report["lines_broken"] == 1
        assert got.report["broken"] == {"TextFieldMissing": 1}
        assert got.report["broken_first"] == [f"{path}:51 TextFieldMissing"]


@pytest.mark.parametrize("gone", [True, False])
def test_source_that_goes_or_changes_in_mid_run_is_told(tmp_path: Path, gone: bool) -> None:
    """Nothing is made of a text that isn't the one whose digest is recorded."""
    path = put(tmp_path, "a.txt", "\n".join(f"the ship number {n} sails" for n in range(50)).encode())
    source = locate(f"file://{path}", corpus_root=tmp_path, downloads=tmp_path)
    if gone:
        path.unlink()
    else:
        path.write_text("another text\nof two lines")
    with pytest.raises(InputError, match=r"a\.txt") as refusal:
        shards.prepare(spec_of(path, format="lines"), [source], tmp_path / "data", Unheard())
    assert refusal.value.reason == ("SourceGone" if gone else "SourceChanged")
    assert not list(tmp_path.glob("data/*"))


def test_digest_tells_how_a_file_is_packed(tmp_path: Path) -> None:
    """The same bytes under a name that has them unpacked are other documents."""
    found = [
        locate(f"file://{put(tmp_path, name, b'text')}", corpus_root=tmp_path, downloads=tmp_path).digest
        for name in ("a.txt", "b.txt", "a.gz", "a.zst")
    ]
    assert len(set(found)) == 3


MEASURE = """
import re, sys
from pathlib import Path
from cloze_api.pretrain import Corpus
from cloze_trainer.data.documents import documents
corpus = Corpus.model_validate({"uri": "file:///x", "format": sys.argv[1]})
for path in sys.argv[2:]:
    length = sum(map(len, documents(corpus, [Path(path)])))
    # The process' own peak; getrusage starts with that of the process which started it.
    print(length, re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.parametrize(
    ("form", "end"), [("jsonl", ""), ("jsonl", ".zst"), ("csv", ".gz"), ("paragraphs", ""), ("parquet", "")]
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, form: str, end: str) -> None:
    """A file ten times as large takes no more memory; were it read at once, it would take its size several times."""
    texts = [f"{number} {'word ' * 2000}" for number in range(1200)]
    paths = []
    for number, times in enumerate((1, 10)):
        path = put(tmp_path, f"{number}{end}", pack(encode(form, texts * times), end))
        paths.append(str(path))
    command = [sys.executable, "-c", MEASURE, form, *paths]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    (small, before), (large, after) = zip(*[map(int, told)] * 2, strict=True)
    assert large > 9 * small > 100_000_000
    # Allocators keep some of what was given back.
    assert (after - before) * 1024 < (large - small) / 2
