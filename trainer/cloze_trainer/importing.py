"""`cloze-train import`: from a folder in Hugging Face's format, here or in a store, to a verified artifact."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from tokenizers import Tokenizer

from cloze_api.card import Card
from cloze_api.evaluation import Evaluation
from cloze_api.manifest import (
    IMPORT_KIND,
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
from cloze_api.names import CORPUS_MOUNT, ENV_CORPUS_ROOT, ENV_MLFLOW_URI
from cloze_api.precision import Measured, Precision
from cloze_api.pretrained import PretrainedFolder
from cloze_api.profile import PROFILE_FILE
from cloze_api.progress import Outcome
from cloze_api.task import Task
from cloze_trainer import card, huggingface, own_registry
from cloze_trainer.adoption import find_whole
from cloze_trainer.console import log
from cloze_trainer.data import word_blanks
from cloze_trainer.data.records import JSON_LINES
from cloze_trainer.errors import InputError
from cloze_trainer.files import publish, write_json
from cloze_trainer.huggingface import Checkpoint
from cloze_trainer.import_options import Asked, check
from cloze_trainer.signing import SigningKey
from cloze_trainer.tracking import JobTags

if TYPE_CHECKING:
    from cloze_trainer.conversion import Facts
    from cloze_trainer.data.examples import Row


def run(asked: Asked) -> Outcome:
    """Import and, where asked, register. Raises InputError, TrainerError, OSError."""
    check(asked)
    tracking_uri = own_registry.address()
    if asked.register and tracking_uri is None:
        raise InputError("RegistryUnset", f"--register needs a registry: set {ENV_MLFLOW_URI}, or install mlflow")
    key = SigningKey.find()
    with _folder(asked) as folder:
        manifest, digest = _artifact(asked, folder)
    if key is not None:
        key.sign(asked.output, manifest)
    result = Outcome(reason="Imported", message=f"the artifact is in {asked.output}", model_digest=digest)
    if not asked.register or tracking_uri is None:
        return result
    from cloze_trainer import registry  # noqa: PLC0415 - MLflow takes seconds to import

    registered = registry.register(
        tracking_uri,
        JobTags(
            uid=manifest.lineage.job_uid,
            job=manifest.lineage.job,
            task=asked.task,
            experiment=asked.name,
            repeatable=True,
        ),
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


@contextmanager
def _folder(asked: Asked) -> Iterator[Path]:
    """The model's folder on this machine; of a URI as long as it is needed."""
    if asked.uri is None:
        yield Path(asked.source)
        return
    output = asked.output.resolve()
    fetched = output.parent / f".{output.name}.fetched"
    # What a killed attempt has left may be of another revision.
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir(parents=True)
    try:
        corpus_root = Path(os.environ.get(ENV_CORPUS_ROOT) or CORPUS_MOUNT)
        named = PretrainedFolder(uri=asked.uri, revision=asked.revision)
        given = find_whole(named, workspace=fetched, corpus_root=corpus_root)
        with given.folder(fetched) as folder:
            log("model found", uri=asked.uri)
            yield folder
    finally:
        shutil.rmtree(fetched, ignore_errors=True)


def _artifact(asked: Asked, folder: Path) -> tuple[Manifest, str]:
    """The artifact of a folder, and its digest. Raises InputError."""
    stated = _stated(asked.license, folder)
    checkpoint = huggingface.read(
        folder, asked.task, pooling=asked.pooling, normalize=asked.normalize, problem=asked.problem
    )
    sources = _sources(folder)
    identity = _identity(asked, sources)
    done = _finished(asked.output, identity)
    return done or _import(asked, checkpoint, sources, identity, stated)


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
    if asked.precision or asked.examples:
        examples = file_sha256(asked.examples) if asked.examples else None
        options += [sorted(asked.precision), examples, asked.max_accuracy_loss]
    options += [given for given in (asked.license, asked.problem) if given]
    options += [] if asked.form == JSON_LINES else [asked.form.format, asked.form.fields.model_dump(mode="json")]
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


def _stated(named: str | None, folder: Path) -> Card | None:
    """The licence, as told or as the folder's own card has it. Raises InputError."""
    theirs = folder / card.CARD_FILE
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
        rows = _examples(asked, checkpoint, facts, staging)
        measured = _add_precisions(asked, checkpoint, facts, staging, rows)
        vectors = checkpoint.vectors
        document = json.loads((staging / TOKENIZER_FILE).read_text(encoding="utf-8"))
        if asked.task is Task.TOKEN_CLASSIFICATION and not word_blanks.are_alike(document):
            # As it was trained, which nobody knows here.
            log("words are read otherwise than those of a text", tokenizer=asked.source)
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
            tokenizer_fingerprint=tokenizer_fingerprint(document),
            inputs=list(facts.inputs),
            output=facts.output,
            precisions=measured,
            card=stated,
            lineage=Lineage(
                job=asked.origin,
                job_uid=identity,
                kind=IMPORT_KIND,
                data=sources,
                created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                trainer_version=trainer_version(),
            ),
            files={},
        )
        if rows:
            from cloze_trainer.quality.assessment import profile_of  # noqa: PLC0415 - torch, as above

            write_json(staging / PROFILE_FILE, profile_of(staging, manifest, rows).model_dump(mode="json"))
        publish_card(staging, manifest, {}, {})
    return verify_with_digest(asked.output)


def _examples(asked: Asked, checkpoint: Checkpoint, facts: "Facts", folder: Path) -> "list[Row]":
    """What the model is tried on; none where nobody gave a file. Raises InputError."""
    from cloze_trainer.data import examples  # noqa: PLC0415 - torch, as above

    if asked.examples is None:
        return []
    return examples.read(
        asked.examples,
        asked.task,
        checkpoint.problem,
        Tokenizer.from_file(str(folder / TOKENIZER_FILE)),
        special=facts.special_tokens,
        labels=checkpoint.labels,
        max_length=facts.max_length,
        form=asked.form,
    )


def _add_precisions(
    asked: Asked, checkpoint: Checkpoint, facts: "Facts", folder: Path, given: "list[Row]"
) -> dict[Precision, Measured]:
    """Graphs besides fp32's, tried on the given examples. Raises InputError for one that isn't accurate enough."""
    if not asked.precision:
        return {}
    from cloze_trainer import precisions  # noqa: PLC0415 - torch, as above
    from cloze_trainer.data import examples  # noqa: PLC0415
    from cloze_trainer.quality.judgement import counted_slices  # noqa: PLC0415
    from cloze_trainer.trial import Trial  # noqa: PLC0415

    rows = given or examples.made_up(checkpoint.vocab_size, facts.max_length)
    trial = Trial(
        task=asked.task,
        problem=checkpoint.problem,
        inputs=facts.inputs,
        output=facts.output,
        labels=checkpoint.labels,
        batches=examples.batches(rows, pad_id=facts.special_tokens.pad, wide=asked.task is Task.FILL_MASK),
        examples=len(given),
        slices=sorted(counted_slices((row.slices for row in given), Evaluation().min_slice_examples)),
    )
    added = precisions.add(folder, asked.precision, trial, asked.max_accuracy_loss)
    if added.refused:
        raise InputError(
            "PrecisionInaccurate",
            f"{'; '.join(added.refused.values())}: leave that out of --precision, or allow more by --max-accuracy-loss",
        )
    return added.measured
