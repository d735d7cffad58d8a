"""Where text and labelled examples come from."""

import re
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Annotated

from pydantic import Field

from cloze_api.schema import Rule, Schema

SOURCE_PATTERN = (
    r"^(pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/.+|configmap://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._a-zA-Z0-9]+"
    r"|https?://.+|file:///.+|(s3|gs)://[a-z0-9][-._a-z0-9]*/.+"
    r"|hf://datasets/[-._a-zA-Z0-9]+/[-._a-zA-Z0-9]+(/[^@]*)?)$"
)

SourceURI = Annotated[str, Field(pattern=SOURCE_PATTERN, max_length=1024)]
"""`pvc://claim/path`, `configmap://name/key`, `https://…`, `file:///path`, `s3://bucket/path`, `gs://bucket/path` or
`hf://datasets/owner/name/path`. But for `configmap` and `https`, a path may name many files by `*`, or by their folder.
"""

FOLDER_PATTERN = (
    r"^(pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[^*]+|file:///[^*]+|(s3|gs)://[a-z0-9][-._a-z0-9]*/[^*]+"
    r"|hf://[-._a-zA-Z0-9]+/[-._a-zA-Z0-9]+(/[^@*]*)?)$"
)

FolderURI = Annotated[str, Field(pattern=FOLDER_PATTERN, max_length=1024)]
"""A folder: `pvc://claim/path`, `file:///path`, `s3://bucket/path`, `gs://bucket/path` or `hf://owner/name`."""

#: A step upwards in a path: it would lead out of the claim that the URI names.
_UPWARDS = r"/\.\.(/|$)"


def uri_rule(path: str, *, optional: bool = False) -> Rule:
    """The rule on the URI at this path, for the model that has it as its own field."""
    name = path.rsplit(".", 1)[1]
    absent = f"!has(self.{name}) || " if optional else ""
    return Rule(
        cel=absent + f"!self.{name}.matches('{_UPWARDS}')".replace("\\", "\\\\"),
        message=f"{path} has `..` in its path: name the file from the claim's own root",
        check=lambda model: not re.search(_UPWARDS, getattr(model, name) or ""),
    )


class Credentials(Schema):
    """What gives access to a store: a Secret of the job's namespace.

    Its keys, each as far as it is needed: for `s3` AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
    AWS_REGION and AWS_ENDPOINT_URL; for `gs` GOOGLE_APPLICATION_CREDENTIALS (a key file's content); for `hf` HF_TOKEN
    and HF_ENDPOINT; for `https` HTTP_TOKEN, or HTTP_USERNAME and HTTP_PASSWORD.
    """

    secret_name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]


#: How URIs begin that credentials may be needed for.
STORES = ("s3://", "gs://", "hf://", "https://")

#: What the name of a branch, tag or commit may be.
REVISION_PATTERN = r"^[A-Za-z0-9][-A-Za-z0-9_./]*$"


class SourceKind(StrEnum):
    """How a source reaches a training pod."""

    PVC = "pvc"
    CONFIG_MAP = "configmap"
    HTTP = "http"
    FILE = "file"
    S3 = "s3"
    GS = "gs"
    HF = "hf"


@dataclass(frozen=True, slots=True)
class Source:
    """A source URI taken apart.

    container: name of the claim or the ConfigMap; empty for what isn't mounted.
    path: the path within the container, or the whole path or URL; for stores it begins with the bucket or `datasets`.
    """

    kind: SourceKind
    container: str
    path: str

    @property
    def remote(self) -> bool:
        """Whether it is fetched over the network, which credentials may be needed for."""
        return self.kind in (SourceKind.HTTP, SourceKind.S3, SourceKind.GS, SourceKind.HF)

    @property
    def mount(self) -> str:
        """Folder under the corpus root on which the container is mounted: `pvc/<claim>` or `configmap/<name>`.

        Raises ValueError for a source that isn't mounted.
        """
        if not self.container:
            raise ValueError(f"a {self.kind} source is not mounted")
        return f"{self.kind}/{self.container}"


def parse_source(uri: str) -> Source:
    """Take a source URI apart. Raises ValueError, saying which schemes exist, for any other text."""
    if (re.match(SOURCE_PATTERN, uri) or re.match(FOLDER_PATTERN, uri)) and not re.search(_UPWARDS, uri):
        scheme, _, rest = uri.partition("://")
        if scheme in ("pvc", "configmap"):
            container, _, path = rest.partition("/")
            return Source(SourceKind(scheme), container, path)
        if scheme in ("http", "https"):
            return Source(SourceKind.HTTP, "", uri)
        return Source(SourceKind(scheme), "", rest)
    raise ValueError(
        f"{uri!r} is no source: use pvc://claim/path, configmap://name/key, https://host/path, file:///path, "
        "s3://bucket/path, gs://bucket/path or hf://datasets/owner/name/path, without `..` in the path"
    )


def with_files(uris: Set[str]) -> dict[str, int]:
    """Of sources and of files, the sources as jobs name them, and how many files each has among them; 0 of a file."""
    named = {uri for uri in uris if "*" in uri and "://" in uri.partition("*")[0]}
    patterns = {uri: re.compile(".*".join(map(re.escape, uri.split("*")))) for uri in named}
    # What is behind a web server's address is no part of it.
    folders = {uri.rstrip("/"): uri for uri in uris if not uri.startswith(("http://", "https://"))}
    wholes: dict[str, str] = {}
    for uri in uris - patterns.keys():
        above = accumulate(uri.rstrip("/").split("/")[:-1], lambda folder, name: f"{folder}/{name}")
        found = [folders[folder] for folder in above if folder in folders]
        found += [name for name, pattern in patterns.items() if pattern.fullmatch(uri)]
        if found:
            wholes[uri] = found[0]
    counts = Counter(wholes.values())
    return {uri: counts[uri] for uri in uris if uri not in wholes}
