"""What `--model` may name."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs

from cloze_api.task import Task
from cloze_server.exits import ExitCode, FatalError

# As a registered model may be called; a path or a query has other characters before its first =.
_NAMED = re.compile(r"([A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)=(.+)")
_REGISTERED = re.compile(r"models:/([A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)/([1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """`models:/name/version`: a version in MLflow."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class Folder:
    """An artifact on disk. Its version is `local`, its name the manifest's unless another is given."""

    path: Path
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Dummy:
    """`dummy:[task][?seconds=s]`: no weights; each batch takes `seconds`."""

    task: Task
    seconds: float
    name: str | None = None


ModelReference = RegisteredVersion | Folder | Dummy


def parse_reference(text: str) -> ModelReference:
    """Take `--model` apart. Raises FatalError (CONFIGURATION) that says what is accepted."""
    if matched := _NAMED.fullmatch(text):
        match parse_reference(matched[2]):
            case RegisteredVersion():
                raise _invalid(f"{text!r}: a registered version has its name already, leave out {matched[1]}=")
            case reference:
                return replace(reference, name=matched[1])
    if text.startswith("models:"):
        if matched := _REGISTERED.fullmatch(text):
            return RegisteredVersion(matched[1], matched[2])
        raise _invalid(
            f"{text!r} names no model version: use models:/NAME/VERSION with a numeric version, not an alias"
        )
    if text.startswith("dummy:"):
        task, _, query = text.removeprefix("dummy:").partition("?")
        try:
            return Dummy(Task(task or Task.SEQUENCE_CLASSIFICATION), float(parse_qs(query).get("seconds", ["0"])[0]))
        except ValueError as error:
            raise _invalid(f"{text!r}: use dummy:TASK?seconds=S with one of the tasks {', '.join(Task)}") from error
    name, named, _ = text.partition("=")
    if named and "/" not in name:
        raise _invalid(
            f"{text!r}: a model's name has at most 63 letters, digits, -, _ and ., and begins and ends with a "
            f"letter or digit; a folder that is called so is ./{text}"
        )
    return Folder(Path(text))


def _invalid(message: str) -> FatalError:
    return FatalError(ExitCode.CONFIGURATION, "ModelReferenceInvalid", message)
