"""`cloze-train import`: from a folder in Hugging Face's format to a verified artifact."""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from tokenizers import Tokenizer

from cloze_api.card import Card
from cloze_api.manifest import (
    TOKENIZER_FILE,
    ArtifactError,
    Embedding,
    Limits,
    Lineage,
    Manifest,
    file_sha256,
    tokenizer_fingerprint,
    verify_with_digest,
    version_tags,
)
from cloze_api.names import ENV_MLFLOW_URI
from cloze_api.precision import Measured, Precision
from cloze_api.progress import Outcome
from cloze_api.task import Task
from cloze_trainer import card, huggingface
from cloze_trainer.console import log
from cloze_trainer.errors import InputError
from cloze_trainer.files import publish
from cloze_trainer.huggingface import Checkpoint
from cloze_trainer.import_options import Asked, check
from cloze_trainer.signing import SigningKey
from cloze_trainer.tracking import JobTags

if TYPE_CHECKING:
    from cloze_trainer.conversion import Facts

KIND = "Import"


def run(asked: Asked) -> Outcome:
    """Import and, where asked, register. Raises InputError, TrainerError, OSError."""
    check(asked)
    tracking_uri = os.environ.get(ENV_MLFLOW_URI) or None
    if asked.register and tracking_uri is None:
        raise InputError("RegistryUnset", f"--register needs the registry's address: set {ENV_MLFLOW_URI}")
    key, stated = SigningKey.find(), _stated(asked)
    checkpoint = huggingface.read(
        asked.folder, asked.task, pooling=asked.pooling, normalize=asked.normalize, problem=asked.problem
    )
    sources = _sources(asked.folder)
    identity = _identity(asked, sources)
    done = _finished(asked.output, identity)
    manifest, digest = done or _import(asked, checkpoint, sources, identity, stated)
    if key is not None:
        key.sign(asked.output, manifest)
    result = Outcome(reason="Imported", message=f"the artifact is in {asked.output}", model_digest=digest)
    if not asked.register or tracking_uri is None:
        return result
    from cloze_trainer import registry  # noqa: PLC0415 - MLflow takes seconds to import

    registered = registry.register(
        tracking_uri,
        JobTags(uid=identity, job=manifest.lineage.job, task=asked.task, experiment=asked.name, repeatable=True),
        asked.output,
        digest,
        facts=version_tags(manifest),
        params={"architecture": manifest.architecture},
        figures={},
        description=card.describe(asked.output),
    )
    return result.model_copy(
        update={
            "reason": "Registered",
            "message": f"registered {registered.name} version {registered.version}",
            "model_name": registered.name,
            "model_version": registered.version,
            "run_id": registered.run_id,
        }
    )


def _sources(folder: Path) -> dict[str, str]:
    """SHA-256 of the folder's files, by name."""
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def _identity(asked: Asked, sources: dict[str, str]) -> str:
    """The same for the same files and options."""
    options: list[Any] = [asked.task, asked.name, asked.pooling, asked.normalize, asked.matryoshka]
    if asked.precision:
        examples = file_sha256(asked.examples) if asked.examples else None
        options += [sorted(asked.precision), examples, asked.max_accuracy_loss]
    options += [given for given in (asked.license, asked.problem) if given]
    return "import-" + hashlib.sha256(json.dumps([options, sources], sort_keys=True).encode()).hexdigest()[:24]


def _finished(output: Path, identity: str) -> tuple[Manifest, str] | None:
    """The artifact of an earlier, equal import. Raises InputError when something else is there."""
    if not output.exists():
        return None
    try:
        manifest, digest = verify_with_digest(output)
    except (ArtifactError, OSError):
        manifest = None
    if manifest is None or manifest.lineage.job_uid != identity:
        raise InputError("OutputExists", f"{output} holds something else: name a new folder or delete it")
    log("imported before", digest=digest)
    return manifest, digest


def _stated(asked: Asked) -> Card | None:
    """The licence, as told or as the folder's own card has it. Raises InputError."""
    theirs = asked.folder / card.CARD_FILE
    named = asked.license
    if named is None and theirs.is_file():
        named = card.license_of(theirs.read_text(encoding="utf-8", errors="replace"))
    try:
        return Card(license=named) if named else None
    except ValidationError as error:
        raise InputError(
            "LicenseInvalid", "the licence has to be one line of 1 to 128 characters: give --license"
        ) from (error)


def _import(
    asked: Asked, checkpoint: Checkpoint, sources: dict[str, str], identity: str, stated: Card | None
) -> tuple[Manifest, str]:
    # torch and transformers take seconds to import; a mistake in the folder is told before.
    from cloze_trainer import conversion  # noqa: PLC0415
    from cloze_trainer.artifact import publish_card, trainer_version  # noqa: PLC0415

    with publish(asked.output, marker=False) as staging:
        facts = conversion.write(checkpoint, staging)
        matryoshka = sorted(set(asked.matryoshka))
        if matryoshka and not (facts.dimensions and matryoshka[0] >= 1 and matryoshka[-1] < facts.dimensions):
            raise InputError("MatryoshkaInvalid", f"--matryoshka needs numbers from 1 to below {facts.dimensions}")
        measured = _add_precisions(asked, checkpoint, facts, staging)
        vectors = checkpoint.vectors
        manifest = Manifest(
            name=asked.name,
            task=asked.task,
            architecture=checkpoint.class_name,
            labels=list(checkpoint.labels),
            problem=checkpoint.problem,
            embedding=Embedding(
                dimensions=facts.dimensions,
                pooling=vectors.pooling,
                normalized=vectors.normalized,
                matryoshka=matryoshka,
            )
            if vectors
            else None,
            limits=Limits(max_length=facts.max_length, vocab_size=checkpoint.vocab_size),
            special_tokens=facts.special_tokens,
            lowercase=facts.lowercase,
            tokenizer_fingerprint=tokenizer_fingerprint(
                json.loads((staging / TOKENIZER_FILE).read_text(encoding="utf-8"))
            ),
            inputs=list(facts.inputs),
            output=facts.output,
            precisions=measured,
            card=stated,
            lineage=Lineage(
                job=asked.folder.resolve().name,
                job_uid=identity,
                kind=KIND,
                data=sources,
                created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                trainer_version=trainer_version(),
            ),
            files={},
        )
        publish_card(staging, manifest, {}, {})
    return verify_with_digest(asked.output)


def _add_precisions(asked: Asked, checkpoint: Checkpoint, facts: "Facts", folder: Path) -> dict[Precision, Measured]:
    """Graphs besides fp32's. Raises InputError for one that isn't accurate enough."""
    if not asked.precision:
        return {}
    from cloze_trainer import precisions  # noqa: PLC0415 - torch, as above
    from cloze_trainer.data import examples  # noqa: PLC0415
    from cloze_trainer.trial import Trial  # noqa: PLC0415

    if asked.examples is None:
        rows = examples.made_up(checkpoint.vocab_size, facts.max_length)
    else:
        rows = examples.read(
            asked.examples,
            asked.task,
            checkpoint.problem,
            Tokenizer.from_file(str(folder / TOKENIZER_FILE)),
            special=facts.special_tokens,
            labels=checkpoint.labels,
            max_length=facts.max_length,
        )
    trial = Trial(
        task=asked.task,
        problem=checkpoint.problem,
        inputs=facts.inputs,
        output=facts.output,
        labels=checkpoint.labels,
        batches=examples.batches(rows, pad_id=facts.special_tokens.pad, wide=asked.task is Task.FILL_MASK),
        examples=len(rows) if asked.examples else 0,
    )
    added = precisions.add(folder, asked.precision, trial, asked.max_accuracy_loss)
    if added.refused:
        raise InputError(
            "PrecisionInaccurate",
            f"{'; '.join(added.refused.values())}: leave that out of --precision, or allow more by --max-accuracy-loss",
        )
    return added.measured
