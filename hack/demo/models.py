"""The demo's edge to MLflow: versions of its models, and the alias that proposes one of them."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harm import Change, failing, read_tokenizer, slow, spoil, token_of_share

# The addresses that it would print are of a forwarding that ends.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow.exceptions import MlflowException

from cloze_api.manifest import verify, version_tags
from cloze_api.names import CANDIDATE_ALIAS, PROMOTED_ALIAS
from cloze_trainer.connection import client
from cloze_trainer.registry import download, register
from cloze_trainer.tracking import JobTags

#: How MLflow's errors tell that there is no such model, or no such alias.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True, slots=True)
class Harmful:
    """A registered version that does harm. what: in a few words."""

    version: str
    what: str


def forget_aliases(uri: str, names: Iterable[str]) -> None:
    """Take the aliases off the models of an earlier demo, so that the first version of this one serves at once."""
    connection = client(uri)
    for name in names:
        for alias in (CANDIDATE_ALIAS, PROMOTED_ALIAS):
            try:
                connection.delete_registered_model_alias(name, alias)
            except MlflowException as error:
                if error.error_code not in _ABSENT:
                    raise


def propose(uri: str, name: str, version: str) -> None:
    """Point `challenger` to a version, as a person would in MLflow."""
    client(uri).set_registered_model_alias(name, CANDIDATE_ALIAS, version)


def publish_harmful(uri: str, name: str, version: str, texts: list[str], share: float) -> tuple[Harmful, Harmful]:
    """Register two harmful copies of a version: one that fails on a share of these texts, and a slow one."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "sound"
        download(uri, name, version, artifact)
        length = verify(artifact).limits.max_length
        tokenizer = read_tokenizer(artifact)
        token, found = token_of_share(tokenizer, texts, length, share)
        word = tokenizer.id_to_token(token)
        fails = f"version {version}, but fails on texts with the word “{word}” ({100 * found:.1f} % of the mails)"
        lags = f"version {version} with wasted work in its graph"
        return (
            Harmful(_publish(uri, name, version, "failing", failing(token)), fails),
            Harmful(_publish(uri, name, version, "slow", slow), lags),
        )


def _publish(uri: str, name: str, version: str, what: str, change: Change) -> str:
    """Register a changed copy of a version; the new version."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / what
        download(uri, name, version, artifact)
        digest = spoil(artifact, version, what, change)
        manifest = verify(artifact, digest)
        tags = JobTags(manifest.lineage.job_uid, manifest.lineage.job, manifest.task.value, name, repeatable=True)
        facts = version_tags(manifest)
        return register(uri, tags, artifact, digest, facts=facts, params={"fault": what}, figures={}).version
