"""Where text and labelled examples come from."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from cloze_api.schema import Rule

SOURCE_PATTERN = (
    r"^(pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/.+|configmap://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._a-zA-Z0-9]+"
    r"|https?://.+|file:///.+)$"
)

SourceURI = Annotated[str, Field(pattern=SOURCE_PATTERN, max_length=1024)]
"""`pvc://claim/path`, `configmap://name/key`, `https://…` or `file:///path`. A path may hold `*` to name many files."""


#: A step upwards in a path: it would lead out of the claim that the URI names.
_UPWARDS = r"/\.\.(/|$)"


def uri_rule(path: str) -> Rule:
    """The rule on the URI at this path, for the model that has it as its own field."""
    name = path.rsplit(".", 1)[1]
    return Rule(
        cel=f"!self.{name}.matches('{_UPWARDS}')".replace("\\", "\\\\"),
        message=f"{path} has `..` in its path: name the file from the claim's own root",
        check=lambda model: not re.search(_UPWARDS, getattr(model, name)),
    )


class SourceKind(StrEnum):
    """How a source reaches a training pod."""

    PVC = "pvc"
    CONFIG_MAP = "configmap"
    HTTP = "http"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Source:
    """A source URI taken apart.

    container: name of the claim or the ConfigMap; empty for `file` and `http`.
    path: the path within the container, or the whole path or URL.
    """

    kind: SourceKind
    container: str
    path: str

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
    if re.match(SOURCE_PATTERN, uri) and not re.search(_UPWARDS, uri):
        scheme, _, rest = uri.partition("://")
        if scheme in ("pvc", "configmap"):
            container, _, path = rest.partition("/")
            return Source(SourceKind(scheme), container, path)
        if scheme in ("http", "https"):
            return Source(SourceKind.HTTP, "", uri)
        if scheme == "file":
            return Source(SourceKind.FILE, "", rest)
    raise ValueError(
        f"{uri!r} is no source: use pvc://claim/path, configmap://name/key, https://host/path or file:///path, "
        "without `..` in the path"
    )
