"""Every metric that Cloze exports: name, help, labels, and buckets, declared once."""

import itertools
import math
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """A Prometheus metric. `name` is without the `_total` that the client library adds to counters."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Requests may wait, and be allowed to: as far as the longest timeout.
_LONG_SECONDS = (30.0, 60.0, 120.0, 300.0, 600.0)
#: Boundaries of the latency histogram that an objective may lie on.
OBJECTIVE_SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def _fine_seconds() -> tuple[float, ...]:
    """Boundaries at most 15 % apart from 2 ms to 1 s, the objectives among them, in three significant digits."""
    anchors = [0.002, *(seconds for seconds in OBJECTIVE_SECONDS if seconds <= 1)]
    fine = []
    for low, high in itertools.pairwise(anchors):
        # Half a per cent less than allowed: rounding takes up to that.
        parts = math.ceil(math.log(high / low) / math.log(1.145))
        fine += [float(f"{low * (high / low) ** (part / parts):.3g}") for part in range(parts)]
    return (*fine, anchors[-1])


# Coarser where no canary is judged.
_REQUEST_SECONDS = (0.001, *_fine_seconds(), *(each for each in OBJECTIVE_SECONDS if each > 1), *_LONG_SECONDS)

LENGTHS: Final = (32, 128, 512)
"""Upper bounds, in tokens, of the classes of length that durations are kept by: label values `32`, `128`, `512`."""
LENGTH_MORE: Final = "more"
LENGTH_NONE: Final = "none"
"""Class of a request that was not tokenized: refused before, or of a route without a model."""

PREDICTION_LABELS_MAX: Final = 100
"""Labels of a model that are counted by name."""
PREDICTION_LABEL_OTHER: Final = "other"
"""Stands for all the others."""

_MODEL = ("model", "version")

# Inference server.
REQUESTS = Metric(
    "cloze_requests", "counter", "Requests answered, by route and HTTP status.", (*_MODEL, "route", "status")
)
REQUEST_DURATION = Metric(
    "cloze_request_duration_seconds",
    "histogram",
    "From the request's arrival to its reply, by class of HTTP status (2xx, 4xx or 5xx) and by the length of its "
    "longest input: at most 32, 128 or 512 tokens, more, or none when it was not tokenized.",
    (*_MODEL, "route", "status_class", "length"),
    _REQUEST_SECONDS,
)
STAGE_DURATION = Metric(
    "cloze_stage_duration_seconds",
    "histogram",
    "Time in one stage of a request: tokenize, queue, infer or post.",
    (*_MODEL, "stage"),
    (*_SECONDS, *_LONG_SECONDS),
)
BATCH_TOKENS = Metric(
    "cloze_batch_tokens",
    "histogram",
    "Padded tokens in one batch.",
    _MODEL,
    (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
)
BATCH_SPLITS = Metric(
    "cloze_batch_splits", "counter", "Batches that were divided in two because memory was too small for them.", _MODEL
)
TOKENS = Metric("cloze_tokens", "counter", "Tokens that the model ran on; kind is real or padding.", (*_MODEL, "kind"))
UNKNOWN_TOKENS = Metric(
    "cloze_unknown_tokens", "counter", "Tokens of answered inputs that the vocabulary doesn't have.", _MODEL
)
QUEUE_TOKENS = Metric("cloze_queue_tokens", "gauge", "Tokens that wait for a batch.", _MODEL)
IN_FLIGHT = Metric("cloze_in_flight_requests", "gauge", "Requests accepted and not yet answered.", _MODEL)
TRUNCATED = Metric(
    "cloze_truncated_inputs", "counter", "Answered inputs that were cut to the longest sequence.", _MODEL
)
PREDICTIONS = Metric(
    "cloze_predictions",
    "counter",
    "Labels that a classifier answered: one for each text, word or entity; other stands for labels past the hundredth.",
    (*_MODEL, "label"),
)
PREDICTION_CONFIDENCE = Metric(
    "cloze_prediction_confidence",
    "histogram",
    "Probability of each answered label; for fill-mask, of the likeliest token of each mask; for question answering, "
    "score of the best answer.",
    _MODEL,
    tuple(step / 10 for step in range(1, 11)),
)
ABSTAINED = Metric(
    "cloze_abstained_predictions",
    "counter",
    "Labels that a classifier answered with a probability below their threshold.",
    _MODEL,
)
MODEL_INFO = Metric(
    "cloze_model",
    "info",
    "The loaded model, and the ModelDeployment and revision that this replica belongs to (empty outside a cluster).",
    ("model", "version", "digest", "task", "deployment", "revision"),
)
FALLBACK_RESULTS: Final = ("answered", "abstained", "failed")
"""What a fallback does with an input: it is sure, it isn't either, or it can't answer and the first model's stays."""
FALLBACKS = Metric(
    "cloze_fallback_inputs",
    "counter",
    f"Inputs that a model abstained on and its fallback was asked for, by result: {', '.join(FALLBACK_RESULTS)}.",
    (*_MODEL, "result"),
)
# By what requests say of themselves; `key` and `value` are of those that the server's settings declare.
_SEGMENT = (*_MODEL, "key", "value")
SEGMENT_REQUESTS = Metric(
    "cloze_segment_requests",
    "counter",
    "Answered requests by declared metadata and class of HTTP status; one with two keys counts under both.",
    (*_SEGMENT, "status_class"),
)
SEGMENT_DURATION = Metric(
    "cloze_segment_request_duration_seconds",
    "histogram",
    "From a successful request's arrival to its reply, by declared metadata.",
    _SEGMENT,
    OBJECTIVE_SECONDS,
)
SEGMENT_PREDICTIONS = Metric(
    "cloze_segment_predictions",
    "counter",
    "Labels that a classifier answered, by declared metadata.",
    (*_SEGMENT, "label"),
)
SEGMENT_CONFIDENCE = Metric(
    "cloze_segment_prediction_confidence",
    "histogram",
    "Probabilities as in cloze_prediction_confidence, by declared metadata.",
    _SEGMENT,
    PREDICTION_CONFIDENCE.buckets,
)
SEGMENT_ABSTAINED = Metric(
    "cloze_segment_abstained_predictions",
    "counter",
    "Labels with a probability below their threshold, by declared metadata.",
    _SEGMENT,
)
CACHE_RESULTS: Final = ("hit", "miss", "shared")
"""How a cache of replies answers: the reply was kept, had to be made, or was being made for an equal request."""
CACHE_REQUESTS = Metric(
    "cloze_cache_requests",
    "counter",
    f"Answered requests that were looked up among the kept replies, by result: {', '.join(CACHE_RESULTS)}.",
    (*_MODEL, "result"),
)
CACHE_BYTES = Metric("cloze_cache_bytes", "gauge", "Memory that kept replies take, about.")
CACHE_EVICTIONS = Metric(
    "cloze_cache_evictions", "counter", "Kept replies that were let go because of their age or of the memory's bound."
)
CONNECTIONS = Metric("cloze_open_connections", "gauge", "Connections of clients, with or without a request.")
CONNECTION_ENDS: Final = ("request-invalid", "head-too-large", "head-timeout", "unread", "crowded")
"""Why a server ended a connection: the first three are types of the problem that it answered."""
CONNECTIONS_ENDED = Metric(
    "cloze_ended_connections",
    "counter",
    f"Connections that the server ended because of what their client did, by why: {', '.join(CONNECTION_ENDS)}.",
    ("reason",),
)
KEY_FILE_ERRORS = Metric(
    "cloze_key_file_errors",
    "counter",
    "Times that a server looked at its file of API keys and couldn't read it; the former keys stay in force.",
)
TRACE_RESULTS: Final = ("sent", "dropped")
"""What becomes of spans."""
TRACE_SPANS = Metric(
    "cloze_trace_spans",
    "counter",
    "Spans of traced requests, by whether the collector took them: sent or dropped. A request that isn't traced "
    "because too many spans wait counts as one that was dropped.",
    ("result",),
)
RELOAD_RESULTS: Final = ("loaded", "refused")
"""What becomes of another artifact behind a server's reference."""
RELOADS = Metric(
    "cloze_reload_events",
    "counter",
    "Other artifacts found behind a running server's reference: loaded, or refused while the former one goes on.",
    ("result",),
)
FEEDBACK_RESULTS: Final = ("sent", "dropped", "repeated")
"""What becomes of feedback."""
FEEDBACK = Metric(
    "cloze_feedback_events",
    "counter",
    f"Feedback on former requests, by what became of it: {', '.join(FEEDBACK_RESULTS)}.",
    ("result",),
)

# Trainer.
# Not `job`, nor `namespace`: Prometheus gives those to what it scrapes.
_RUN = ("kind", "name")
TRAIN_STAGE = Metric(
    "cloze_train_stage",
    "gauge",
    "1 for the present stage of a run: data, tokenizer, training, evaluation, export, registration or done.",
    (*_RUN, "stage"),
)
TRAIN_STEP = Metric("cloze_train_step", "gauge", "Optimizer steps done.", _RUN)
TRAIN_LOSS = Metric("cloze_train_loss_nats", "gauge", "Training loss of the last step.", _RUN)
TRAIN_TOKENS = Metric("cloze_train_tokens", "counter", "Real tokens trained on, over all ranks.", _RUN)
TRAIN_TOKENS_RATE = Metric("cloze_train_tokens_per_second", "gauge", "Real tokens a second over all ranks.", _RUN)
TRAIN_GRADIENT_NORM = Metric(
    "cloze_train_gradient_norm", "gauge", "Norm of the last step's gradient, before it was clipped.", _RUN
)
TRAIN_PADDING = Metric("cloze_train_padding_ratio", "gauge", "Share of the last batch that was padding.", _RUN)
TRAIN_DATA_WAIT = Metric(
    "cloze_train_data_wait_seconds", "counter", "Time for which rank 0 waited for its part of the next batch.", _RUN
)
TRAIN_MEMORY = Metric(
    "cloze_train_memory_peak_bytes", "gauge", "Most memory that rank 0 has had: of its GPU, or of its process.", _RUN
)
TRAIN_UTILIZATION = Metric(
    "cloze_train_flops_ratio",
    "gauge",
    "Share of what the GPUs can multiply that the model's own operations come to (MFU); known GPUs only.",
    _RUN,
)
TRAIN_CHECKPOINT_BLOCKED = Metric(
    "cloze_train_checkpoint_blocked_seconds",
    "counter",
    "Time for which the training waited for a checkpoint: for the copy of its state, and for the write before.",
    _RUN,
)
TRAIN_MISSED_CHECKPOINTS = Metric(
    "cloze_train_missed_checkpoints",
    "counter",
    "Checkpoints that were left out as the volume was full or the bucket away.",
    _RUN,
)
TRAIN_ROLLBACKS = Metric(
    "cloze_train_rollbacks", "counter", "How often a diverging training went back to a checkpoint.", _RUN
)
TRAIN_SKIPPED_BATCHES = Metric(
    "cloze_train_skipped_batches", "counter", "Batches that were passed over after the training had diverged.", _RUN
)
TRAIN_LEFT_OUT_UPDATES = Metric(
    "cloze_train_left_out_updates", "counter", "Updates that were left out as their gradient wasn't finite.", _RUN
)
TRAIN_MASKED_LOSS = Metric(
    "cloze_train_masked_loss_nats", "gauge", "Loss on held-out documents, at the last evaluation in the training.", _RUN
)
TRAIN_MASKED_ACCURACY = Metric(
    "cloze_train_masked_accuracy_ratio", "gauge", "Share of their hidden tokens that were told rightly then.", _RUN
)
TRAIN_PERPLEXITY = Metric(
    "cloze_train_pseudo_perplexity", "gauge", "Exponential of that loss: over hidden tokens, not over a text.", _RUN
)
TRAIN_CHECKPOINT_DURATION = Metric(
    "cloze_train_checkpoint_duration_seconds",
    "histogram",
    "Time to make a checkpoint durable.",
    _RUN,
    (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)

# Operator.
RECONCILES = Metric("cloze_operator_reconciles", "counter", "Reconciliations, by kind and result.", ("kind", "result"))
RECONCILE_DURATION = Metric(
    "cloze_operator_reconcile_duration_seconds",
    "histogram",
    "Time of one reconciliation.",
    ("kind",),
    _SECONDS,
)
QUEUE_DEPTH = Metric("cloze_operator_queue_depth", "gauge", "Objects that are due and wait for a worker.")
RESOURCE_STATE = Metric(
    "cloze_resource_state",
    "gauge",
    "1 for the present state of each resource.",
    ("kind", "namespace", "name", "state"),
)
JOB_FAILURES = Metric("cloze_job_failures", "counter", "Training jobs that failed for good.", ("kind", "reason"))
REGISTRY_ERRORS = Metric("cloze_registry_errors", "counter", "Calls to the registry that failed.", ("operation",))
_DEPLOYMENT = ("namespace", "name")
ROLLOUT_IN_PROGRESS = Metric(
    "cloze_rollout_in_progress",
    "gauge",
    "1 while a ModelDeployment has a canary or watches one it has promoted.",
    _DEPLOYMENT,
)
ROLLOUT_STEP = Metric("cloze_rollout_step", "gauge", "Step of the rollout, from 1; 0 without a canary.", _DEPLOYMENT)
ROLLOUT_WEIGHT = Metric(
    "cloze_rollout_canary_weight_ratio", "gauge", "Share of the requests that the canary is given, 0 to 1.", _DEPLOYMENT
)
ROLLOUT_RESULTS: Final = ("promoted", "rolled_back", "aborted", "superseded")
"""How a rollout ends."""
ROLLOUTS = Metric(
    "cloze_rollouts",
    "counter",
    f"Rollouts that ended: {', '.join(ROLLOUT_RESULTS)}.",
    (*_DEPLOYMENT, "result"),
)
ROLLOUT_CHECK = Metric(
    "cloze_rollout_check",
    "gauge",
    "1 for the present result of each check of a canary: pass, fail, waiting, no_data or unknown.",
    (*_DEPLOYMENT, "check", "result"),
)
OBJECTIVE_AVAILABILITY = Metric(
    "cloze_objective_availability_ratio",
    "gauge",
    "Share of the requests of a ModelDeployment that has to be answered without a server error.",
    _DEPLOYMENT,
)
OBJECTIVE_LATENCY = Metric(
    "cloze_objective_latency_seconds",
    "gauge",
    "Time within which a request has to be answered; `le` is the same as a bucket's boundary, to join with.",
    (*_DEPLOYMENT, "le"),
)
OBJECTIVE_LATENCY_RATIO = Metric(
    "cloze_objective_latency_ratio",
    "gauge",
    "Share of the successful requests that has to be answered in time.",
    _DEPLOYMENT,
)
VERSION_MISMATCH = Metric(
    "cloze_version_mismatch_pods",
    "gauge",
    "Ready pods that report another version than they were made for.",
    _DEPLOYMENT,
)
LEADER = Metric("cloze_operator_leader", "gauge", "1 on the operator that holds the lease, 0 on a standby.")
PROMETHEUS_ERRORS = Metric(
    "cloze_prometheus_errors", "counter", "Queries of canary analysis that Prometheus refused or didn't answer."
)
EVENT_ERRORS = Metric("cloze_operator_event_errors", "counter", "Kubernetes events that couldn't be recorded.")

ALL: tuple[Metric, ...] = tuple(value for value in globals().copy().values() if isinstance(value, Metric))
