"""Labelled examples: where they are, and how they lie in their files."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from cloze_api.schema import Rule, Schema
from cloze_api.source import REVISION_PATTERN, STORES, Credentials, SourceURI, uri_rule

FieldName = Annotated[str, Field(min_length=1, max_length=128)]


class ExampleFormat(StrEnum):
    """How examples lie in a file."""

    JSONL = "jsonl"
    """One JSON object a line; for question answering also a document as SQuAD has it."""
    CSV = "csv"
    """Comma-separated values, the first row the columns' names. An empty cell is a field that isn't there; lists and
    objects are JSON."""
    PARQUET = "parquet"
    """Lists and structures are what they are; class labels, as data sets at Hugging Face have them, are their names."""


class ExampleFields(Schema):
    """Fields or columns that hold what the task asks for, where they have other names than its own."""

    text: FieldName | None = None
    label: FieldName | None = None
    labels: FieldName | None = None
    score: FieldName | None = None
    tokens: FieldName | None = None
    question: FieldName | None = None
    context: FieldName | None = None
    answers: FieldName | None = None
    positive: FieldName | None = None
    negative: FieldName | None = None
    other: FieldName | None = None
    metadata: Annotated[list[FieldName], Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"})] = []
    """Fields or columns of short values, each of which tells groups of examples apart, instead of one object of that
    name: with `[language]`, as `{"metadata": {"language": "de"}}` would."""


def _any(dataset: "Dataset", holds: Callable[[str], bool]) -> bool:
    return any(holds(uri) for uri in dataset.sources)


def _cel_any(condition: str) -> str:
    """CEL: whether it holds of one of the sources, which it calls `{}`."""
    whole = " || ".join(condition.format(f"self.{name}") for name in ("train", "test"))
    return f"{whole} || (has(self.validation) && ({condition.format('self.validation')}))"


class Dataset(Schema):
    """Examples, of the form that the task has, as JSON lines have it here.

    Sequence classification: `{"text": …, "label": …}`; multi-label `{"text": …, "labels": […]}`, of which there may be
    none; regression `{"text": …, "score": …}`. Token classification: `{"tokens": […], "labels": […]}` with one
    label for each word. Question answering, as SQuAD 2: `{"question": …, "context": …, "answers": {"text": […],
    "answer_start": […]}}`, with empty lists where the context has no answer, or SQuAD's own files, which are a document
    each. Embedding: `{"text": …, "positive": …}`, with or without `"negative"`; test examples have either this form or
    `{"text": …, "other": …, "score": …}`. Test examples may have `"metadata": {"language": "de"}`, of few values: the
    evaluation tells the groups apart. Files whose names end in `.gz` or `.zst` are unpacked as they are read.
    """

    train: SourceURI
    test: SourceURI
    """Examples for the evaluation; none of them is trained on."""
    validation: SourceURI | None = None
    """Examples by which a step is chosen (`optimization.earlyStopping`), of the form that test examples have."""
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of the training examples that is kept for that instead, at most: by their content, one of each label is
    trained on, and none is nearly one that is."""
    revision: Annotated[str, Field(pattern=REVISION_PATTERN, max_length=128)] | None = None
    """Branch, tag or commit of the data sets at `hf://`; their main branch when absent."""
    credentials: Credentials | None = None
    """Of all that is in stores. Outside a cluster the environment's variables of the same names are used instead, but
    for those of `https`."""
    format: ExampleFormat = ExampleFormat.JSONL
    fields: ExampleFields = ExampleFields()
    max_broken_lines: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Broken lines (rows of a table) that are passed over and counted, of each of train, test and validation; one more
    ends the job. Broken is a line that isn't UTF-8, the format's or an example of the task, or is longer than 4 MiB."""

    rules: ClassVar[tuple[Rule, ...]] = (
        uri_rule("spec.dataset.train"),
        uri_rule("spec.dataset.test"),
        uri_rule("spec.dataset.validation", optional=True),
        Rule(
            cel="!has(self.validation) || !has(self.validationFraction)",
            message="spec.dataset has validation and validationFraction, of which one is enough: remove the other",
            check=lambda dataset: dataset.validation is None or dataset.validation_fraction is None,
        ),
        Rule(
            cel="!has(self.validation) || (self.validation != self.train && self.validation != self.test)",
            message="spec.dataset.validation is the same as train or test: a step is chosen by examples that are "
            "neither trained nor tested on, so name others, or set spec.dataset.validationFraction",
            check=lambda dataset: dataset.validation not in (dataset.train, dataset.test),
        ),
        Rule(
            cel="!has(self.revision) || " + _cel_any("{}.startsWith('hf://')"),
            message="spec.dataset.revision is for hf:// alone: remove it",
            check=lambda dataset: dataset.revision is None or _any(dataset, lambda uri: uri.startswith("hf://")),
        ),
        Rule(
            cel="!has(self.credentials) || "
            + _cel_any(" || ".join(f"{{0}}.startsWith('{store}')" for store in STORES)),
            message="spec.dataset.credentials are for s3://, gs://, hf:// and https:// alone: remove them",
            check=lambda dataset: dataset.credentials is None or _any(dataset, lambda uri: uri.startswith(STORES)),
        ),
    )

    @property
    def sources(self) -> tuple[str, ...]:
        """URIs of all of it: training, test, and what a step is chosen by."""
        return (self.train, self.test, *([self.validation] if self.validation else []))
