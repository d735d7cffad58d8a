"""For whoever looks for a cause: stages, batches, tokens and predictions of each pod, and the operator's own work."""

from cloze_api import metrics
from monitoring import panels
from monitoring.panels import Json, Panel, Query, Row
from monitoring.promql import sample
from monitoring.scope import (
    DEPLOYMENT,
    HERE,
    NAMESPACE,
    SUCCESSFUL,
    VERSION,
    quantile,
    rate,
    requests,
    served,
)

_VERSION = "{{name}} version {{version}}"
_BY = ("name", "version")


def _time() -> Row:
    buckets = served(rate(metrics.REQUEST_DURATION, *SUCCESSFUL, part="bucket"), within="le")
    return Row(
        "Where the time goes",
        [
            Panel(
                "Stages, 95th percentile",
                "Time in tokenizing, waiting, inference and post-processing, which add up to a request's.",
                "s",
                [Query(quantile(0.95, metrics.STAGE_DURATION, "stage"), "{{stage}}")],
            ),
            Panel(
                "Latency by length, 95th percentile",
                "Of successful requests, by tokens of the longest input: at most 32, 128, 512, or more.",
                "s",
                [Query(quantile(0.95, metrics.REQUEST_DURATION, "length", further=SUCCESSFUL), "{{length}}")],
            ),
            Panel(
                "Latency by version, 95th percentile",
                "Of successful requests. A canary is compared within classes of length, which this isn't.",
                "s",
                [Query(quantile(0.95, metrics.REQUEST_DURATION, *_BY, further=SUCCESSFUL), _VERSION)],
            ),
            Panel(
                "Distribution of latency",
                "Successful requests by how long they took.",
                "s",
                [Query(buckets, "{{le}}")],
                kind="heatmap",
                width=24,
            ),
        ],
    )


def _tokens() -> Row:
    padding = served(rate(metrics.TOKENS, 'kind="padding"'), *_BY)
    every = served(rate(metrics.TOKENS), *_BY)
    real = served(rate(metrics.TOKENS, 'kind="real"'), *_BY)
    return Row(
        "Batches and tokens",
        [
            Panel(
                "Tokens in a batch",
                "Padded tokens. Half of the batches are smaller than the median; spec.runtime.maxBatchTokens "
                "is the limit, and a longer input runs alone.",
                "short",
                [
                    Query(quantile(share, metrics.BATCH_TOKENS, *_BY), f"{_VERSION} p{share * 100:g}")
                    for share in (0.5, 0.95)
                ],
            ),
            Panel(
                "Divided batches",
                "Each time that memory was too small for a batch and it was run in two. Now and then is harmless; "
                "if it goes on, lower spec.runtime.maxBatchTokens or give the pod or the GPU more memory.",
                "cps",
                [Query(served(rate(metrics.BATCH_SPLITS), *_BY), _VERSION)],
            ),
            Panel(
                "Padding",
                "Share of the tokens that the model ran on for nothing.",
                "percentunit",
                [Query(f"{padding} / ({every} > 0)", _VERSION)],
            ),
            Panel(
                "Unknown tokens",
                "Share of the real tokens that the vocabulary doesn't have. A jump is another language, another "
                "encoding, or another tokenizer.",
                "percentunit",
                [Query(f"{served(rate(metrics.UNKNOWN_TOKENS), *_BY)} / ({real} > 0)", _VERSION)],
            ),
            Panel(
                "Inputs that were cut",
                "Answered inputs that were longer than the longest sequence.",
                "cps",
                [Query(served(rate(metrics.TRUNCATED), *_BY), _VERSION)],
            ),
        ],
    )


def _predictions() -> Row:
    labels = served(rate(metrics.PREDICTIONS), "name", within="label")
    return Row(
        "Predictions",
        [
            Panel(
                "Predicted labels",
                "Share of each label among the answers of classifiers.",
                "percentunit",
                [
                    Query(
                        f"{labels} / on (name) group_left () ({served(rate(metrics.PREDICTIONS), 'name')} > 0)",
                        "{{name}} {{label}}",
                    )
                ],
                stacked=True,
            ),
            Panel(
                "Feedback",
                "On former requests: sent on, dropped because nobody took it, or repeated.",
                "cps",
                [Query(served(rate(metrics.FEEDBACK), within="result"), "{{result}}")],
            ),
            Panel(
                "Confidence",
                "Probability of the answered label: a tenth of the answers are below the first line, half below the "
                "second.",
                "percentunit",
                [
                    Query(quantile(share, metrics.PREDICTION_CONFIDENCE, *_BY), f"{_VERSION} p{share * 100:g}")
                    for share in (0.1, 0.5)
                ],
            ),
            Panel(
                "Abstentions",
                "Answers of classifiers whose probability is below the threshold that their model was calibrated to.",
                "cps",
                [Query(served(rate(metrics.ABSTAINED), *_BY), _VERSION)],
            ),
        ],
    )


def _segments() -> Row:
    segment, value = "key, value", "{{name}} {{key}}={{value}}"
    requests_by = served(rate(metrics.SEGMENT_REQUESTS), "name", within=segment)
    failed = served(rate(metrics.SEGMENT_REQUESTS, 'status_class="5xx"'), "name", within=segment)
    return Row(
        "Segments, as requests declare them",
        [
            Panel("Requests", panels.NEEDS_METADATA, "reqps", [Query(requests_by, value)]),
            Panel("Server errors", panels.NEEDS_METADATA, "reqps", [Query(failed, value)]),
            Panel(
                "Latency, 95th percentile",
                panels.NEEDS_METADATA,
                "s",
                [Query(quantile(0.95, metrics.SEGMENT_DURATION, "name", "key", "value"), value)],
            ),
            Panel(
                "Predictions by label",
                panels.NEEDS_METADATA,
                "cps",
                [
                    Query(
                        served(rate(metrics.SEGMENT_PREDICTIONS), "name", within=f"{segment}, label"),
                        f"{value} {{{{label}}}}",
                    )
                ],
            ),
            Panel(
                "Confidence, median",
                panels.NEEDS_METADATA,
                "percentunit",
                [Query(quantile(0.5, metrics.SEGMENT_CONFIDENCE, "name", "key", "value"), value)],
            ),
            Panel(
                "Abstentions by segment",
                panels.NEEDS_METADATA,
                "cps",
                [Query(served(rate(metrics.SEGMENT_ABSTAINED), "name", within=segment), value)],
            ),
        ],
    )


def _kept() -> Row:
    result = "{{result}}"
    return Row(
        "Replies that are kept, fallback models and traces",
        [
            Panel(
                "Kept replies",
                "Requests that were answered from the cache of replies (hit), with an equal one (shared), or by the "
                "model (miss). All 0 while there is no cache.",
                "reqps",
                [Query(served(rate(metrics.CACHE_REQUESTS), *_BY, within="result"), f"{_VERSION} {result}")],
            ),
            Panel(
                "Size of the cache",
                "Bytes of the replies that each pod keeps.",
                "bytes",
                [Query(served(f"{sample(metrics.CACHE_BYTES)}{{{HERE}}}", "pod"), "{{pod}}")],
            ),
            Panel(
                "Replies let go",
                "To make room for others. Many with few hits: the cache is too small, or requests don't repeat.",
                "cps",
                [Query(served(rate(metrics.CACHE_EVICTIONS), "pod"), "{{pod}}")],
            ),
            Panel(
                "Inputs for a fallback",
                f"Those that the first model abstained on, and what became of them. {panels.NEEDS_FALLBACK}",
                "cps",
                [Query(served(rate(metrics.FALLBACKS), *_BY, within="result"), f"{_VERSION} {result}")],
            ),
            Panel(
                "Spans",
                "Of traced requests: sent, or dropped because the collector didn't take them.",
                "cps",
                [Query(served(rate(metrics.TRACE_SPANS), within="result"), result)],
            ),
        ],
    )


def _replicas() -> Row:
    pod = "{{pod}}"
    return Row(
        "Replicas",
        [
            Panel(
                "Requests by pod",
                "One that gets few isn't ready, or clients hold on to others.",
                "reqps",
                [Query(served(requests(), "pod"), pod)],
            ),
            Panel(
                "Server errors by pod",
                "One pod alone: its machine. All pods of a version: the version.",
                "reqps",
                [Query(served(requests('status=~"5.."'), "pod", "version"), f"{pod} version {{{{version}}}}")],
            ),
            Panel(
                "CPU by pod",
                "Cores that the server's process uses.",
                "short",
                [Query(served(f"rate(process_cpu_seconds_total{{{HERE}}}[$__rate_interval])", "pod"), pod)],
            ),
            Panel(
                "Memory by pod",
                "Resident memory of the server's process.",
                "bytes",
                [Query(served(f"process_resident_memory_bytes{{{HERE}}}", "pod"), pod)],
            ),
            Panel(
                "Open connections",
                "With a request or without one. The server closes idle ones when there would be too many.",
                "short",
                [Query(served(f"{sample(metrics.CONNECTIONS)}{{{HERE}}}", "pod"), pod)],
            ),
            Panel(
                "Connections that the server ended",
                "Because of what their client did: sent what is no HTTP, or too much, or too slowly; read no reply; or "
                "held one without asking while others needed it.",
                "cps",
                [Query(served(rate(metrics.CONNECTIONS_ENDED), "pod", within="reason"), f"{pod} {{{{reason}}}}")],
            ),
            Panel(
                "API keys that can't be read",
                "Looks at a file of API keys that failed. The server goes on with the keys that it has; its log says "
                "why.",
                "cps",
                [Query(served(rate(metrics.KEY_FILE_ERRORS), "pod"), pod)],
            ),
            Panel(
                "Artifacts that were not reloaded",
                "Other artifacts behind the reference of a running server that failed to be verified, loaded or "
                "warmed up. The former ones go on; `/v1/models` and the log say why.",
                "cps",
                [Query(served(rate(metrics.RELOADS, 'result="refused"'), "pod"), pod)],
            ),
            Panel(
                "Revisions",
                "What each pod has loaded, with its digest.",
                "short",
                [Query(f'{sample(metrics.MODEL_INFO)}{{{HERE},deployment=~"$deployment",version=~"$version"}}')],
                kind="table",
                width=16,
                hidden_columns=("Time", "Value", "__name__", "instance", "job", "endpoint", "container"),
            ),
        ],
    )


def _operator() -> Row:
    duration = sample(metrics.RECONCILE_DURATION, "bucket")
    return Row(
        "Operator",
        [
            Panel(
                "Reconciliations",
                "By kind and result. A conflict is tried again at once and is nothing bad.",
                "cps",
                [
                    Query(
                        f"sum by (kind, result) (rate({sample(metrics.RECONCILES)}[$__rate_interval]))",
                        "{{kind}} {{result}}",
                    )
                ],
            ),
            Panel(
                "Time of a reconciliation, 95th percentile",
                "By kind. Seconds point at the API server, at MLflow or at pods that don't answer.",
                "s",
                [
                    Query(
                        f"histogram_quantile(0.95, sum by (kind, le) (rate({duration}[$__rate_interval])))",
                        "{{kind}}",
                    )
                ],
            ),
            Panel(
                "Objects that wait",
                "Due, without a worker. It goes back to 0 after a start and a resync.",
                "short",
                [Query(f"sum by (namespace, pod) ({sample(metrics.QUEUE_DEPTH)})", "{{pod}}")],
            ),
            Panel(
                "Events that got lost",
                "Kubernetes events that couldn't be recorded. The status has what they tell.",
                "cps",
                [
                    Query(
                        f"sum by (namespace) (rate({sample(metrics.EVENT_ERRORS)}[$__rate_interval]))",
                        "{{namespace}}",
                    )
                ],
            ),
        ],
    )


def dashboard() -> Json:
    """The dashboard."""
    return panels.dashboard(
        "cloze-debug",
        "Cloze / Debug",
        "Stages, batches, tokens and predictions of each pod, and the operator's own work.",
        [NAMESPACE, DEPLOYMENT, VERSION],
        [_time(), _tokens(), _predictions(), _segments(), _kept(), _replicas(), _operator()],
        since="1h",
    )
