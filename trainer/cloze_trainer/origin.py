"""What a run was made from: recorded with what it leaves, so that nothing is ever continued with something else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloze_api.names import SECRETS_MOUNT
from cloze_api.pretrain import PretrainJobSpec
from cloze_api.source import Credentials
from cloze_trainer.data.remote import credentials, redacted
from cloze_trainer.data.source import SourceFiles, former, locate
from cloze_trainer.errors import InputError
from cloze_trainer.run import Run


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


def locate_all(run: Run) -> list[SourceFiles]:
    """The files behind every source of the spec, in its order: a corpus' parts, or the examples of a task."""
    spec = run.job.spec
    downloads = run.workspace / "downloads"
    if isinstance(spec, PretrainJobSpec):
        return [
            locate(
                corpus.uri,
                corpus_root=run.corpus_root,
                downloads=downloads,
                revision=corpus.revision,
                access=access(corpus.credentials),
            )
            for corpus in spec.corpus
        ]
    return [locate(uri, corpus_root=run.corpus_root, downloads=downloads) for uri in spec.dataset.sources]


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
        for name, digest in digests(locate_all(run), files=False).items():
            if recorded.get(name) not in (digest, *former(digest)):
                raise changed(f"the content of {name}", "the run finished")
