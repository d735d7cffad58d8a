"""The model card tells what the artifact's own files say, and nothing that somebody has written breaks out of it."""

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze_api.card import Card
from cloze_api.manifest import Calibration, Limits, Lineage, Manifest
from cloze_api.precision import Measured, Precision, Slice
from cloze_api.task import Task
from cloze_trainer import card
from cloze_trainer.data.tokenizer import SPECIAL_IDS

GOLDEN = Path(__file__).with_name("card.md")
REPORT: dict[str, Any] = {
    "confidence": 0.95,
    "slices": {
        "language=de": {"examples": 40, "figure": 0.85, "counts": True},
        "language=en": {"examples": 400, "figure": 0.97, "counts": True},
        "language=fr": {"examples": 2, "figure": 0.0, "counts": False},
    },
    "gates": [{"gate": "accuracy", "passed": True, "message": "accuracy is 0.9600, and must be at least 0.9"}],
}
SETTINGS = {"optimization.epochs": "3", "optimization.learningRate": "0.0001"}


def manifest(**changes: Any) -> Manifest:
    given: dict[str, Any] = {
        "name": "spam",
        "task": Task.SEQUENCE_CLASSIFICATION,
        "architecture": "BertForSequenceClassification",
        "labels": ["ham", "spam"],
        "limits": Limits(max_length=128, vocab_size=30522),
        "special_tokens": SPECIAL_IDS,
        "lowercase": True,
        "tokenizer_fingerprint": "f" * 64,
        "inputs": ["input_ids"],
        "output": "logits",
        "precisions": {
            Precision.INT8: Measured(
                difference=0.01,
                metric="accuracy",
                fp32=0.96,
                value=0.955,
                examples=440,
                worst_slice=Slice(name="language=de", examples=40, fp32=0.85, value=0.825, chance=0.05),
            )
        },
        "evaluation": {
            "accuracy": 0.96,
            "lower_accuracy": 0.94,
            "upper_accuracy": 0.98,
            "worst_slice_accuracy": 0.85,
            "data_examples": 5000.0,
            "data_test_seen_share": 0.0123,
        },
        "calibration": Calibration(temperature=1.5),
        "card": Card(
            license="apache-2.0",
            data_license="CC BY-SA 4.0",
            base_license="mit",
            intended_use="Filters mails.\nNot for anything else.",
            limitations="Mails in English and German.",
        ),
        "lineage": Lineage(
            job="ml/spam",
            job_uid="11111111-2222-3333-4444-555555555555",
            kind="FineTuneJob",
            base="hf://owner/name",
            base_digest="sha256:" + "b" * 64,
            data={"hf://datasets/owner/mails/train.jsonl": "c" * 64, "pvc://mails/test.jsonl": "d" * 64},
            created="2026-01-02T03:04:05Z",
            trainer_version="0.1.0",
        ),
        "files": {},
    }
    return Manifest(**given | changes)


def test_the_whole_card() -> None:
    """All that a reviewer asks for, to the last character; write the file anew when it is to be another."""
    assert card.render(manifest(), REPORT, SETTINGS) == GOLDEN.read_text(encoding="utf-8")


def test_the_hub_reads_its_front_matter() -> None:
    """Licence, base, data and metrics are found where Hugging Face's library looks for them; others' names stay out."""
    data = ModelCard(card.render(manifest(), REPORT, SETTINGS)).data
    assert (data.license, data.base_model, data.datasets) == ("apache-2.0", "owner/name", ["owner/mails"])
    assert (data.pipeline_tag, data.metrics) == ("text-classification", ["accuracy"])
    own = manifest(
        card=Card(license="Our own, 2026"),
        lineage=Lineage(
            job="x",
            job_uid="x",
            kind="FineTuneJob",
            base="encoder/4",
            data={"pvc://a/b": "c"},
            created="x",
            trainer_version="x",
        ),
    )
    text = card.render(own, {}, {})
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.base_model, data.datasets) == ("other", "Our own, 2026", None, None)
    assert card.license_of(text) == "Our own, 2026"


def test_data_of_many_files_is_one_row() -> None:
    """The manifest has each of them."""
    files = {f"pvc://mails/2026/part-{number}.jsonl": str(number) * 64 for number in range(9)}
    lineage = manifest().lineage.model_copy(update={"data": {"pvc://mails/2026": "a" * 64, **files}})
    text = card.render(manifest(lineage=lineage), REPORT, SETTINGS)
    assert f"| pvc://mails/2026 (9 files) | {'a' * 64} |" in text
    assert "part-" not in text


def test_a_licence_is_one_line() -> None:
    """As a manifest takes it, whatever a card's front matter has."""
    assert card.license_of("---\nlicense: other\nlicense_name: |\n  Our own,\n  2026\n---\n") == "Our own, 2026"
    assert card.license_of("---\nlicense: ' '\n---\n") is None
    assert card.license_of("---\nlicense: mit\ndate: 2023-02-30\n---\n") is None


def test_what_nobody_has_stated_is_said() -> None:
    """An unknown licence is no licence, and a model without figures hasn't been evaluated."""
    text = card.render(manifest(card=None, evaluation={}, precisions={}, calibration=None), {}, {})
    assert "| this model | not stated |" in text
    assert "| its base | not stated |" in text
    assert "It has not been evaluated." in text
    assert card.license_of(text) is None


def test_a_bases_licence_is_that_of_the_base_unless_the_job_states_one() -> None:
    """Nothing is stated by itself where neither says a word."""
    assert card.stated(None, None) is None
    assert card.stated(None, "mit") == Card(base_license="mit")
    assert card.stated(Card(license="apache-2.0"), "mit") == Card(license="apache-2.0", base_license="mit")
    own = Card(base_license="cc-by-4.0")
    assert card.stated(own, "mit") is own
    assert card.stated(own, "mit", "bsd") == own.model_copy(update={"teacher_license": "bsd"})


def test_a_students_card_names_its_teacher() -> None:
    """With its digest and its licence; a manifest without one says nothing of it, as older servers expect."""
    own = manifest()
    taught = {"teacher": "large/3", "teacher_digest": "sha256:" + "e" * 64}
    student = manifest(lineage=own.lineage.model_copy(update=taught), card=Card(teacher_license="bsd"))
    text = card.render(student, {}, {})
    assert "| its teacher | bsd |" in text
    assert "| teacher | large/3 |" in text
    assert f"| teacher's digest | sha256:{'e' * 64} |" in text
    assert "teacher" not in own.model_dump_json()


HOSTILE = st.text(alphabet="|`<>[]()#=-\n \ta*_", min_size=1, max_size=40)


@settings(max_examples=40)
@given(label=HOSTILE, use=HOSTILE, source=HOSTILE)
def test_no_text_makes_rows_headings_or_tags(label: str, use: str, source: str) -> None:
    """The same headings and rows, and as many columns, whatever labels, paths and people's texts are made of."""

    def shape(text: str) -> list[str]:
        lines = card.description(text).replace("\\|", "x").splitlines()
        return [line if line.startswith("#") else str(line.count("|")) for line in lines if line[:1] in ("#", "|")]

    lineage = manifest().lineage
    hostile = manifest(
        labels=["ham", label],
        card=manifest().card.model_copy(update={"intended_use": use}),  # type: ignore[union-attr] - it has one
        lineage=lineage.model_copy(update={"data": {source: "c" * 64, "pvc://mails/test.jsonl": "d" * 64}}),
    )
    text = card.render(hostile, REPORT, SETTINGS)
    assert shape(text) == shape(card.render(manifest(), REPORT, SETTINGS))
    outside = re.sub(r"`[^`\n]*`", "", text.replace("\\`", ""))
    assert "<" not in outside.replace("\\<", "")


@pytest.mark.parametrize("labels", [2, 5000])
def test_a_description_is_no_longer_than_mlflow_keeps(labels: int) -> None:
    """It ends at a line's end, and says where the rest is; front matter is for the hub."""
    names = [f"label-{number}" for number in range(labels)]
    data = {f"pvc://mails/{number}.jsonl": "e" * 64 for number in range(labels)}
    lineage = manifest().lineage.model_copy(update={"data": data})
    text = card.description(card.render(manifest(labels=names, lineage=lineage), REPORT, SETTINGS))
    assert len(text) <= 5000
    assert text.startswith("# spam\n")
    assert ("The whole card is README.md" in text) == (labels > 2)
