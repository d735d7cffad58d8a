"""The encoder that a fine-tuning starts from: a verified artifact in the workspace."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cloze_api.finetune import FineTuneJobSpec
from cloze_api.manifest import MANIFEST_FILE, ArtifactError, Manifest, file_sha256, verify
from cloze_api.names import ENV_BASE_DIGEST, ENV_MLFLOW_URI
from cloze_api.task import Task
from cloze_trainer.console import log
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.errors import BaseModelError, InputError
from cloze_trainer.run import Run


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model that was verified. digest: of its manifest, as the registry or the folder gave it."""

    folder: Path
    name: str
    digest: str
    manifest: Manifest
    config: EncoderConfig


def open_base(folder: Path, name: str, expected_digest: str | None) -> BaseModel:
    """Verify an artifact as a base. Raises BaseModelError."""
    try:
        manifest = verify(folder, expected_digest)
    except ArtifactError as error:
        raise BaseModelError(
            f"Base{error.reason}", f"the base model {name} can't be used: {error}; name another version"
        ) from error
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise BaseModelError(
            "BaseManifestInvalid",
            f"the base model {name} isn't what its {MANIFEST_FILE} describes; name another version",
        ) from error
    if manifest.task is not Task.FILL_MASK:
        raise BaseModelError(
            "BaseTaskUnsuitable",
            f"the base model {name} is for {manifest.task}: name a fill-mask model, as a PretrainJob registers it",
        )
    if manifest.special_tokens.model_dump() != SPECIAL_IDS.model_dump():
        raise BaseModelError(
            "BaseTokenizerUnsuitable",
            f"the special tokens of the base model {name} have other ids than those of this trainer: name a model that "
            "a PretrainJob has registered",
        )
    try:
        config = EncoderConfig.read(folder / "config.json")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(
            "BaseArchitectureUnknown",
            f"the base model {name} has no config.json of an encoder that can be trained: {error}",
        ) from error
    return BaseModel(folder, name, f"sha256:{file_sha256(folder / MANIFEST_FILE)}", manifest, config)


def fetch(run: Run, spec: FineTuneJobSpec) -> BaseModel:
    """Download the base from the registry into the workspace, once, and verify it.

    Raises InputError when the spec names no exact version, BaseModelError when what arrives isn't it, RegistryError
    when MLflow doesn't answer.
    """
    if spec.base.model is None:
        raise InputError(
            "BaseUnresolved",
            "spec.base.pretrainJob is resolved by the operator, inside a cluster: outside one name base.model "
            "with a version",
        )
    if run.tracking_uri is None:
        raise InputError(
            "RegistryUnset", f"spec.base.model is in MLflow: set {ENV_MLFLOW_URI} to the registry's address"
        )
    from cloze_trainer import registry  # noqa: PLC0415 - MLflow takes seconds to import

    model = spec.base.model
    version = model.version or registry.version_of_alias(run.tracking_uri, model.name, model.alias or "")
    name = f"{model.name}/{version}"
    folder = run.workspace / "base" / name.replace("/", "-")
    expected = os.environ.get(ENV_BASE_DIGEST) or None
    if (folder / MANIFEST_FILE).is_file():
        try:
            return open_base(folder, name, expected)
        except BaseModelError as error:
            log("base model downloaded once more", base=name, why=error.reason)
            shutil.rmtree(folder)
    registry.download(run.tracking_uri, model.name, version, folder)
    return open_base(folder, name, expected)
