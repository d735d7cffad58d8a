"""For whoever trains: how far each run is, how fast, and why others failed."""

from cloze_api import metrics
from cloze_api.metrics import Metric
from monitoring import panels
from monitoring.panels import NEEDS_ACCELERATORS, NEEDS_KNOWN_GPUS, Json, Panel, Query, Row
from monitoring.promql import sample
from monitoring.scope import RUN, RUNS, TRAINING_NAMESPACE

_BY = "namespace, kind, name"
_NAME = "{{kind}} {{namespace}}/{{name}}"


def _of_runs(metric: Metric) -> str:
    return f"max by ({_BY}) ({sample(metric)}{{{RUNS}}})"


def _runs() -> Row:
    state = f'{sample(metrics.RESOURCE_STATE)}{{kind=~"PretrainJob|FineTuneJob",{RUNS}}}'
    failures = f"sum by (kind, reason) ({sample(metrics.JOB_FAILURES)}) or vector(0)"
    return Row(
        "Runs",
        [
            Panel(
                "Runs by state",
                "The state that kubectl shows.",
                "short",
                [Query(f"max by ({_BY}, state) ({state}) == 1")],
                kind="table",
                width=12,
                hidden_columns=("Time", "Value"),
            ),
            Panel(
                "Stage of each run",
                "What its pods do now. Only training takes steps.",
                "short",
                [Query(f"max by ({_BY}, stage) ({sample(metrics.TRAIN_STAGE)}{{{RUNS}}}) == 1")],
                kind="table",
                width=12,
                hidden_columns=("Time", "Value"),
            ),
            Panel(
                "Failed for good",
                "Jobs of all namespaces that aren't tried again, by reason, since the operator's start.",
                "short",
                [Query(failures, "{{kind}} {{reason}}")],
                kind="stat",
                width=12,
                decimals=0,
            ),
            Panel(
                "Running",
                "Runs whose pods are there and work, in any stage.",
                "short",
                [
                    Query(
                        f'count(max by ({_BY}) ({sample(metrics.RESOURCE_STATE)}{{kind=~"PretrainJob|FineTuneJob",'
                        f'state="Running",{RUNS}}})) or vector(0)',
                        "running",
                    )
                ],
                kind="stat",
                width=12,
            ),
        ],
    )


def _progress() -> Row:
    blocked, waiting = sample(metrics.TRAIN_CHECKPOINT_BLOCKED), sample(metrics.TRAIN_DATA_WAIT)
    return Row(
        "Progress",
        [
            Panel(
                "Loss",
                "Training loss of the last step. A jump or a plateau says more than the value.",
                "suffix:nats",
                [
                    Query(_of_runs(metrics.TRAIN_LOSS), _NAME),
                    Query(_of_runs(metrics.TRAIN_MASKED_LOSS), f"{_NAME} held out"),
                ],
                width=12,
            ),
            Panel(
                "Steps",
                "Optimizer steps done. It goes back to the last checkpoint when a run is interrupted.",
                "short",
                [Query(_of_runs(metrics.TRAIN_STEP), _NAME)],
                width=12,
            ),
            Panel(
                "Hidden words told rightly",
                "Of held-out documents, at the evaluations within the training (`evaluation.everySteps`).",
                "percentunit",
                [Query(_of_runs(metrics.TRAIN_MASKED_ACCURACY), _NAME)],
            ),
            Panel(
                "Pseudo-perplexity",
                "Of hidden words of held-out documents; lower is better, and 1 the least.",
                "short",
                [Query(_of_runs(metrics.TRAIN_PERPLEXITY), _NAME)],
            ),
            Panel(
                "Speed",
                "Real tokens a second over all ranks, as the run measures it over half a minute.",
                "suffix:tokens/s",
                [Query(_of_runs(metrics.TRAIN_TOKENS_RATE), _NAME)],
            ),
            Panel(
                "Tokens trained on",
                "Since the run began, over all ranks.",
                "short",
                [Query(_of_runs(metrics.TRAIN_TOKENS), _NAME)],
            ),
            Panel(
                "Gradient norm",
                "Of the last step, before it was clipped. A rise announces trouble earlier than the loss does.",
                "short",
                [Query(_of_runs(metrics.TRAIN_GRADIENT_NORM), _NAME)],
            ),
            Panel(
                "What is lost on the way",
                "Share of the batch that is padding, and share of the time for which rank 0 waits for its part of the "
                "next batch.",
                "percentunit",
                [
                    Query(_of_runs(metrics.TRAIN_PADDING), f"{_NAME} padding"),
                    Query(f"max by ({_BY}) (rate({waiting}{{{RUNS}}}[$__rate_interval]))", f"{_NAME} waiting"),
                ],
            ),
            Panel(
                "Memory",
                "The most that rank 0 has had: of its GPU, or of its process where it trains on the processor.",
                "bytes",
                [Query(_of_runs(metrics.TRAIN_MEMORY), _NAME)],
            ),
            Panel(
                "Use of the GPUs' arithmetic",
                f"What the model's operations come to, as a share of what the GPUs can do (MFU). {NEEDS_KNOWN_GPUS}",
                "percentunit",
                [Query(_of_runs(metrics.TRAIN_UTILIZATION), _NAME)],
            ),
            Panel(
                "Time to make a checkpoint durable, 95th percentile",
                "Training goes on meanwhile, until the next one is due. A rise points at the volume.",
                "s",
                [
                    Query(
                        f"histogram_quantile(0.95, sum by ({_BY}, le) "
                        f"({sample(metrics.TRAIN_CHECKPOINT_DURATION, 'bucket')}{{{RUNS}}}))",
                        _NAME,
                    )
                ],
            ),
            Panel(
                "Time lost to checkpoints",
                "Share of the time for which training waited for the copy of its state, or for the write before.",
                "percentunit",
                [Query(f"max by ({_BY}) (rate({blocked}{{{RUNS}}}[$__rate_interval]))", _NAME)],
            ),
            Panel(
                "Checkpoints left out",
                "The volume was full, or the bucket away. The last good one is kept, and an interruption costs all "
                "steps since.",
                "short",
                [Query(_of_runs(metrics.TRAIN_MISSED_CHECKPOINTS), _NAME)],
                decimals=0,
            ),
            Panel(
                "Rollbacks",
                "A run that diverges goes back to a checkpoint and passes over the batches since. Repeated, it ends. "
                "Updates whose gradient isn't finite are left out, and too many of them are a divergence.",
                "short",
                [
                    Query(_of_runs(metrics.TRAIN_LEFT_OUT_UPDATES), f"{_NAME} updates left out"),
                    Query(_of_runs(metrics.TRAIN_ROLLBACKS), f"{_NAME} rollbacks"),
                    Query(_of_runs(metrics.TRAIN_SKIPPED_BATCHES), f"{_NAME} batches passed over"),
                ],
                decimals=0,
            ),
        ],
    )


def _accelerators() -> Row:
    def panel(title: str, metric: str, unit: str, what: str) -> Panel:
        # The exporter's own labels name the pod that holds the device.
        query = Query(f'avg by (namespace, pod, gpu) ({metric}{{namespace=~"$namespace"}})', "{{pod}} {{gpu}}")
        return Panel(title, f"{what} {NEEDS_ACCELERATORS}", unit, [query], width=12)

    return Row(
        "Accelerators",
        [
            panel("Accelerator use", "DCGM_FI_DEV_GPU_UTIL", "percent", "Share of the time with a kernel running."),
            panel("Accelerator memory", "DCGM_FI_DEV_FB_USED", "decmbytes", "Memory in use on each device."),
        ],
    )


def dashboard() -> Json:
    """The dashboard."""
    return panels.dashboard(
        "cloze-training",
        "Cloze / Training",
        "How far each run is, how fast, and why others failed.",
        [TRAINING_NAMESPACE, RUN],
        [_runs(), _progress(), _accelerators()],
        since="6h",
    )
