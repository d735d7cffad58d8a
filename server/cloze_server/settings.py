"""Settings of one server process, read from flags and the environment."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Never

from cloze_api.deployment import ModelDeploymentSpec, Runtime
from cloze_api.names import ENV_MODEL_URI, SERVER_PORT, TERMINATION_LOG
from cloze_api.precision import Precision
from cloze_api.serving import BODIES_BYTES, ReplyCache
from cloze_server import cpus, fallbacks, own_limits, paths, segments
from cloze_server.exits import ExitCode, FatalError
from cloze_server.flags import FLAGS, Flag, switch
from cloze_server.model import LoadedModel
from cloze_server.providers import AUTO, BY_OPENVINO, CHOICES

_RUNTIME = Runtime()
_SPEC_FIELDS = ModelDeploymentSpec.model_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one process serves, and within which bounds. Times are in seconds."""

    model: tuple[str, ...]
    """References, one for each model."""
    digest: tuple[str, ...] = ()
    """One for each model, in their order, or none at all."""
    verify_key: tuple[str, ...] = ()
    """Places of public keys, of which one must have signed what is loaded."""
    deployment: str = ""
    revision: str = ""
    mlflow_uri: str = ""
    cache: Path = Path("~/.cache/cloze/models")
    """A pod's is set by the image and by the operator."""
    # All addresses: in a pod the network policy, not the bind address, decides who may connect.
    host: str = "0.0.0.0"  # noqa: S104
    port: int = SERVER_PORT
    precision: Precision = Precision.FP32
    threads: int = field(default_factory=cpus.available)
    parallel_batches: int = 1
    provider: str = AUTO
    device_memory_bytes: int = 0
    max_batch_tokens: int | None = None
    """None: what suits the model's threads or device; see `budget`."""
    max_queue_tokens: int = _RUNTIME.max_queue_tokens
    max_wait_seconds: float = _RUNTIME.max_wait_seconds
    timeout_seconds: float = _RUNTIME.timeout_seconds
    reload_seconds: float = 0.0
    """0: only when asked by a signal."""
    drain_seconds: float = float(_SPEC_FIELDS["drain_seconds"].default)
    lame_duck_seconds: float = 5.0
    max_body_bytes: int = _RUNTIME.limits.max_body_bytes
    max_bodies_bytes: int = BODIES_BYTES
    max_inputs: int = _RUNTIME.limits.max_inputs
    max_characters: int = _RUNTIME.limits.max_characters
    limit: tuple[str, ...] = ()
    """Of single models, in place of those above, as `small:max-inputs=8`."""
    max_connections: int = 4096
    api_keys: Path | None = None
    cors_origins: tuple[str, ...] = ()
    cache_bytes: int = 0
    cache_ttl_seconds: float = float(ReplyCache.model_fields["ttl_seconds"].default)
    fallback: tuple[str, ...] = ()
    """Names of models, each with that of its fallback, as `small=large`."""
    metadata: tuple[str, ...] = ()
    """What requests may say of themselves, as `language=de,en`."""
    otlp_endpoint: str = ""
    trace_sample_ratio: float = 0.0
    feedback_url: str = ""
    feedback_token_file: Path | None = None
    playground: bool = True
    log_level: str = "info"
    termination_log: Path = Path(TERMINATION_LOG)

    @property
    def batch_threads(self) -> int:
        """Compute threads of one batch."""
        return max(1, self.threads // self.parallel_batches)

    def of(self, model: LoadedModel) -> "Settings":
        """With the limits that a model has of its own."""
        return replace(self, **own_limits.of(own_limits.declared(self.limit), model))


_DEFAULTS = {each.name: None if each.default is MISSING else each.default for each in fields(Settings)}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ORIGIN = re.compile(r"\*|https?://[^/\s*]+")
_ADDRESS = re.compile(r"https?://[^\s/]+\S*")
_LOG_LEVELS = ("debug", "info", "warning", "error")


class Parser(argparse.ArgumentParser):
    """A command line whose errors are FatalErrors (CONFIGURATION)."""

    def error(self, message: str) -> Never:
        raise FatalError(ExitCode.CONFIGURATION, "ConfigurationInvalid", message)


def parser() -> argparse.ArgumentParser:
    """The command line. Values stay text, so that flags and environment are read by the same code."""
    result = Parser(
        prog="cloze-server",
        description="Serve model versions over HTTP. Each flag may also be set by the environment variable in "
        "parentheses; the flag wins.",
        epilog=f"Endpoints: POST {', '.join(paths.INFERENCE)}, {paths.FEEDBACK}; GET {paths.PLAYGROUND}, "
        f"{paths.REFERENCE}, {paths.MODELS}, {paths.HEALTH}, {paths.READY}, {paths.METRICS}, {paths.SCHEMA}; "
        f"the Open Inference Protocol below {paths.OIP}. `cloze-server key new NAME` makes an API key, "
        "`cloze-server verify` checks an artifact, `cloze-server batch` scores a file. Exit codes: "
        + ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in ExitCode)
        + ".",
    )
    add_flags(result, FLAGS)
    return result


def add_flags(arguments: argparse.ArgumentParser, flags: Sequence[Flag]) -> None:
    """Let a command line take these settings. Values stay text: see `from_flags`."""
    for flag in flags:
        if flag.parse is switch:
            negation, same = f"--no-{flag.field}", f"the same as {flag.option} false"
            arguments.add_argument(negation, dest=flag.field, action="store_const", const="false", help=same)
        default = _DEFAULTS[flag.field]
        shown = f"; default {default}" if isinstance(default, int | float | Path) or default else ""
        if flag.field == "model":
            shown = "; required"
        action = "append" if flag.repeated else "store"
        arguments.add_argument(flag.option, metavar="…", action=action, help=f"{flag.help} ({flag.env}{shown})")


def read(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from flags, then environment, then defaults.

    Raises FatalError (CONFIGURATION) that names the flag or variable and what it takes.
    """
    return from_flags(vars(parser().parse_args(arguments)), FLAGS, environment)


def from_flags(
    given: Mapping[str, Any], flags: Sequence[Flag], environment: Mapping[str, str], **fixed: Any
) -> Settings:
    """Settings from what `add_flags` made a command line take, then environment, then defaults.

    fixed: settings that nobody may choose. Raises FatalError (CONFIGURATION).
    """
    values: dict[str, Any] = {}
    for flag in flags:
        text, origin = given[flag.field], flag.option
        if text is None:
            # An empty variable is how a manifest says "not set".
            text, origin = environment.get(flag.env) or None, flag.env
            text = text.split() if text and flag.repeated else text
        if text is not None:
            repeated = flag.repeated
            values[flag.field] = tuple(flag.parse(each) for each in text) if repeated else _value(flag, text, origin)
    if "model" not in values and "model" not in fixed:
        raise _invalid(f"no model: give --model or set {ENV_MODEL_URI} to models:/NAME/VERSION or a folder")
    if "cache" not in values and (user_cache := environment.get("XDG_CACHE_HOME")):
        values["cache"] = Path(user_cache, "cloze", "models")
    settings = Settings(**values, **fixed)
    if settings.digest and len(settings.digest) != len(settings.model):
        counts = f"{len(settings.digest)} times, and there are {len(settings.model)} models"
        raise _invalid(f"--digest is given {counts}: give one for each model, in their order, or none")
    if settings.log_level not in _LOG_LEVELS:
        raise _invalid(f"--log-level is {settings.log_level!r}: use one of {', '.join(_LOG_LEVELS)}")
    if settings.provider not in CHOICES:
        raise _invalid(f"--provider is {settings.provider!r}: use one of {', '.join(CHOICES)}")
    if settings.provider in BY_OPENVINO and settings.precision is not Precision.FP32:
        message = f"--provider {settings.provider} runs graphs in fp32, and --precision is {settings.precision}"
        raise _invalid(f"{message}: leave one of them away")
    if settings.provider in BY_OPENVINO and settings.parallel_batches > 1:
        raise _invalid(f"--provider {settings.provider} runs one batch at a time on all threads: no --parallel-batches")
    for digest in settings.digest:
        if not _DIGEST.fullmatch(digest):
            raise _invalid(f"--digest is {digest!r}: give sha256: and 64 hexadecimal digits")
    for origin in settings.cors_origins:
        if not _ORIGIN.fullmatch(origin):
            raise _invalid(f"--cors-origins is {origin!r}: give * or scheme and host, as https://app.example")
    if settings.feedback_url and not _ADDRESS.fullmatch(settings.feedback_url):
        raise _invalid("--feedback-url isn't an address: give one that begins with http:// or https://")
    try:
        fallbacks.declared(settings.fallback)
    except ValueError as error:
        raise _invalid(f"--fallback is {error}") from error
    try:
        segments.declared(settings.metadata)
    except ValueError as error:
        raise _invalid(f"--metadata is {error}") from error
    if settings.otlp_endpoint and not _ADDRESS.fullmatch(settings.otlp_endpoint):
        raise _invalid("--otlp-endpoint isn't an address: give one that begins with http:// or https://")
    if settings.trace_sample_ratio and not settings.otlp_endpoint:
        raise _invalid("--trace-sample-ratio is set, and --otlp-endpoint isn't: name the collector")
    try:
        limits = own_limits.declared(settings.limit)
    except ValueError as error:
        raise _invalid(f"--limit is {error}") from error
    for name, own in {"": {}, **limits}.items():
        each = replace(settings, **own)
        if each.max_queue_tokens < (each.max_batch_tokens or 0):
            of_model = f" of {name}" if name else ""
            raise _invalid(f"--max-queue-tokens{of_model} is smaller than --max-batch-tokens: raise it")
    if settings.max_bodies_bytes < settings.max_body_bytes:
        raise _invalid("--max-bodies-bytes is smaller than --max-body-bytes: raise it")
    if settings.drain_seconds < settings.timeout_seconds:
        message = "--drain-seconds is smaller than --timeout-seconds, so accepted requests get lost: raise it"
        raise _invalid(message)
    return settings


def _value(flag: Flag, text: str, origin: str) -> Any:
    try:
        return flag.value(text)
    except ValueError as error:
        raise _invalid(f"{origin} is {text!r}: {error}") from error


def _invalid(message: str) -> FatalError:
    return FatalError(ExitCode.CONFIGURATION, "ConfigurationInvalid", message)
