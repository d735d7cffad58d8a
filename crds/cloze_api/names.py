"""Group, labels, annotations, ports, paths and environment variables that more than one room uses."""

from typing import Final

GROUP: Final = "cloze.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

# Field manager of every server-side apply by the operator, but for the condition that a reconciliation has failed.
FIELD_MANAGER: Final = "cloze-operator"
ERROR_FIELD_MANAGER: Final = "cloze-operator-errors"

# Labels on every child object.
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "cloze"
LABEL_KIND: Final = f"{GROUP}/kind"
LABEL_OWNER: Final = f"{GROUP}/owner"
LABEL_REVISION: Final = f"{GROUP}/revision"
"""On what belongs to one revision of a ModelDeployment: the hash of what defines it."""

# Kueue's labels: what a training job carries of them its Job carries too.
QUEUE_PREFIX: Final = "kueue.x-k8s.io/"
LABEL_QUEUE: Final = f"{QUEUE_PREFIX}queue-name"

# Annotations.
ANNOTATION_CONTENT_DIGEST: Final = f"{GROUP}/content-digest"
ANNOTATION_MODEL_VERSION: Final = f"{GROUP}/model-version"
ANNOTATION_MODEL_DIGEST: Final = f"{GROUP}/model-digest"
ANNOTATION_ROLLOUT: Final = f"{GROUP}/rollout"
"""On a ModelDeployment: promote, abort, pause, resume or retry. The operator takes it away when it has obeyed."""

# Tags on MLflow runs, logged models and model versions.
TAG_JOB_UID: Final = f"{GROUP}/job-uid"
TAG_JOB: Final = f"{GROUP}/job"
TAG_DIGEST: Final = f"{GROUP}/digest"
TAG_TASK: Final = f"{GROUP}/task"
TAG_SCHEMA: Final = f"{GROUP}/manifest-schema"
TAG_TOKENIZER: Final = f"{GROUP}/tokenizer"
TAG_LABELS: Final = f"{GROUP}/labels"
TAG_PRECISIONS: Final = f"{GROUP}/precisions"
TAG_QUARANTINED: Final = f"{GROUP}/quarantined"
"""Why a canary of this version was rolled back; such a version isn't tried again by itself."""

# Default aliases on a registered model. The operator alone moves them.
CANDIDATE_ALIAS: Final = "challenger"
PROMOTED_ALIAS: Final = "champion"

# Training pods.
JOB_FILE: Final = "/etc/cloze/job.yaml"
"""The resource that a training pod carries out, mounted from a ConfigMap. `spec.base` is already resolved."""
CORPUS_MOUNT: Final = "/corpus"
"""Parent of the read-only mounts of `pvc://` and `configmap://` sources: see `cloze_api.source`."""
WORKSPACE_MOUNT: Final = "/workspace"
"""The run's volume: shards, tokenizer, checkpoints and the finished artifact."""
DATA_CACHE_MOUNT: Final = "/data-cache"
"""Where the claim of `spec.storage.dataCache` is mounted."""
PROGRESS_PORT: Final = 9400
"""HTTP port of a training pod: `/progress` (a `cloze_api.progress.Progress`), `/metrics`, `/healthz`."""
RENDEZVOUS_PORT: Final = 29400
TERMINATION_LOG: Final = "/dev/termination-log"
"""Where the trainer leaves a `cloze_api.progress.Outcome` as JSON (Kubernetes keeps 4,096 bytes)."""

ENV_WORKSPACE: Final = "CLOZE_WORKSPACE"
ENV_CORPUS_ROOT: Final = "CLOZE_CORPUS_ROOT"
ENV_DATA_CACHE: Final = "CLOZE_DATA_CACHE"
"""Folder of prepared data that runs share; each has its own when unset."""
ENV_RENDEZVOUS: Final = "CLOZE_RENDEZVOUS"
"""`host:port` of torch elastic's c10d rendezvous; unset outside Kubernetes."""
ENV_JOB_UID: Final = "CLOZE_JOB_UID"
ENV_BASE_DIGEST: Final = "CLOZE_BASE_DIGEST"
"""Digest of the base model version that the operator resolved; the trainer refuses any other artifact."""
ENV_TEACHER_DIGEST: Final = "CLOZE_TEACHER_DIGEST"
"""The same of the teacher."""
ENV_ATTEMPT_DEADLINE: Final = "CLOZE_RENDEZVOUS_TIMEOUT_SECONDS"
ENV_SIGNING_KEY: Final = "CLOZE_SIGNING_KEY"
"""File of the private key by which artifacts are signed before they are registered."""
SIGNING_MOUNT: Final = "/etc/cloze/signing"
"""Where the Secret of `spec.registry.signing` is mounted."""
ENV_MLFLOW_URI: Final = "MLFLOW_TRACKING_URI"

# Serving pods.
SERVER_PORT: Final = 8080
ENV_MODEL_URI: Final = "CLOZE_MODEL_URI"
"""`models:/<name>/<version>` or a directory; several, separated by spaces."""
ENV_MODEL_DIGEST: Final = "CLOZE_MODEL_DIGEST"
"""The manifest's digest that the operator decided on, one for each model; the server refuses anything else."""
ENV_VERIFY_KEY: Final = "CLOZE_VERIFY_KEY"
"""Public keys, separated by spaces, of which one must have signed the artifact: files, folders, or `key:` and the
base64 that stands in a PEM."""
INLINE_KEY: Final = "key:"
MODEL_CACHE_MOUNT: Final = "/cache"
ENV_MODEL_CACHE: Final = "CLOZE_MODEL_CACHE"
ENV_PRECISION: Final = "CLOZE_PRECISION"
ENV_THREADS: Final = "CLOZE_THREADS"
DEVICE_PREFIX: Final = "nvidia.com/"
"""Of the resources that are GPUs or parts of them: `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`."""
ENV_PROVIDER: Final = "CLOZE_PROVIDER"
ENV_MAX_BATCH_TOKENS: Final = "CLOZE_MAX_BATCH_TOKENS"
ENV_MAX_QUEUE_TOKENS: Final = "CLOZE_MAX_QUEUE_TOKENS"
ENV_MAX_WAIT_SECONDS: Final = "CLOZE_MAX_WAIT_SECONDS"
ENV_TIMEOUT_SECONDS: Final = "CLOZE_TIMEOUT_SECONDS"
ENV_MAX_INPUTS: Final = "CLOZE_MAX_INPUTS"
ENV_MAX_CHARACTERS: Final = "CLOZE_MAX_CHARACTERS"
ENV_MAX_BODY_BYTES: Final = "CLOZE_MAX_BODY_BYTES"
ENV_CACHE_BYTES: Final = "CLOZE_CACHE_BYTES"
ENV_CACHE_TTL_SECONDS: Final = "CLOZE_CACHE_TTL_SECONDS"
ENV_FALLBACK: Final = "CLOZE_FALLBACK"
"""`<name>/<version>=<name>/<version>`: a model and the one that answers where it abstains."""
ENV_METADATA: Final = "CLOZE_METADATA"
"""`<key>=<value>,<value>`, separated by spaces: see `cloze_api.segments`."""
ENV_API_KEYS: Final = "CLOZE_API_KEYS"
ENV_CORS_ORIGINS: Final = "CLOZE_CORS_ORIGINS"
ENV_PLAYGROUND: Final = "CLOZE_PLAYGROUND"
ENV_OTLP_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
ENV_TRACE_SAMPLE_RATIO: Final = "CLOZE_TRACE_SAMPLE_RATIO"
ENV_FEEDBACK_URL: Final = "CLOZE_FEEDBACK_URL"
ENV_FEEDBACK_TOKEN_FILE: Final = "CLOZE_FEEDBACK_TOKEN_FILE"  # noqa: S105 - a variable's name, not a secret
SECRETS_MOUNT: Final = "/etc/cloze/secrets"
"""Parent of the read-only mounts of what a ModelDeployment takes from Secrets."""
ENV_DRAIN_SECONDS: Final = "CLOZE_DRAIN_SECONDS"
ENV_DEPLOYMENT: Final = "CLOZE_DEPLOYMENT"
"""Name of the ModelDeployment that a server belongs to; unset outside a cluster."""
ENV_REVISION: Final = "CLOZE_REVISION"
"""Its revision, as in LABEL_REVISION."""

# Operator.
OPERATOR_PORT: Final = 8081
"""HTTP port of the operator: `/metrics`, `/healthz`, `/readyz`."""
ENV_TRAIN_IMAGE: Final = "CLOZE_TRAIN_IMAGE"
ENV_SERVE_GPU_IMAGE: Final = "CLOZE_SERVE_GPU_IMAGE"
ENV_SERVE_IMAGE: Final = "CLOZE_SERVE_IMAGE"
