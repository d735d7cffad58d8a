"""MLflow's client, and the patience with which it is asked."""

import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from cloze_trainer.console import log
from cloze_trainer.errors import STORAGE_ERRORS, RegistryError

# MLflow's own retries would block for minutes; ours know the budget. It reads this with each call.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

ENV_BUDGET = "CLOZE_REGISTRY_BUDGET_SECONDS"
DEFAULT_BUDGET_SECONDS = 600.0
_FIRST_DELAY_SECONDS = 1.0
_LONGEST_DELAY_SECONDS = 30.0
_FINAL_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED")
_LOCAL_ERROR = re.compile(r"\[Errno (\d+)\]")

Result = TypeVar("Result")


def budget_seconds() -> float:
    """How long calls are repeated before the run gives up."""
    return float(os.environ.get(ENV_BUDGET) or DEFAULT_BUDGET_SECONDS)


def _storage_error(error: BaseException) -> int | None:
    """The error number, when the failure is this machine's volume: it wouldn't get better by asking MLflow again.

    MLflow downloads in threads and keeps only the text of what went wrong in them.
    """
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        return error.errno
    if isinstance(error, MlflowException) and "downloading" in str(error):
        return next((int(found) for found in _LOCAL_ERROR.findall(str(error)) if int(found) in STORAGE_ERRORS), None)
    return None


def persist(what: str, call: Callable[[], Result], *, seconds: float) -> Result:
    """Repeat a call with growing, jittered delays until it works.

    Raises RegistryError when the seconds are spent, OSError when this machine's volume fails, MlflowException when
    MLflow refuses.
    """
    deadline = time.monotonic() + seconds
    delay = _FIRST_DELAY_SECONDS
    while True:
        try:
            return call()
        except (MlflowException, OSError) as error:
            if (number := _storage_error(error)) is not None:
                raise OSError(number, os.strerror(number)) from error
            code = getattr(error, "error_code", type(error).__name__)
            if code in _FINAL_CODES:
                raise
            if time.monotonic() + delay > deadline:
                raise RegistryError(
                    f"MLflow could not {what} within {seconds:.0f} s ({code}): check MLFLOW_TRACKING_URI and the "
                    "registry; the artifact is kept and registered at the next attempt"
                ) from error
            log("registry unreachable", what=what, why=code, retry_in_seconds=round(delay, 1))
            time.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, no secret
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)


def client(tracking_uri: str) -> MlflowClient:
    """A client of the tracking server and registry at one address."""
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def refused(what: str, error: MlflowException) -> RegistryError:
    """What MLflow's refusal is to a run. what: it was to do."""
    return RegistryError(
        f"MLflow refused to {what} ({error.error_code}): check permissions, MLflow's storage, and the hosts that it "
        "allows"
    )
