"""MLflow over plain REST: where a model version's files are, and the files."""

from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

from cloze_server.exits import ExitCode, FatalError
from cloze_server.reference import RegisteredVersion
from cloze_server.source import RegistryUnreachableError

_DOWNLOAD_URI = "/api/2.0/mlflow/model-versions/get-download-uri"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"
_CHUNK = 1 << 20


class Registry:
    """One MLflow server that also serves artifacts (`mlflow server --serve-artifacts`, its default)."""

    def __init__(self, uri: str, *, timeout_seconds: float = 10.0) -> None:
        """`uri` may hold a name and a password, which are sent and never told.

        Raises FatalError (CONFIGURATION) when it isn't an HTTP address.
        """
        try:
            parts = httpx.URL(uri)
        except httpx.InvalidURL:
            parts = httpx.URL()
        if parts.scheme not in ("http", "https") or not parts.host:
            message = "MLflow's address is none: set MLFLOW_TRACKING_URI to its http:// or https:// address"
            raise FatalError(ExitCode.CONFIGURATION, "RegistryInvalid", message)
        self._uri = uri.rstrip("/")
        self._shown = str(parts.copy_with(userinfo=b"", query=None, fragment=None)).rstrip("/")
        self._client = httpx.Client(timeout=timeout_seconds)

    def artifact_root(self, version: RegisteredVersion) -> str:
        """Path of the version's folder among the artifacts that MLflow serves.

        Raises RegistryUnreachableError, and FatalError when the version doesn't exist, access is denied, or the
        artifacts are not served by MLflow.
        """
        parameters = {"name": version.name, "version": version.version}
        try:
            response = self._client.get(self._uri + _DOWNLOAD_URI, params=parameters)
        except httpx.RequestError as error:
            raise self._unreachable(error) from error
        if response.status_code == httpx.codes.NOT_FOUND and b"RESOURCE_DOES_NOT_EXIST" in response.content:
            message = f"{self._shown} has no version {version.version} of model {version.name}"
            raise FatalError(ExitCode.MODEL_NOT_FOUND, "ModelNotFound", message)
        self._check(response)
        try:
            found = urlsplit(str(response.json()["artifact_uri"]))
        except (ValueError, KeyError, TypeError) as error:
            message = f"{self._shown} doesn't answer like MLflow: check MLFLOW_TRACKING_URI"
            raise FatalError(ExitCode.CONFIGURATION, "RegistryInvalid", message) from error
        if found.scheme != "mlflow-artifacts":
            message = (
                f"{version} is stored at {found.scheme}:// and this server reads artifacts through MLflow alone: "
                "run `mlflow server --serve-artifacts` and register the version again"
            )
            raise FatalError(ExitCode.CONFIGURATION, "ArtifactStoreUnsupported", message)
        # A host in the URI is how clients outside reach the same server; our address is the one that was configured.
        return found.path.strip("/")

    def download(self, root: str, name: str, target: Path) -> None:
        """Stream one file of a version to disk.

        Raises RegistryUnreachableError, FatalError, FileNotFoundError when the version has no such file, and OSError.
        """
        url = self._uri + _ARTIFACTS + quote(f"{root}/{name}")
        try:
            with self._client.stream("GET", url) as response:
                if response.is_error:
                    response.read()
                if response.status_code == httpx.codes.NOT_FOUND or b"No such artifact" in getattr(
                    response, "_content", b""
                ):
                    raise FileNotFoundError(name)
                self._check(response)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as stream:
                    for chunk in response.iter_bytes(_CHUNK):
                        stream.write(chunk)
        except httpx.RequestError as error:
            raise self._unreachable(error) from error

    def _check(self, response: httpx.Response) -> None:
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            message = f"{self._shown} answers {response.status_code}: give the server read access to the model"
            raise FatalError(ExitCode.CONFIGURATION, "RegistryAccessDenied", message)
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
            raise RegistryUnreachableError(f"{self._shown} answers {response.status_code}")
        if not response.is_success:
            message = f"{self._shown} answers {response.status_code} to {response.request.url.path}: is this MLflow?"
            raise FatalError(ExitCode.CONFIGURATION, "RegistryInvalid", message)

    def _unreachable(self, error: httpx.RequestError) -> RegistryUnreachableError:
        return RegistryUnreachableError(f"{self._shown}: {type(error).__name__}: {error}")
