"""The echo model: an artifact without weights that goes the way of any other, to prove routes, rollouts and drains.

`python -m cloze_server.echo FOLDER --name NAME` writes one and prints its digest.
"""

import argparse
from pathlib import Path

from pydantic import ValidationError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from cloze_api.manifest import Limits, Lineage, Manifest, SpecialTokens, digest_files, write_manifest
from cloze_api.task import Task
from cloze_server.backend import DummyBackend
from cloze_server.exits import ExitCode, FatalError
from cloze_server.faults import Faults
from cloze_server.model import LoadedModel
from cloze_server.tokenization import Frame

ECHO_FILE = "echo.json"

_MAX_LENGTH = 1024
_WORD = "word"
# There are none: no id is negative.
_NO_SPECIAL_TOKENS = SpecialTokens(pad=0, cls=-1, sep=-1)


def write_artifact(
    folder: Path, *, name: str, error_ratio: float = 0.0, delay_seconds: float = 0.0, seed: int = 0
) -> str:
    """Write an echo model into a new or empty folder and return its digest, a function of the other arguments.

    error_ratio: share of requests that get a 500, drawn by `seed`. delay_seconds: wait of every request. Raises
    FileExistsError, and ValueError for a name or number that can't be.
    """
    faults = Faults(error_ratio=error_ratio, delay_seconds=delay_seconds, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} isn't empty: name a new folder")
    (folder / ECHO_FILE).write_text(faults.model_dump_json(by_alias=True) + "\n", encoding="utf-8")
    manifest = Manifest(
        name=name,
        task=Task.ECHO,
        architecture="echo",
        limits=Limits(max_length=_MAX_LENGTH, vocab_size=1),
        special_tokens=_NO_SPECIAL_TOKENS,
        lowercase=False,
        tokenizer_fingerprint="",
        inputs=[],
        output="",
        # Nobody trained it; the same arguments give the same digest.
        lineage=Lineage(job="echo", job_uid="", kind="Echo", created="1970-01-01T00:00:00Z", trainer_version=""),
        files=digest_files(folder),
    )
    return write_manifest(folder, manifest)


def load_artifact(folder: Path, manifest: Manifest, *, version: str, digest: str, name: str) -> LoadedModel:
    """Load a verified echo artifact. Raises FatalError (ARTIFACT_INVALID)."""
    try:
        faults = Faults.model_validate_json((folder / ECHO_FILE).read_bytes())
    except OSError as error:
        message = f"the artifact of an echo model has no {ECHO_FILE}"
        raise FatalError(ExitCode.ARTIFACT_INVALID, "FileMissing", message) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = f"{ECHO_FILE} is wrong at {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise FatalError(ExitCode.ARTIFACT_INVALID, "EchoInvalid", message) from error
    return echo_model(name=name, version=version, digest=digest, faults=faults, max_length=manifest.limits.max_length)


def echo_model(
    *, name: str, version: str, digest: str, faults: Faults, max_length: int = _MAX_LENGTH, seconds: float = 0.0
) -> LoadedModel:
    """An echo model, whose tokens are the words between white space. `seconds` is the time of a batch."""
    tokenizer = Tokenizer(WordLevel({_WORD: 0}, unk_token=_WORD))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return LoadedModel(
        name=name,
        version=version,
        digest=digest,
        task=Task.ECHO,
        architecture="echo",
        labels=[],
        max_length=max_length,
        special_tokens=_NO_SPECIAL_TOKENS,
        tokenizer=tokenizer.to_str(),
        frame=Frame([], [], None),
        vocabulary={_WORD: 0},
        backend=DummyBackend(classes=1, per_token=False, seconds=seconds),
        faults=faults,
    )


def main() -> None:
    """Write an artifact."""
    parser = argparse.ArgumentParser(prog="python -m cloze_server.echo", description="Write an echo model's artifact.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", default="echo", help="the model's name (default %(default)s)")
    parser.add_argument("--error-ratio", type=float, default=0.0, help="share of requests that get a 500")
    parser.add_argument("--delay-seconds", type=float, default=0.0, help="wait of every request")
    parser.add_argument("--seed", type=int, default=0, help="draws which requests fail")
    given = parser.parse_args()
    try:
        digest = write_artifact(
            given.folder,
            name=given.name,
            error_ratio=given.error_ratio,
            delay_seconds=given.delay_seconds,
            seed=given.seed,
        )
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    print(digest)  # noqa: T201 - the program's result


if __name__ == "__main__":
    main()
