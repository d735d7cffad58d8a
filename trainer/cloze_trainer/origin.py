"""What a run was made from: recorded with what it leaves, so that nothing is ever continued with something else.

A source is needed until what is made of it is on the run's volume. From then on the run remembers what it was, and goes
on whether it is still there or not.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloze_api.dataset import Dataset
from cloze_api.names import SECRETS_MOUNT
from cloze_api.pretrain import PretrainJobSpec
from cloze_api.source import STORES, Credentials, SourceKind, parse_source
from cloze_trainer.data.remote import credentials, redacted
from cloze_trainer.data.source import SourceFiles, former, locate
from cloze_trainer.errors import InputError
from cloze_trainer.files import write_atomically
from cloze_trainer.run import Run

# In the workspace: what the sources were that something whole was made of.
_FILE = "sources.json"


@dataclass(frozen=True, slots=True)
class Origin:
    """data: digest of everything that decides the prepared data. base: digest of the base model, if there is one."""

    data: str
    base: str | None = None


def changed(what: str, since: str) -> InputError:
    """The refusal to go on with another `what` than before."""
    return InputError(
        "SourceChanged",
        f"{what} changed since {since}: create a new job for it; outside a cluster put the old content back to go on, "
        "name another --workspace, or delete this one to start anew",
    )


def access(secret: Credentials | None) -> dict[str, str]:
    """What gives access to a source with these credentials: see `remote.credentials`."""
    return credentials(Path(SECRETS_MOUNT) / secret.secret_name if secret else None)


@dataclass(frozen=True, slots=True)
class Named:
    """A source as a spec names it. files: which of a folder's are meant, by their path in it; all when absent."""

    uri: str
    revision: str | None = None
    credentials: Credentials | None = None
    files: re.Pattern[str] | None = None

    def wanted(self, name: str) -> bool:
        """Whether a file of a folder is meant."""
        return self.files is None or self.files.fullmatch(name) is not None


def named(run: Run) -> list[Named]:
    """Every source of the spec, in its order: a corpus' parts, or the examples of a task."""
    spec = run.job.spec
    if isinstance(spec, PretrainJobSpec):
        return [Named(each.uri, each.revision, each.credentials) for each in spec.corpus]
    return [_of_dataset(spec.dataset, uri) for uri in spec.dataset.sources]


def _of_dataset(dataset: Dataset, uri: str) -> Named:
    """One of a data set's sources, with what of its settings is for such a one."""
    return Named(
        uri,
        dataset.revision if parse_source(uri).kind is SourceKind.HF else None,
        dataset.credentials if uri.startswith(STORES) else None,
    )


Memory = Mapping[str, Mapping[str, Any]]
"""What a run remembers of sources, by their keys."""


def memory_of(run: Run) -> Memory:
    """What the run's workspace has; a file that can't be understood is as none."""
    try:
        found: Memory = json.loads((run.workspace / _FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _key(run: Run, source: Named) -> str:
    """What decides a source's files and their digest: another run, or a changed spec, has nothing to remember.

    How they are read is no part of it. The key of the data has that.
    """
    files = source.files.pattern if source.files else None
    return hashlib.sha256(json.dumps([run.identity, source.uri, source.revision, files]).encode()).hexdigest()


def _recall(run: Run, source: Named, memory: Memory) -> SourceFiles | None:
    if (kept := memory.get(_key(run, source))) is None:
        return None
    fields: dict[str, Any] = {
        **kept,
        "paths": tuple(map(Path, kept["paths"])),
        "stamps": tuple(map(tuple, kept["stamps"])),
        "names": tuple(kept["names"]),
    }
    return SourceFiles(source.uri, **fields)


def remember(run: Run, sources: Iterable[tuple[Named, SourceFiles]]) -> None:
    """Keep what the sources are, now that what was made of them is whole on the run's volume, or in its data cache."""
    memory = memory_of(run)
    now = dict(memory)
    for source, found in sources:
        # The URI may hold a password.
        kept = {name: value for name, value in asdict(found).items() if name != "uri"}
        now[_key(run, source)] = json.loads(json.dumps(kept, default=str))
    if now != memory:
        # In ASCII: names of files may be any bytes.
        write_atomically(run.workspace / _FILE, json.dumps(now, indent=2).encode("ascii"))


def find(run: Run, source: Named, memory: Memory) -> SourceFiles:
    """What a source was, as the run remembers it, whose files may be gone; otherwise they are located.

    Outside a cluster they are looked at as long as they are there: a person who starts the same job again may have put
    others in their place, and isn't answered with what was made of the old ones. Raises as `locate`.
    """
    before = _recall(run, source, memory)
    # What was fetched is fetched once.
    if before is not None and (not run.local or parse_source(source.uri).remote):
        return before
    try:
        return _located(run, source, before)
    except InputError as error:
        if before is None or error.reason != "SourceNotFound":
            raise
        return before


def need(run: Run, source: Named, found: SourceFiles) -> SourceFiles:
    """What was found, with its files on this machine. Raises as `locate`, and InputError when they changed.

    Files that came to the folder since are nothing to it.
    """
    with contextlib.suppress(InputError):
        found.check_unchanged()
        return found
    try:
        now = _located(run, source, found)
    except InputError as error:
        raise InputError(error.reason, f"{error.message}; nothing whole that was made of it is there") from error
    if now.digest != found.digest:
        raise changed(f"the content of {redacted(source.uri)}", "the run first read it")
    return now


def _located(run: Run, source: Named, before: SourceFiles | None) -> SourceFiles:
    return locate(
        source.uri,
        corpus_root=run.corpus_root,
        downloads=run.workspace / "downloads",
        revision=source.revision,
        access=access(source.credentials),
        wanted=source.wanted,
        before=before,
    )


def find_all(run: Run) -> list[SourceFiles]:
    """Every source of the spec, in its order, as `find` has it."""
    memory = memory_of(run)
    return [find(run, source, memory) for source in named(run)]


def need_all(run: Run, found: Sequence[SourceFiles]) -> list[SourceFiles]:
    """What `find_all` found, as `need` has it."""
    return [need(run, *each) for each in zip(named(run), found, strict=True)]


def digests(sources: Sequence[SourceFiles], *, files: bool = True) -> dict[str, str]:
    """SHA-256 of each source, and of each of its files where it isn't one, keyed by their URIs without secrets; a
    number tells those apart that are alike then.
    """
    found = [(redacted(source.uri), source.content) for source in sources]
    if files:
        found += [each for source in sources for each in source.contents.items()]
    result: dict[str, str] = {}
    for shown, digest in found:
        name, number = shown, 1
        while result.get(name, digest) != digest:
            number += 1
            name = f"{shown}#{number}"
        result[name] = digest
    return result


def refuse_changed(run: Run, recorded: Mapping[str, str]) -> None:
    """Raise InputError when this machine's sources aren't those of a finished run of the same job.

    In a cluster a finished run stays what it is: its pods start again for other pods' sake alone.
    """
    if run.local and recorded:
        for name, digest in digests(find_all(run), files=False).items():
            if recorded.get(name) not in (digest, *former(digest)):
                raise changed(f"the content of {name}", "the run finished")
