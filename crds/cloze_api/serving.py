"""What a ModelDeployment's servers do besides answering: what they keep, who may ask them, and whom they tell."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from cloze_api.quantity import Quantity, quantity
from cloze_api.schema import ModelName, ModelVersion, Rule, Schema
from cloze_api.segments import (
    KEY_PATTERN,
    KEYS_MAX,
    TEXT_MAX,
    VALUE_PATTERN,
    VALUES_MAX,
    is_bounded,
    is_distinct,
    is_key,
)

INPUTS_MAX: Final = 1024
"""Inputs that a request may have at most, whatever the limits say."""
BODIES_BYTES: Final = 32 << 20
"""Bytes that a server holds of all requests' bodies at a time."""


class SecretKey(Schema):
    """One key of a Secret in the ModelDeployment's namespace."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)]
    """Name of the Secret."""
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", min_length=1, max_length=253)]
    """Key in the Secret's `data`."""


class Fallback(Schema):
    """A registered version in the same pods, which answers what the model abstains on."""

    name: ModelName
    version: ModelVersion


class ReplyCache(Schema):
    """Replies that each pod keeps in memory for equal requests. They may quote their inputs, so that it is off unless
    asked for."""

    size: Quantity
    """Memory of each pod for replies, such as 64Mi; beyond what the model needs."""
    ttl_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """For how long a reply is kept."""

    @property
    def size_bytes(self) -> int:
        """The size as the servers take it."""
        size = quantity(self.size)
        assert size is not None, "the pattern lets quantities through only"
        return int(size)

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!quantity(string(self.size)).isLessThan(quantity('1Mi')) && "
            "!quantity(string(self.size)).isGreaterThan(quantity('1Ti'))",
            message="spec.runtime.replyCache.size is not between 1Mi and 1Ti: give a size such as 64Mi",
            check=lambda cache: 1 << 20 <= (quantity(cache.size) or 0) <= 1 << 40,
        ),
    )


class RequestLimits(Schema):
    """What one request may have; what has more is refused before it is tokenized."""

    max_inputs: Annotated[int, Field(ge=1, le=INPUTS_MAX)] = 256
    """Texts of one request."""
    max_characters: Annotated[int, Field(ge=1, le=16_777_216)] = 65_536
    """Characters of one text."""
    max_body_bytes: Annotated[int, Field(ge=1, le=BODIES_BYTES)] = 1 << 20
    """Bytes of one request's body."""


class Access(Schema):
    """Who may ask the servers, and from where. All revisions have the same."""

    api_keys: SecretKey | None = None
    """File of the keys' hashes, one `NAME:SHA256` a line, as `cloze-server key new NAME` prints it. Requests without
    one of the keys are refused; probes and metrics need none. A changed Secret counts within about a minute, without a
    restart. Without it, everybody who reaches the pods may ask."""
    cors_origins: Annotated[
        list[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s*]+)$", max_length=253)]], Field(max_length=32)
    ] = []
    """Origins whose pages may call the servers, as `https://app.example`, or `*`; none when empty."""
    playground: bool = True
    """Whether people find a playground at `/` and a reference at `/docs`."""


class Tracing(Schema):
    """Traces of requests, by OTLP over HTTP."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s/]+\S*$", max_length=2048)]
    """Address of the collector, as `http://collector.monitoring:4318`."""
    sample_ratio: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the requests that are traced, where the caller's `traceparent` doesn't decide."""


class Feedback(Schema):
    """Where labels and outcomes of former requests go, which clients send to `/v1/feedback`."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+\S*$", max_length=2048)]
    """Address that batches of feedback are POSTed to as JSON."""
    token: SecretKey | None = None
    """Bearer token for that address. A changed Secret counts within about a minute, without a restart."""


SegmentValues = Annotated[
    list[Annotated[str, Field(pattern=VALUE_PATTERN, max_length=TEXT_MAX)]], Field(min_length=1, max_length=VALUES_MAX)
]

RequestMetadata = Annotated[dict[str, SegmentValues], Field(max_length=KEYS_MAX)]
"""Keys that requests may have in their `metadata`, and the values of each."""

METADATA_RULES: Final = (
    Rule(
        cel=f"self.requestMetadata.all(key, key.matches('{KEY_PATTERN}'))",
        message="spec.requestMetadata has a key that metrics can't have: use up to 32 small letters, digits and "
        "underscores, with a letter first",
        check=lambda spec: all(map(is_key, spec.request_metadata)),
    ),
    Rule(
        cel="self.requestMetadata.all(key, self.requestMetadata[key].all(value, "
        "self.requestMetadata[key].exists_one(other, other == value)))",
        message="spec.requestMetadata has a value twice under one key: remove one",
        check=lambda spec: all(map(is_distinct, spec.request_metadata.values())),
    ),
    Rule(
        cel=f"self.requestMetadata.map(key, size(self.requestMetadata[key])).sum() <= {VALUES_MAX}",
        message=f"spec.requestMetadata has more than {VALUES_MAX} values over all keys, and each has metrics of its "
        "own: declare fewer",
        check=lambda spec: is_bounded(spec.request_metadata),
    ),
)
"""Of the model that has `request_metadata` as a field."""
