"""The demo's data and its patience: what its closing table rests on."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hack" / "demo"))

import baseline  # noqa: E402 hack/ is no installed package
import datasets  # noqa: E402
import derived  # noqa: E402
import packages  # noqa: E402
import text  # noqa: E402
import watch  # noqa: E402

GROUPS = st.lists(st.integers(0, 30), min_size=1, max_size=200)


@given(groups=GROUPS, share=st.floats(0.05, 0.5), seed=st.integers(0, 5))
def test_a_group_is_on_one_side_of_the_split(groups: list[int], share: float, seed: int) -> None:
    """Near-copies of a test's mail are never trained on, and the test is as large as asked, by one group at most."""
    held = datasets.split_groups(groups, share, seed)
    assert not {g for g, h in zip(groups, held, strict=True) if h} & {
        g for g, h in zip(groups, held, strict=True) if not h
    }
    largest = max(Counter(groups).values())
    assert share * len(groups) <= sum(held) < share * len(groups) + largest


def test_the_split_is_the_same_each_time() -> None:
    groups = [n // 3 for n in range(300)]
    assert datasets.split_groups(groups, 0.2, 7) == datasets.split_groups(groups, 0.2, 7)
    assert datasets.split_groups(groups, 0.2, 7) != datasets.split_groups(groups, 0.2, 8)


@pytest.mark.parametrize(
    ("brown", "universal"),
    [
        *(("nn", "NOUN"), ("np-tl", "NOUN"), ("nns$", "NOUN"), ("vbd", "VERB"), ("bedz*", "VERB"), ("md", "VERB")),
        *(("ppss+bem", "PRON"), ("pp$", "DET"), ("at", "DET"), ("jj-hl", "ADJ"), ("rb", "ADV"), ("cd", "NUM")),
        *(("in", "ADP"), ("cc", "CONJ"), ("rp", "PRT"), ("to", "PRT"), ("*", "PRT"), ("fw-nn", "NOUN")),
        *(("nil", "X"), (",", "."), ("--", "."), ("(-hl", "."), ("uh", "X")),
    ],
)
def test_tags_are_the_universal_ones(brown: str, universal: str) -> None:
    """Title, headline and foreign marks don't matter, and of joined tags the first counts."""
    assert text.universal_tag(brown) == universal


def test_text_is_as_people_write_it() -> None:
    words = ["``", "Well", "''", ",", "he", "said", "(", "quietly", ")", "."]
    assert text.detokenize(words) == '"Well", he said (quietly).'


def test_a_mail_keeps_nothing_that_gives_its_label_away(tmp_path: Path) -> None:
    """Headers are dropped, and the list's mark in the subject; markup too where there is no plain part."""
    folder = tmp_path / "data" / "spam-1"
    folder.mkdir(parents=True)
    mail = (
        "From: somebody@example.com\nX-Spam: yes\nSubject: [ILUG] Great offer\nContent-Type: text/html\n\n"
        "<html><style>p { color: red }</style><p>Click &amp; win a prize today</p></html>"
    )
    (folder / "1.json").write_text(json.dumps({"text": mail}))
    (found,) = text.read_mails(tmp_path)
    assert found.label == "spam"
    assert found.text == "Great offer\nClick & win a prize today"


def test_a_set_that_was_not_finished_is_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while it writes, the next demo starts over instead of training on a part."""
    document = text.Document(genre="a", name="ca01", sentences=[[("Hello", "NOUN")]])
    mails = [text.Mail(f"m{n}", "ham", f"mail number {n} about something else entirely {n * 7}") for n in range(9)]
    monkeypatch.setattr(packages, "fetch", lambda package, cache: cache)
    monkeypatch.setattr(text, "read_brown", lambda folder: [document])
    monkeypatch.setattr(text, "read_mails", lambda folder: mails)
    write = datasets._write

    def interrupted(path: Path, rows: object) -> None:
        if path.name == "corpus.jsonl":
            raise KeyboardInterrupt
        write(path, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(datasets, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        datasets.prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(datasets, "_write", write)
    folder = datasets.prepare(tmp_path)
    assert {path.name for path in folder.iterdir()} == set(datasets.FILES)
    assert datasets.prepare(tmp_path) == folder


def test_a_version_from_before_is_not_what_the_demo_waits_for() -> None:
    """A second demo's deployments are Ready with the first one's models at once."""
    reached = watch.serving("2")
    deployment = {"status": {"state": "Ready", "desired": {"version": "1"}}}
    assert not reached(deployment)
    deployment["status"]["desired"] = {"version": "2"}
    assert reached(deployment)
    deployment["status"]["state"] = "RollingOut"
    assert not reached(deployment)


def test_a_failed_job_ends_the_demo_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the reason, and a command that works as it stands."""
    failed = {
        "kind": "FineTuneJob",
        "metadata": {"name": "spam"},
        "status": {
            "state": "Failed",
            "conditions": [{"type": "Succeeded", "status": "False", "reason": "DiskFull", "message": "no space"}],
        },
    }
    monkeypatch.setattr(watch, "get", lambda namespace, kinds: [failed])
    with pytest.raises(watch.DemoError, match=r"DiskFull: no space \(see `kubectl -n n describe finetunejob spam`\)"):
        watch.follow("n", {("FineTuneJob", "spam"): watch.succeeded}, timeout=5)


def test_an_answer_that_fails_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One refused connection doesn't end a demo of ten minutes."""
    done = {"kind": "PretrainJob", "metadata": {"name": "encoder"}, "status": {"state": "Succeeded"}}
    answers = [RuntimeError("connection refused"), [done]]

    def get(namespace: str, kinds: str) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(watch, "get", get)
    assert watch.follow("n", {("PretrainJob", "encoder"): watch.succeeded}, timeout=5)
    assert answers == []


def test_the_tag_baseline_knows_words_by_their_most_frequent_tag(tmp_path: Path) -> None:
    """And an unknown word gets the most frequent tag of all."""
    train = [{"tokens": ["the", "run", "run", "run"], "labels": ["DET", "VERB", "VERB", "NOUN"]}]
    test = [{"tokens": ["The", "run", "unseen"], "labels": ["DET", "NOUN", "VERB"]}]
    for name, rows in (("train", train), ("test", test)):
        (tmp_path / f"pos-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert baseline.most_frequent_tag_accuracy(tmp_path) == pytest.approx(2 / 3)


# ---------------------------------------------------------------- the other tasks

SENTENCES = [
    {"tokens": ["Mr.", "Hull", "sold", "two", "maps", "."], "labels": ["NOUN", "NOUN", "VERB", "NUM", "NOUN", "."]},
    {"tokens": ["Who", "did", "that", ",", "then", "?"], "labels": ["PRON", "VERB", "DET", ".", "ADV", "."]},
    {"tokens": ["``", "Nobody", "''", ",", "he", "said", "."], "labels": [".", "NOUN", ".", ".", "PRON", "VERB", "."]},
]


def test_a_subject_is_searched_for_once() -> None:
    """Answers share their subject; what is short says nothing."""
    body = "a long enough text " * 10
    mails = [
        {"text": f"Re: FW: Maps of London\n{body}"},
        {"text": f"maps of london\nanother {body}"},
        {"text": f"Hi\n{body}"},
        {"text": "A good subject\nshort"},
    ]
    assert list(derived.pairs(mails)) == [{"text": "Maps of London", "positive": body}]


def test_what_a_sentence_holds_comes_from_its_words_and_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    """As running text, with the labels, the share, and the answer where it stands."""
    monkeypatch.setattr(derived, "_EVERY", 1)
    assert [row["labels"] for row in derived.contents(SENTENCES)] == [["number"], ["question"], ["quotation"]]
    assert [row["score"] for row in derived.nouns(SENTENCES)] == [0.6, 0.0, 0.3333]
    nobody = [{"tokens": ["They", "sold", "it", "."], "labels": ["PRON", "VERB", "PRON", "."]}] * 3
    answered, unanswered = derived.questions([*SENTENCES, *nobody])
    (start,), (answer,) = answered["answers"]["answer_start"], answered["answers"]["text"]
    assert (answered["question"], answer) == ("Who is called Mr.?", "Hull")
    assert answered["context"][start:].startswith(answer)
    assert unanswered["answers"] == {"text": [], "answer_start": []}


def test_the_trainer_takes_the_examples_of_every_task(tmp_path: Path) -> None:
    """Each file has the form of its job in examples/tasks.yaml, and answers or labels that the job may have."""
    from cloze_api.resources import parse_job  # noqa: PLC0415 - seconds, for one test
    from cloze_trainer import tasks  # noqa: PLC0415

    demo = tmp_path / "demo"
    demo.mkdir()
    mails = [{"text": f"Subject number {n}\n{'some words of a mail ' * 9}", "label": "ham"} for n in range(20)]
    for side in ("train", "test"):
        datasets._write(demo / f"spam-{side}.jsonl", mails)
        datasets._write(demo / f"pos-{side}.jsonl", SENTENCES * 48)
    folder = derived.prepare(demo)
    assert derived.prepare(demo) == folder
    seen = set()
    for document in yaml.safe_load_all((ROOT / "examples" / "tasks.yaml").read_text(encoding="utf-8")):
        document["metadata"] |= {"uid": "u", "namespace": "n"}
        spec = parse_job(document).spec
        names = [uri.removeprefix("pvc://demo-data/") for uri in (spec.dataset.train, spec.dataset.test)]
        if not set(names) <= set(derived.FILES):
            assert set(names) <= set(datasets.FILES)
            continue
        kind = tasks.of(spec.task, spec.problem)
        train, test = (kind.read([folder / name]) for name in names)
        kind.labels(train, test, spec.labels)
        seen |= set(names)
    assert seen == set(derived.FILES)
