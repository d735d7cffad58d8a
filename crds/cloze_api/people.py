"""Names of people in a corpus, which no pattern tells from other words, and a model does."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from cloze_api.schema import Rule, Schema
from cloze_api.source import REVISION_PATTERN, Credentials, FolderURI, uri_rule

_STORES = ("s3://", "gs://", "hf://")


class Found(StrEnum):
    """What happens to a name."""

    REPLACE = "replace"
    """`[NAME]` stands in its place."""
    DROP = "drop"
    """Its document is dropped."""


class Names(Schema):
    """Find the names of people in documents by a model for token classification."""

    uri: FolderURI
    """The model: a folder in Hugging Face's format with weights in safetensors, as an artifact of ours is, too. Its
    digest is part of what the corpus is known by."""
    revision: Annotated[str, Field(pattern=REVISION_PATTERN, max_length=128)] | None = None
    """Branch, tag or commit of a repository at `hf://`; its main branch when absent."""
    credentials: Credentials | None = None
    """Outside a cluster the environment's variables of the same names are used instead."""
    labels: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128)]],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = []
    """Which of its labels are people's, without `B-` and `I-`. When empty: PER or PERSON, in capitals or not."""
    min_probability: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How sure the model must be of a token. A word of which one token is a name's is one."""
    found: Found = Found.REPLACE

    rules: ClassVar[tuple[Rule, ...]] = (
        uri_rule("spec.cleaning.names.uri"),
        Rule(
            cel="!has(self.revision) || self.uri.startsWith('hf://')",
            message="spec.cleaning.names.revision is for hf:// alone: remove it",
            check=lambda names: names.revision is None or names.uri.startswith("hf://"),
        ),
        Rule(
            cel="!has(self.credentials) || self.uri.startsWith('s3://') || self.uri.startsWith('gs://') || "
            "self.uri.startsWith('hf://')",
            message="spec.cleaning.names.credentials are for s3://, gs:// and hf:// alone: remove them",
            check=lambda names: names.credentials is None or names.uri.startswith(_STORES),
        ),
    )
