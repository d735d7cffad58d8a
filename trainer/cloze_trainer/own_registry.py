"""Where MLflow is: at an address that somebody named, or in a file of a person's own machine."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cloze_api.names import ENV_JOB_UID, ENV_MLFLOW_URI

RUNS_FOLDER: Final = "cloze-run"
"""In which workspaces lie outside a cluster, where nobody names others."""
FILE: Final = f"{RUNS_FOLDER}/mlflow.db"
ADVICE: Final = f"set {ENV_MLFLOW_URI}, or go where {FILE} is"
"""For whom has none that could be asked."""
_SQLITE = "sqlite:///"
# What MLflow needs for a store in a file besides its client.
_NEEDED = ("sqlalchemy", "alembic")


def address(*, there: bool = False) -> str | None:
    """The registry's: as named; outside a cluster, where none is, that of a file. None for an empty name, and where
    MLflow can't keep a file. there: whether the file must be.
    """
    named = os.environ.get(ENV_MLFLOW_URI)
    if named is not None:
        return named or None
    if os.environ.get(ENV_JOB_UID) or not all(map(find_spec, _NEEDED)):
        return None
    file = Path.cwd() / FILE
    return None if there and not file.exists() else f"{_SQLITE}{file}"


def artifacts_of(uri: str) -> str | None:
    """Where an experiment's artifacts lie: beside a registry in a file, which MLflow would have in the folder that a
    command is called in; None where a server decides.
    """
    if not uri.startswith(_SQLITE):
        return None
    file = Path(uri.removeprefix(_SQLITE)).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    return (file.parent / "mlflow-artifacts").as_uri()
