"""The servers' settings besides the model: environment variables, and what is mounted from Secrets."""

import math
from dataclasses import dataclass
from typing import Any, Final

from cloze_api.deployment import ModelDeploymentSpec, Runtime
from cloze_api.names import (
    ENV_API_KEYS,
    ENV_CACHE_BYTES,
    ENV_CACHE_TTL_SECONDS,
    ENV_CORS_ORIGINS,
    ENV_FEEDBACK_TOKEN_FILE,
    ENV_FEEDBACK_URL,
    ENV_MAX_BATCH_TOKENS,
    ENV_MAX_BODY_BYTES,
    ENV_MAX_CHARACTERS,
    ENV_MAX_INPUTS,
    ENV_MAX_QUEUE_TOKENS,
    ENV_MAX_WAIT_SECONDS,
    ENV_METADATA,
    ENV_OTLP_ENDPOINT,
    ENV_PLAYGROUND,
    ENV_PRECISION,
    ENV_THREADS,
    ENV_TIMEOUT_SECONDS,
    ENV_TRACE_SAMPLE_RATIO,
    SECRETS_MOUNT,
)
from cloze_api.precision import Precision
from cloze_api.quantity import quantity
from cloze_api.serving import SecretKey
from cloze_api.training import Resources

_DEFAULTS: Final = Runtime()
# Read by the owner and by the pod's fsGroup, as which the server runs.
_MODE: Final = 0o440
_FILE: Final = "value"


@dataclass(frozen=True, slots=True)
class MountedSecret:
    """One key of a Secret as a file. The folder is mounted, not the file: only so a changed Secret changes it."""

    volume: str
    source: SecretKey

    @property
    def path(self) -> str:
        """Where the server finds it."""
        return f"{SECRETS_MOUNT}/{self.volume}/{_FILE}"

    def as_volume(self) -> dict[str, Any]:
        """The pod's volume. A Secret or a key that is missing keeps the pod from starting."""
        items = [{"key": self.source.key, "path": _FILE}]
        return {
            "name": self.volume,
            "secret": {"secretName": self.source.name, "items": items, "defaultMode": _MODE},
        }

    def as_mount(self) -> dict[str, Any]:
        """The container's mount."""
        return {"name": self.volume, "mountPath": f"{SECRETS_MOUNT}/{self.volume}", "readOnly": True}


def _api_keys(spec: ModelDeploymentSpec) -> MountedSecret | None:
    return MountedSecret("api-keys", spec.access.api_keys) if spec.access.api_keys else None


def _feedback_token(spec: ModelDeploymentSpec) -> MountedSecret | None:
    return MountedSecret("feedback-token", spec.feedback.token) if spec.feedback and spec.feedback.token else None


def mounted_secrets(spec: ModelDeploymentSpec) -> tuple[MountedSecret, ...]:
    """What the servers read from Secrets."""
    return tuple(filter(None, (_api_keys(spec), _feedback_token(spec))))


def _threads(runtime: Runtime, resources: Resources) -> int | None:
    """Compute threads, where the server wouldn't find the right number itself: it sees the CPU limit, but not what the
    pod asks for, and without a limit would take all of a node's CPUs."""
    if runtime.threads or "cpu" in resources.limits:
        return runtime.threads
    asked = quantity(resources.requests.get("cpu"))
    return math.ceil(asked) if asked else None


def runtime_environment(runtime: Runtime, resources: Resources) -> dict[str, str]:
    """Settings that belong to a revision. What has its default is left to the server, so that nothing rolls for it."""
    threads = _threads(runtime, resources)
    limits, defaults, cache = runtime.limits, _DEFAULTS.limits, runtime.reply_cache
    bounds = (
        (ENV_MAX_WAIT_SECONDS, runtime.max_wait_seconds, _DEFAULTS.max_wait_seconds),
        (ENV_MAX_INPUTS, limits.max_inputs, defaults.max_inputs),
        (ENV_MAX_CHARACTERS, limits.max_characters, defaults.max_characters),
        (ENV_MAX_BODY_BYTES, limits.max_body_bytes, defaults.max_body_bytes),
    )
    kept = {ENV_CACHE_BYTES: str(cache.size_bytes), ENV_CACHE_TTL_SECONDS: str(cache.ttl_seconds)} if cache else {}
    return {
        # What is absent the server knows better, from its control group and its device.
        **({ENV_THREADS: str(threads)} if threads else {}),
        **({ENV_MAX_BATCH_TOKENS: str(runtime.max_batch_tokens)} if runtime.max_batch_tokens else {}),
        ENV_MAX_QUEUE_TOKENS: str(runtime.max_queue_tokens),
        ENV_TIMEOUT_SECONDS: str(runtime.timeout_seconds),
        **({} if runtime.precision is Precision.FP32 else {ENV_PRECISION: runtime.precision.value}),
        **{name: str(value) for name, value, default in bounds if value != default},
        **kept,
    }


def shared_environment(spec: ModelDeploymentSpec) -> dict[str, str]:
    """Settings that all revisions share: who may ask, and whom the servers tell. Absent where not asked for."""
    access, found = spec.access, dict[str, str]()
    if keys := _api_keys(spec):
        found[ENV_API_KEYS] = keys.path
    if access.cors_origins:
        found[ENV_CORS_ORIGINS] = " ".join(access.cors_origins)
    if not access.playground:
        found[ENV_PLAYGROUND] = "false"
    if spec.request_metadata:
        # In the order of the keys, not of a file: what means the same rolls nothing.
        known = sorted(spec.request_metadata.items())
        found[ENV_METADATA] = " ".join(f"{key}={','.join(values)}" for key, values in known)
    if spec.tracing:
        found[ENV_OTLP_ENDPOINT] = spec.tracing.endpoint
        found[ENV_TRACE_SAMPLE_RATIO] = format(spec.tracing.sample_ratio, ".12g")
    if spec.feedback:
        found[ENV_FEEDBACK_URL] = spec.feedback.url
    if token := _feedback_token(spec):
        found[ENV_FEEDBACK_TOKEN_FILE] = token.path
    return found
