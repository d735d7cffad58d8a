"""Versions, what they were made of, and trees of them. Pure.

What links a version to its base is the digest of the base's manifest, which names all of its files; names may be given
to other models meanwhile.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloze_api.manifest import Lineage

Document = dict[str, Any]


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
    """A version, its data and its base, and those of the base and so on. find: a version by reference and digest."""
    lineage = version.lineage
    document = _described(version)
    document["data"] = [{"source": uri, "digest": digest} for uri, digest in sorted(lineage.data.items())]
    if lineage.base:
        found = find(lineage.base, lineage.base_digest or "")
        document["base"] = (
            ancestry(found, find) if found else {"source": lineage.base, "digest": lineage.base_digest or ""}
        )
    return document


def descendants(version: Version, versions: Iterable[Version]) -> Document:
    """A version and what was trained from it, directly or by way of others."""
    return _tree(version, _by_base(versions))


def made_of(data: str, versions: Sequence[Version]) -> list[Document]:
    """The versions that were made of a data set or of a folder, each with what was trained from it.

    data: its digest, with or without `sha256:`, or its URI as the jobs named it.
    """
    bases = _by_base(versions)
    return [_tree(version, bases) for version in versions if _is_made_of(version.lineage, data)]


def _is_made_of(lineage: Lineage, data: str) -> bool:
    wanted = data.removeprefix("sha256:")
    known = {**lineage.data, **({lineage.base: lineage.base_digest or ""} if lineage.base else {})}
    # One that comes twice is told apart by a number behind `#`.
    uris = {uri.partition("#")[0] for uri in known} | known.keys()
    return data in uris or wanted in {digest.removeprefix("sha256:") for digest in known.values()}


def _by_base(versions: Iterable[Version]) -> Mapping[str, Sequence[Version]]:
    found: dict[str, list[Version]] = {}
    for version in versions:
        if version.lineage.base_digest:
            found.setdefault(version.lineage.base_digest, []).append(version)
    return found


def _tree(version: Version, bases: Mapping[str, Sequence[Version]]) -> Document:
    return _described(version) | {"descendants": [_tree(each, bases) for each in bases.get(version.digest, [])]}


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
        return f"{document['source']}  {document['digest']}"
    aliases = "".join(f"  @{alias}" for alias in document["aliases"])
    made = f"{document['kind']} {document['job']}, {document['created']}"
    return f"{document['version']}{aliases}  {made}  {document['digest']}"


def _branches(document: Document) -> Iterable[str]:
    children = [("data ", each) for each in document.get("data", [])]
    children += [("base ", document["base"])] if "base" in document else []
    children += [("", each) for each in document.get("descendants", [])]
    for number, (what, child) in enumerate(children, 1):
        last = number == len(children)
        yield f"{'└─' if last else '├─'} {what}{_line(child)}"
        for line in _branches(child):
            yield f"{'   ' if last else '│  '}{line}"
