"""Versions, what they were made of, and trees of them. Pure.

What links a version to its base or its teacher is the digest of that one's manifest, which names all of its files;
names may be given to other models meanwhile.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloze_api.manifest import IMPORT_KIND, Lineage
from cloze_api.source import with_files
from cloze_trainer.data.source import former

Document = dict[str, Any]
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version. digest: of its manifest, `sha256:…`. aliases: that point to it."""

    name: str
    number: str
    digest: str
    lineage: Lineage
    aliases: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """`name/version`."""
        return f"{self.name}/{self.number}"


def ancestry(version: Version, find: Callable[[str, str], Version | None]) -> Document:
    """A version, its data, its base and its teacher, and those of the base and so on.

    find: a version by reference and digest.
    """
    document = _described(version)
    document["data"] = [{"source": uri, "digest": digest} for uri, digest in sorted(version.lineage.data.items())]
    for what, (reference, digest) in _models(version.lineage).items():
        found = find(reference, digest)
        document[what] = ancestry(found, find) if found else {"source": reference, "digest": digest}
    return document


def _models(lineage: Lineage) -> dict[str, tuple[str, str]]:
    """References and digests of the models that a version learnt from."""
    models = {"base": (lineage.base, lineage.base_digest), "teacher": (lineage.teacher, lineage.teacher_digest)}
    return {what: (reference, digest or "") for what, (reference, digest) in models.items() if reference}


def unlinked(versions: Sequence[Version]) -> dict[str, str]:
    """Versions whose base or teacher was a registered one that isn't among these, and why: of what that one was made,
    and so they, nothing can be said.
    """
    known = {version.digest for version in versions}
    return {
        version.reference: f"its {what} {reference} isn't in the registry any more, so that nobody knows its data"
        for version in versions
        for what, (reference, digest) in _models(version.lineage).items()
        if "://" not in reference and digest not in known
    }


def descendants(version: Version, versions: Iterable[Version]) -> Document:
    """A version and what has learnt from it, directly or by way of others."""
    return _tree(version, _by_parent(versions))


def made_of(data: str, versions: Sequence[Version]) -> list[Document]:
    """The versions that were made of a data set or of a folder, each with what has learnt from it.

    data: its digest, with or without `sha256:`, or its URI as the jobs named it.
    """
    parents = _by_parent(versions)
    return [_tree(version, parents) for version in versions if _is_made_of(version.lineage, data)]


def _is_made_of(lineage: Lineage, data: str) -> bool:
    known = {**lineage.data, **dict(_models(lineage).values())}
    if digest := _DIGEST.fullmatch(data):
        return not {digest[1], *former(digest[1])}.isdisjoint(each.removeprefix("sha256:") for each in known.values())
    # One that comes twice is told apart by a number behind `#`.
    uris = {uri.partition("#")[0] for uri in known} | known.keys()
    if lineage.kind == IMPORT_KIND:
        # What was imported; of a hub with the revision, where one was named.
        uris |= {lineage.job, *([lineage.job.partition("@")[0]] if lineage.job.startswith("hf://") else [])}
    return data.rstrip("/") in {uri.rstrip("/") for uri in uris}


def _by_parent(versions: Iterable[Version]) -> Mapping[str, Sequence[Version]]:
    """Versions by the digests of the models that they learnt from."""
    found: dict[str, list[Version]] = {}
    for version in versions:
        for digest in {digest for _, digest in _models(version.lineage).values() if digest}:
            found.setdefault(digest, []).append(version)
    return found


def _tree(version: Version, parents: Mapping[str, Sequence[Version]]) -> Document:
    return _described(version) | {"descendants": [_tree(each, parents) for each in parents.get(version.digest, [])]}


def _described(version: Version) -> Document:
    lineage = version.lineage
    return {
        "version": version.reference,
        "digest": version.digest,
        "kind": lineage.kind,
        "job": lineage.job,
        "jobUid": lineage.job_uid,
        "created": lineage.created,
        "aliases": list(version.aliases),
    }


def text(document: Document) -> str:
    """A tree for a person."""
    return "\n".join([_line(document), *_branches(document)]) + "\n"


def _line(document: Document) -> str:
    if "version" not in document:
        files = f"  {document['files']} files" if document.get("files", 0) > 1 else ""
        return f"{document['source']}  {document['digest']}{files}"
    aliases = "".join(f"  @{alias}" for alias in document["aliases"])
    made = f"{document['kind']} {document['job']}, {document['created']}"
    return f"{document['version']}{aliases}  {made}  {document['digest']}"


def _branches(document: Document) -> Iterable[str]:
    data = {each["source"]: each for each in document.get("data", [])}
    # A folder may have thousands of files.
    children = [("data ", {**data[uri], "files": files}) for uri, files in with_files(data.keys()).items()]
    children += [(f"{what} ", document[what]) for what in ("base", "teacher") if what in document]
    children += [("", each) for each in document.get("descendants", [])]
    for number, (what, child) in enumerate(children, 1):
        last = number == len(children)
        yield f"{'└─' if last else '├─'} {what}{_line(child)}"
        for line in _branches(child):
            yield f"{'   ' if last else '│  '}{line}"
