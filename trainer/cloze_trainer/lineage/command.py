"""`cloze-train lineage`: what a version was made of, and what was made of a version or of a data set."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from cloze_api.names import ENV_MLFLOW_URI
from cloze_api.progress import ExitCode, Outcome
from cloze_trainer import own_registry
from cloze_trainer.data.remote import redacted
from cloze_trainer.errors import InputError, TrainerError
from cloze_trainer.lineage import descent

_REFERENCE = re.compile(r"(?P<name>[^/@]+)(/(?P<version>[1-9][0-9]*)|@(?P<alias>[^/@]+))")


class Asked(NamedTuple):
    """The command line."""

    version: str | None
    data: str | None
    downstream: bool
    json: bool


def parse(arguments: Sequence[str]) -> Asked:
    """Read the command line; ends the process with usage for one that can't be read."""
    parser = argparse.ArgumentParser(
        prog="cloze-train lineage",
        description="Where a registered version comes from: its data, its base and so on. Or which versions have come "
        "of a version or of a data set, as when a person's data have to be erased.",
        epilog=f"The registry is found by {ENV_MLFLOW_URI}. Exits with {ExitCode.REGISTRY:d} when a manifest can't be "
        "read, as the answer isn't whole then.",
    )
    parser.add_argument("version", nargs="?", metavar="VERSION", help="name/version or name@alias")
    parser.add_argument("--downstream", action="store_true", help="what has come of it, instead of where it comes from")
    parser.add_argument(
        "--data", metavar="DATA", help="what has come of a data set: sha256:… of a file, or the URI that jobs name"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parsed = parser.parse_args(arguments)
    if (parsed.version is None) == (parsed.data is None) or (parsed.downstream and parsed.data):
        parser.error("give either VERSION, with or without --downstream, or --data")
    return Asked(parsed.version, parsed.data, parsed.downstream, parsed.json)


def run(asked: Asked) -> Outcome:
    """Print the tree. Raises InputError, RegistryError, TrainerError for an answer that isn't whole."""
    uri = own_registry.address(there=True)
    if not uri:
        raise InputError("RegistryUnset", f"versions are in MLflow: {own_registry.ADVICE}")
    from cloze_trainer.lineage.reading import Reader  # noqa: PLC0415 - MLflow takes seconds to import

    reader = Reader(uri)
    if asked.data is not None:
        data, read = _recorded(asked.data), reader.all()
        found = descent.made_of(data, read)
        shown = {"data": data, "versions": found}
        written = "".join(map(descent.text, found)) or f"no registered version is made of {data}\n"
    else:
        name, number = _resolved(uri, asked.version or "")
        version = reader.named(name, number)
        read = reader.all() if asked.downstream else [version]

        def find(reference: str, digest: str) -> descent.Version | None:
            found = reader.find(reference, digest)
            read.extend([found] if found else [])
            return found

        tree = descent.descendants(version, read) if asked.downstream else descent.ancestry(version, find)
        shown, written = tree, descent.text(tree)
    unread = {**descent.unlinked(read), **reader.unread}
    sys.stdout.write(json.dumps({**shown, "unread": unread}, indent=2) + "\n" if asked.json else written)
    if unread:
        first, why = next(iter(unread.items()))
        raise TrainerError(
            "LineageIncomplete",
            f"{len(unread)} versions are missing from the answer, or may be, {first} the first of them: {why}",
            ExitCode.REGISTRY,
        )
    return Outcome(reason="LineageFound", message="the answer is whole")


def _recorded(data: str) -> str:
    """A digest, or a URI as manifests have it: a job's may hold what is secret."""
    try:
        return redacted(data)
    except ValueError:
        return data


def _resolved(uri: str, reference: str) -> tuple[str, str]:
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError("ModelUnknown", f"{reference} names no version: give name/version or name@alias")
    if match["version"]:
        return match["name"], match["version"]
    from cloze_trainer import registry  # noqa: PLC0415 - MLflow takes seconds to import

    return match["name"], registry.version_of_alias(uri, match["name"], match["alias"])
