"""The registry's versions with their lineage, out of their manifests: a tag could be set by anybody."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from cloze_api.manifest import MANIFEST_FILE, Lineage
from cloze_api.names import TAG_DIGEST
from cloze_trainer import connection
from cloze_trainer.errors import InputError, RegistryError
from cloze_trainer.lineage.descent import Version

_PAGE = 200
# MLflow has answered before; what is away now may be gone for good, and there may be many.
_MANIFEST_SECONDS = 5.0


@dataclass(slots=True)
class Reader:
    """Reads versions. unread: references of those that couldn't be, and why; an answer isn't whole without them."""

    tracking_uri: str
    unread: dict[str, str] = field(default_factory=dict)

    @property
    def _client(self) -> MlflowClient:
        return connection.client(self.tracking_uri)

    def named(self, name: str, version: str) -> Version:
        """Raises InputError when there is none that Cloze has made, RegistryError."""
        found = self.find(f"{name}/{version}", "")
        if found is None:
            why = self.unread.get(f"{name}/{version}", "there is no such version")
            raise InputError("LineageUnknown", f"{name}/{version} has no lineage: {why}")
        return found

    def find(self, reference: str, digest: str) -> Version | None:
        """A version by its reference, if that is still what has this digest; empty for any."""
        name, _, number = reference.rpartition("/")
        if not name or not number.isdigit() or "://" in reference:
            return None
        try:
            item = self._ask("read a version", lambda: self._client.get_model_version(name, number))
            model = self._ask("read a model", lambda: self._client.get_registered_model(name))
        except MlflowException:
            return None
        found = self._version(item, dict(model.aliases))
        return found if found and digest in ("", found.digest) else None

    def all(self) -> list[Version]:
        """Every version that Cloze has made. Raises RegistryError."""
        models = self._pages(self._client.search_registered_models)
        aliases = {model.name: dict(model.aliases) for model in models}
        items = self._pages(self._client.search_model_versions)
        found = (self._version(item, aliases.get(item.name, {})) for item in items if TAG_DIGEST in item.tags)
        return sorted(
            (each for each in found if each is not None), key=lambda version: (version.name, int(version.number))
        )

    def _version(self, item: Any, aliases: dict[str, Any]) -> Version | None:
        reference = f"{item.name}/{item.version}"
        try:
            data = self._ask(
                "read a manifest", lambda: self._manifest(item.name, str(item.version)), seconds=_MANIFEST_SECONDS
            )
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            lineage = Lineage.model_validate(json.loads(data)["lineage"])
        except (RegistryError, MlflowException, ValidationError, ValueError, KeyError, TypeError) as error:
            self.unread[reference] = f"its {MANIFEST_FILE} can't be read ({type(error).__name__})"
            return None
        if digest != item.tags.get(TAG_DIGEST):
            self.unread[reference] = f"its {MANIFEST_FILE} isn't the one that was registered"
            return None
        mine = tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(item.version)))
        return Version(item.name, str(item.version), digest, lineage, mine)

    def _manifest(self, name: str, version: str) -> bytes:
        source = self._client.get_model_version_download_uri(name, version)
        with tempfile.TemporaryDirectory(prefix="cloze-lineage-") as scratch:
            uri = f"{source.rstrip('/')}/{MANIFEST_FILE}"
            return Path(download_artifacts(uri, dst_path=scratch, tracking_uri=self.tracking_uri)).read_bytes()

    def _pages(self, search: Any) -> Iterator[Any]:
        token = None
        while True:
            page = self._ask("list the versions", lambda token=token: search(max_results=_PAGE, page_token=token))
            yield from page
            token = page.token
            if not token:
                return

    def _ask(self, what: str, call: Any, *, seconds: float | None = None) -> Any:
        """Raises MlflowException for what there isn't, RegistryError for everything else."""
        try:
            return connection.persist(what, call, seconds=connection.budget_seconds() if seconds is None else seconds)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise
            raise connection.refused(what, error) from error
