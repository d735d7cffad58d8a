"""A registered model that a run starts from, or takes the tokenizer of: a verified artifact in the workspace."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cloze_api.manifest import MANIFEST_FILE, ArtifactError, Manifest, file_sha256
from cloze_api.names import ENV_BASE_DIGEST, ENV_MLFLOW_URI
from cloze_api.pretrained import PretrainedVersion
from cloze_api.task import Task
from cloze_api.vocabulary import misfit
from cloze_trainer import trust
from cloze_trainer.console import log
from cloze_trainer.data.tokenizer import PretrainedTokenizer
from cloze_trainer.data.tokenizer import read as read_tokenizer
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.errors import BaseModelError, InputError
from cloze_trainer.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel(PretrainedTokenizer):
    """A base model that was verified. digest: of its manifest, or of the files of a folder that has none.

    license: that the manifest states.
    """

    config: EncoderConfig
    license: str | None = None


Opened = TypeVar("Opened", bound=PretrainedTokenizer)


def open_base(folder: Path, name: str, expected_digest: str | None) -> BaseModel:
    """Verify an artifact as what a pretraining goes on from: it predicts hidden tokens. Raises BaseModelError."""
    manifest = verified(folder, name, expected_digest)
    if manifest.task is not Task.FILL_MASK:
        raise BaseModelError(
            "BaseTaskUnsuitable",
            f"the base model {name} is for {manifest.task}: name a fill-mask model, as a PretrainJob registers it",
        )
    return _base(_hiding(folder, name, manifest), manifest)


def open_encoder(folder: Path, name: str, expected_digest: str | None) -> BaseModel:
    """Verify an artifact of any task as what a fine-tuning starts from: its encoder. Raises BaseModelError."""
    manifest = verified(folder, name, expected_digest)
    return _base(_tokenizer(folder, name, manifest), manifest)


def _base(tokenizer: PretrainedTokenizer, manifest: Manifest) -> BaseModel:
    config, limits = read_config(tokenizer.folder, tokenizer), manifest.limits
    # The tokenizer's fingerprint knows of neither. A fine-tuned model may read less than its encoder could.
    if limits.max_length > config.max_length or limits.vocab_size != config.vocab_size:
        raise BaseModelError(
            "BaseLimitsMismatch",
            f"the base model {tokenizer.name} reads {limits.max_length} tokens of {limits.vocab_size} by its "
            f"{MANIFEST_FILE}, and {config.max_length} of {config.vocab_size} by its config.json: name another version",
        )
    return BaseModel(
        folder=tokenizer.folder,
        name=tokenizer.name,
        digest=tokenizer.digest,
        special_tokens=tokenizer.special_tokens,
        lowercase=tokenizer.lowercase,
        config=config,
        license=manifest.card.license if manifest.card else None,
    )


def open_tokenizer(folder: Path, name: str, expected_digest: str | None) -> PretrainedTokenizer:
    """Verify an artifact of any task, for the sake of its tokenizer. Raises BaseModelError."""
    return _hiding(folder, name, verified(folder, name, expected_digest))


def read_config(folder: Path, tokenizer: PretrainedTokenizer) -> EncoderConfig:
    """The encoder of a base's folder. Raises BaseModelError."""
    try:
        return EncoderConfig.read(folder / "config.json", tokenizer.special_tokens)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(
            "BaseArchitectureUnknown",
            f"the base model {tokenizer.name} has no config.json of an encoder that can be trained: {error}",
        ) from error


def verified(folder: Path, name: str, expected_digest: str | None) -> Manifest:
    """The manifest of an artifact that is what it says, and signed where keys are named.

    Raises BaseModelError, InputError for keys that can't be used.
    """
    keys = trust.find()
    try:
        return trust.verify(folder, keys, expected_digest)
    except ArtifactError as error:
        raise BaseModelError(
            f"Base{error.reason}", f"the base model {name} can't be used: {error}; name another version"
        ) from error
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise BaseModelError(
            "BaseManifestInvalid",
            f"the base model {name} isn't what its {MANIFEST_FILE} describes; name another version",
        ) from error


def _hiding(folder: Path, name: str, manifest: Manifest) -> PretrainedTokenizer:
    """The tokenizer of a pretraining."""
    if manifest.special_tokens.mask is None:
        raise _unsuitable(name, "has no mask token, without which nothing can be hidden")
    return _tokenizer(folder, name, manifest)


def _tokenizer(folder: Path, name: str, manifest: Manifest) -> PretrainedTokenizer:
    check_tokenizer(folder, name, manifest)
    return PretrainedTokenizer(
        folder=folder,
        name=name,
        digest=f"sha256:{file_sha256(folder / MANIFEST_FILE)}",
        special_tokens=manifest.special_tokens,
        lowercase=manifest.lowercase,
    )


def check_tokenizer(folder: Path, name: str, manifest: Manifest) -> None:
    """Raise BaseModelError where a server would refuse the tokenizer, and what is trained with it."""
    try:
        found = misfit(read_tokenizer(folder), manifest.special_tokens, manifest.limits.vocab_size)
    except Exception as error:  # the library raises plain Exception
        raise _unsuitable(name, "can't be read") from error
    if found:
        raise _unsuitable(name, found.told)


def _unsuitable(name: str, why: str) -> BaseModelError:
    return BaseModelError("BaseTokenizerUnsuitable", f"the tokenizer of {name} {why}: name another model")


def fetch(
    run: Run,
    model: PretrainedVersion | None,
    opening: Callable[[Path, str, str | None], Opened],
    expected_from: str = ENV_BASE_DIGEST,
) -> Opened:
    """Download a version from the registry into the workspace, once, and verify it by `opening` it.

    expected_from: the variable that has the digest that the operator has decided on, if it has.

    Raises InputError when the spec names no version or a key can't be used, BaseModelError when what arrives isn't it,
    RegistryError when MLflow doesn't answer.
    """
    if model is None:
        raise InputError(
            "BaseUnresolved",
            "spec.base.pretrainJob is resolved by the operator, inside a cluster: outside one name base.model "
            "with a version, or base.uri",
        )
    if run.tracking_uri is None:
        raise InputError("RegistryUnset", f"{model.name} is in MLflow: set {ENV_MLFLOW_URI} to the registry's address")
    from cloze_trainer import registry  # noqa: PLC0415 - MLflow takes seconds to import

    version = model.version or registry.version_of_alias(run.tracking_uri, model.name, model.alias or "")
    name = f"{model.name}/{version}"
    folder = run.workspace / "base" / name.replace("/", "-")
    expected = os.environ.get(expected_from) or None
    if (folder / MANIFEST_FILE).is_file():
        try:
            return opening(folder, name, expected)
        except BaseModelError as error:
            log("base model downloaded once more", base=name, why=error.reason)
            shutil.rmtree(folder)
    registry.download(run.tracking_uri, model.name, version, folder)
    return opening(folder, name, expected)
