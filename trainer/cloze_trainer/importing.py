"""`cloze-train import`: from a folder in Hugging Face's format to a verified artifact."""

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from cloze_api.manifest import (
    TOKENIZER_FILE,
    ArtifactError,
    Embedding,
    Limits,
    Lineage,
    Manifest,
    digest_files,
    file_sha256,
    tokenizer_fingerprint,
    verify_with_digest,
    version_tags,
    write_manifest,
)
from cloze_api.names import ENV_MLFLOW_URI
from cloze_api.progress import Outcome
from cloze_api.schema import ModelName
from cloze_api.task import Task
from cloze_trainer import huggingface
from cloze_trainer.console import log
from cloze_trainer.errors import InputError
from cloze_trainer.files import publish
from cloze_trainer.huggingface import ARCHITECTURES, TASKS, Checkpoint
from cloze_trainer.tracking import JobTags

KIND = "Import"


class Asked(NamedTuple):
    """The command line. matryoshka: numbers of dimensions that vectors may be cut to."""

    folder: Path
    task: Task
    name: str
    output: Path
    register: bool
    pooling: huggingface.Pooling | None
    normalize: bool
    matryoshka: list[int]


def parse(arguments: Sequence[str]) -> Asked:
    """Read the command line; ends the process with usage for one that can't be read."""
    parser = argparse.ArgumentParser(
        prog="cloze-train import",
        description="Make a verified artifact (weights, tokenizer, ONNX graph in 32-bit floats) of a folder in Hugging "
        f"Face's format. Architectures: {', '.join(ARCHITECTURES)}. Embedding models may be sentence-transformers' "
        "folders. Serve it with cloze-server --model DIR.",
        epilog=f"--register needs {ENV_MLFLOW_URI}. The same command again registers what an earlier one has written.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="config.json, weights, tokenizer")
    parser.add_argument("--task", type=Task, choices=TASKS, required=True, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--name", required=True, help="the model's name, also in the registry")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder for the artifact")
    parser.add_argument("--register", action="store_true", help="also make a version in MLflow")
    parser.add_argument("--pooling", choices=["mean", "cls"], help="of an encoder without modules.json")
    parser.add_argument("--normalize", action="store_true", help="give vectors length 1; without modules.json")
    parser.add_argument(
        "--matryoshka",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[],
        metavar="N,N",
        help="numbers of leading dimensions that the model was trained to be cut to",
    )
    return Asked(**vars(parser.parse_args(arguments)))


def run(asked: Asked) -> Outcome:
    """Import and, where asked, register. Raises InputError, TrainerError, OSError."""
    try:
        TypeAdapter(ModelName).validate_python(asked.name)
    except ValidationError as error:
        message = f"--name: {error.errors(include_url=False, include_input=False)[0]['msg']}"
        raise InputError("NameInvalid", message) from error
    tracking_uri = os.environ.get(ENV_MLFLOW_URI) or None
    if asked.register and tracking_uri is None:
        raise InputError("RegistryUnset", f"--register needs the registry's address: set {ENV_MLFLOW_URI}")
    checkpoint = huggingface.read(asked.folder, asked.task, pooling=asked.pooling, normalize=asked.normalize)
    sources = _sources(asked.folder)
    identity = _identity(asked, sources)
    done = _finished(asked.output, identity)
    manifest, digest = done or _import(asked, checkpoint, sources, identity)
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
    options = [asked.task, asked.name, asked.pooling, asked.normalize, asked.matryoshka]
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


def _import(asked: Asked, checkpoint: Checkpoint, sources: dict[str, str], identity: str) -> tuple[Manifest, str]:
    # torch and transformers take seconds to import; a mistake in the folder is told before.
    from cloze_trainer import conversion  # noqa: PLC0415
    from cloze_trainer.artifact import trainer_version  # noqa: PLC0415

    with publish(asked.output, marker=False) as staging:
        facts = conversion.write(checkpoint, staging)
        matryoshka = sorted(set(asked.matryoshka))
        if matryoshka and not (facts.dimensions and matryoshka[0] >= 1 and matryoshka[-1] < facts.dimensions):
            raise InputError("MatryoshkaInvalid", f"--matryoshka needs numbers from 1 to below {facts.dimensions}")
        vectors = checkpoint.vectors
        manifest = Manifest(
            name=asked.name,
            task=asked.task,
            architecture=checkpoint.class_name,
            labels=list(checkpoint.labels),
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
            lineage=Lineage(
                job=asked.folder.resolve().name,
                job_uid=identity,
                kind=KIND,
                data=sources,
                created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                trainer_version=trainer_version(),
            ),
            files=digest_files(staging),
        )
        write_manifest(staging, manifest)
    return verify_with_digest(asked.output)
