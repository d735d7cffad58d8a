"""The table of the server's settings: a flag each, with an environment variable as its twin."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloze_api.names import (
    ENV_API_KEYS,
    ENV_CACHE_BYTES,
    ENV_CACHE_TTL_SECONDS,
    ENV_CORS_ORIGINS,
    ENV_DEPLOYMENT,
    ENV_DRAIN_SECONDS,
    ENV_FALLBACK,
    ENV_FEEDBACK_TOKEN_FILE,
    ENV_FEEDBACK_URL,
    ENV_MAX_BATCH_TOKENS,
    ENV_MAX_BODY_BYTES,
    ENV_MAX_CHARACTERS,
    ENV_MAX_INPUTS,
    ENV_MAX_QUEUE_TOKENS,
    ENV_MAX_WAIT_SECONDS,
    ENV_METADATA,
    ENV_MLFLOW_URI,
    ENV_MODEL_CACHE,
    ENV_MODEL_DIGEST,
    ENV_MODEL_URI,
    ENV_OTLP_ENDPOINT,
    ENV_PLAYGROUND,
    ENV_PRECISION,
    ENV_PROVIDER,
    ENV_REVISION,
    ENV_THREADS,
    ENV_TIMEOUT_SECONDS,
    ENV_TRACE_SAMPLE_RATIO,
    ENV_VERIFY_KEY,
)
from cloze_api.precision import Precision
from cloze_api.serving import INPUTS_MAX
from cloze_server.budget import DEVICE_TOKENS, TOKENS_PER_THREAD
from cloze_server.providers import AUTO, CHOICES

ENV_TERMINATION_LOG = "CLOZE_TERMINATION_LOG"

_SECONDS_MAX = 86_400
_COUNT_MAX = 1 << 31


def switch(text: str) -> bool:
    """What `true` or `false` says. Raises ValueError for anything else."""
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


# What a text that can't be read should have been; otherwise a number.
_KINDS = {int: "a whole number", switch: "true or false", Precision: f"one of {', '.join(Precision)}"}


@dataclass(frozen=True, slots=True)
class Flag:
    """One setting on the command line and in the environment.

    minimum, maximum: the smallest and the largest allowed number; None for text. repeated: may be given several times;
    the environment separates the values by white space.
    """

    field: str
    env: str
    parse: Callable[[str], Any]
    help: str
    minimum: float | None = None
    maximum: float = _SECONDS_MAX
    repeated: bool = False

    @property
    def option(self) -> str:
        """The flag's spelling."""
        return "--" + self.field.replace("_", "-")

    def value(self, text: str) -> Any:
        """What a text says. Raises ValueError that tells what to give instead."""
        try:
            value = self.parse(text)
        except ValueError as error:
            raise ValueError(f"give {_KINDS.get(self.parse, 'a number')}") from error
        if self.minimum is not None and not value >= self.minimum:
            raise ValueError(f"give {self.minimum:g} or more")
        if self.minimum is not None and value > self.maximum:
            raise ValueError(f"give {self.maximum:.10g} or less")
        return value


# A Service named `cloze` makes Kubernetes set CLOZE_PORT and CLOZE_SERVICE_HOST in every pod of its namespace, hence
# CLOZE_LISTEN_… for the address.
FLAGS: tuple[Flag, ...] = (
    Flag(
        "model",
        ENV_MODEL_URI,
        str,
        "models:/NAME/VERSION, a folder, or dummy:[TASK][?seconds=S] (no weights: scores are a hash of the text, and "
        "dummy:echo replies with it); NAME=… gives one of the latter two a name; may be given several times",
        repeated=True,
    ),
    Flag(
        "digest",
        ENV_MODEL_DIGEST,
        str,
        "sha256:… of a model's manifest; anything else is refused; with several models one for each, in their order",
        repeated=True,
    ),
    Flag(
        "verify_key",
        ENV_VERIFY_KEY,
        str,
        "file of public keys in PEM, folder of them, or key:BASE64; an artifact without a signature by one of the keys "
        "is refused; may be given several times",
        repeated=True,
    ),
    Flag("deployment", ENV_DEPLOYMENT, str, "ModelDeployment that this replica belongs to, for metrics"),
    Flag("revision", ENV_REVISION, str, "its revision"),
    Flag("mlflow_uri", ENV_MLFLOW_URI, str, "MLflow's address; needed for models:/ unless the cache has the digest"),
    Flag("cache", ENV_MODEL_CACHE, Path, "folder for verified artifacts; the only one that is written to"),
    Flag(
        "reload_seconds",
        "CLOZE_RELOAD_SECONDS",
        float,
        "how often to look for another artifact behind --model, as SIGHUP does; 0: never",
        0,
    ),
    Flag("host", "CLOZE_LISTEN_HOST", str, "address to listen on"),
    Flag("port", "CLOZE_LISTEN_PORT", int, "port to listen on", 0, 65_535),
    Flag("precision", ENV_PRECISION, Precision, f"of the graph, if the artifact has it: {', '.join(Precision)}"),
    Flag("threads", ENV_THREADS, int, "compute threads; as many as the process may use CPUs when absent", 1, 1024),
    Flag(
        "provider",
        ENV_PROVIDER,
        str,
        f"{', '.join(CHOICES[:-1])} or {CHOICES[-1]}: where models run; {AUTO} is cuda where that works, else cpu; "
        "openvino runs on the CPU, openvino-bf16 with products in bfloat16",
    ),
    Flag(
        "device_memory_bytes",
        "CLOZE_DEVICE_MEMORY_BYTES",
        int,
        "most of a GPU's memory for each model's work, besides the runtime's own; 0: all there is",
        0,
        1 << 48,
    ),
    Flag("parallel_batches", "CLOZE_PARALLEL_BATCHES", int, "batches at the same time, which share the threads", 1, 64),
    Flag(
        "max_batch_tokens",
        ENV_MAX_BATCH_TOKENS,
        int,
        f"padded tokens in a batch; when absent {TOKENS_PER_THREAD} for each of its threads, on a GPU {DEVICE_TOKENS}",
        1,
        _COUNT_MAX,
    ),
    Flag(
        "max_queue_tokens",
        ENV_MAX_QUEUE_TOKENS,
        int,
        "tokens that may wait; beyond them a request gets 429",
        1,
        _COUNT_MAX,
    ),
    Flag(
        "max_wait_seconds",
        ENV_MAX_WAIT_SECONDS,
        float,
        "that a request may be expected to wait, by the rate of the last batches; beyond them it gets 429",
        0.001,
    ),
    Flag("timeout_seconds", ENV_TIMEOUT_SECONDS, float, "from a request's arrival until it gets 504", 0.001),
    Flag("drain_seconds", ENV_DRAIN_SECONDS, float, "after the lame-duck time: to finish accepted requests", 0),
    Flag(
        "lame_duck_seconds",
        "CLOZE_LAME_DUCK_SECONDS",
        float,
        "after SIGTERM: unready but still serving, until endpoints have noticed",
        0,
    ),
    Flag("max_body_bytes", ENV_MAX_BODY_BYTES, int, "largest request body", 1, _COUNT_MAX),
    Flag(
        "max_bodies_bytes",
        "CLOZE_MAX_BODIES_BYTES",
        int,
        "bytes of the bodies of all requests at a time; beyond them a request gets 429",
        1,
        1 << 40,
    ),
    Flag("max_inputs", ENV_MAX_INPUTS, int, "most inputs in one request", 1, INPUTS_MAX),
    Flag("max_characters", ENV_MAX_CHARACTERS, int, "most characters in one input", 1, _COUNT_MAX),
    Flag(
        "limit",
        "CLOZE_LIMIT",
        str,
        "NAME:LIMIT=NUMBER: what the model NAME has in place of --max-inputs, --max-characters, --max-queue-tokens, "
        "--max-batch-tokens or --max-wait-seconds, as small:max-inputs=8; may be given several times",
        repeated=True,
    ),
    Flag("max_connections", "CLOZE_MAX_CONNECTIONS", int, "most connections at a time", 1, 1 << 20),
    Flag(
        "api_keys",
        ENV_API_KEYS,
        Path,
        "file of the keys' hashes, NAME:SHA256 a line; without it no key is asked for",
    ),
    Flag(
        "cors_origins",
        ENV_CORS_ORIGINS,
        str,
        "origin whose pages may call the server, as https://app.example; may be given several times; none when absent",
        repeated=True,
    ),
    Flag(
        "cache_bytes",
        ENV_CACHE_BYTES,
        int,
        "memory for replies that are given again to equal requests; with 0 none are kept. They may quote their inputs",
        0,
        1 << 40,
    ),
    Flag("cache_ttl_seconds", ENV_CACHE_TTL_SECONDS, float, "for how long a reply is kept", 0.001),
    Flag(
        "fallback",
        ENV_FALLBACK,
        str,
        "NAME=OTHER: where the model NAME abstains, OTHER, with the same labels, answers; may be given several times",
        repeated=True,
    ),
    Flag(
        "metadata",
        ENV_METADATA,
        str,
        "what a request's metadata may have, as language=de,en, with metrics for each value; may be repeated",
        repeated=True,
    ),
    Flag(
        "otlp_endpoint",
        ENV_OTLP_ENDPOINT,
        str,
        "address of the collector that traces are sent to by OTLP over HTTP, as http://collector:4318",
    ),
    Flag(
        "trace_sample_ratio",
        ENV_TRACE_SAMPLE_RATIO,
        float,
        "share of the requests that are traced, where the caller's traceparent doesn't decide; with 0 none is",
        0,
        1,
    ),
    Flag("feedback_url", ENV_FEEDBACK_URL, str, "address that feedback is sent to; without it none is taken"),
    Flag("feedback_token_file", ENV_FEEDBACK_TOKEN_FILE, Path, "file of the bearer token for that address"),
    Flag(
        "playground",
        ENV_PLAYGROUND,
        switch,
        "true or false: whether people find a playground at / and a reference at /docs",
    ),
    Flag("log_level", "CLOZE_LOG_LEVEL", str, "debug, info, warning or error"),
    Flag("termination_log", ENV_TERMINATION_LOG, Path, "where a fatal error's reason is left"),
)
