"""A model that is there already: a version in the registry, or a folder in Hugging Face's format."""

from typing import Annotated, ClassVar

from pydantic import Field

from cloze_api.schema import Alias, ModelName, ModelVersion, Rule, Schema, alias_rule
from cloze_api.source import REVISION_PATTERN, Credentials, FolderURI, uri_rule

#: The places of a `Pretrained`, in the words of its refusals.
_AT = "spec.base (or spec.tokenizer.reuse)"
_STORES = ("s3://", "gs://", "hf://")


class PretrainedVersion(Schema):
    """A model version in the registry, by number or by the alias that points to it when the run starts."""

    name: ModelName
    version: ModelVersion | None = None
    alias: Alias | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.version) != has(self.alias)",
            message="spec.base.model (or spec.tokenizer.reuse.model, or spec.distillation.teacher.model) needs exactly "
            "one of version and alias: set one, remove the other",
            check=lambda model: (model.version is None) != (model.alias is None),
        ),
        alias_rule("spec.base.model.alias"),
    )


class PretrainedFolder(Schema):
    """Perhaps a folder in Hugging Face's format, with weights in safetensors."""

    uri: FolderURI | None = None
    revision: Annotated[str, Field(pattern=REVISION_PATTERN, max_length=128)] | None = None
    """Branch, tag or commit of a repository at `hf://`; its main branch when absent."""
    credentials: Credentials | None = None
    """Outside a cluster the environment's variables of the same names are used instead."""

    rules: ClassVar[tuple[Rule, ...]] = (
        uri_rule("spec.base.uri", optional=True),
        Rule(
            cel="!has(self.revision) || (has(self.uri) && self.uri.startsWith('hf://'))",
            message=f"{_AT} has a revision, which is for hf:// alone: remove it",
            check=lambda folder: folder.revision is None or (folder.uri or "").startswith("hf://"),
        ),
        Rule(
            cel="!has(self.credentials) || (has(self.uri) && (self.uri.startsWith('s3://') || "
            "self.uri.startsWith('gs://') || self.uri.startsWith('hf://')))",
            message=f"{_AT} has credentials, which are for s3://, gs:// and hf:// alone: remove them",
            check=lambda folder: folder.credentials is None or (folder.uri or "").startswith(_STORES),
        ),
    )


class Pretrained(PretrainedFolder):
    """A registered version, or a folder in Hugging Face's format with weights in safetensors."""

    model: PretrainedVersion | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.model) != has(self.uri)",
            message=f"{_AT} needs exactly one of model and uri: set one, remove the other",
            check=lambda pretrained: (pretrained.model is None) != (pretrained.uri is None),
        ),
        *PretrainedFolder.rules,
    )
