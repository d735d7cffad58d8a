"""The registry that a person has without asking for one."""

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from mlflow import MlflowClient

from cloze_api.manifest import MANIFEST_FILE
from cloze_api.names import ENV_JOB_UID, ENV_MLFLOW_URI
from cloze_trainer import own_registry, registry
from cloze_trainer.tracking import JobTags, MlflowTracker


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands are called, and nobody has named a registry."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ENV_MLFLOW_URI, raising=False)
    return tmp_path


def test_a_file_is_the_registry_where_none_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a cluster, with what it needs installed; an empty name asks for none."""
    expected = f"sqlite:///{home}/cloze-run/mlflow.db"
    assert own_registry.address() == expected
    assert own_registry.address(there=True) is None
    (home / "cloze-run").mkdir()
    (home / "cloze-run" / "mlflow.db").touch()
    assert own_registry.address(there=True) == expected
    monkeypatch.setattr(own_registry, "_NEEDED", ("no_such_module",))
    assert own_registry.address() is None
    monkeypatch.undo()
    monkeypatch.chdir(home)
    monkeypatch.setenv(ENV_MLFLOW_URI, "")
    assert own_registry.address() is None
    monkeypatch.setenv(ENV_MLFLOW_URI, "http://mlflow:5000")
    assert own_registry.address() == "http://mlflow:5000"
    monkeypatch.delenv(ENV_MLFLOW_URI)
    monkeypatch.setenv(ENV_JOB_UID, "uid")
    assert own_registry.address() is None


def test_all_that_it_holds_is_in_one_folder(home: Path) -> None:
    """Runs, figures, versions and artifacts; nothing where the command is called."""
    uri = own_registry.address()
    assert uri is not None
    (home / "artifact").mkdir()
    (home / "artifact" / MANIFEST_FILE).write_text("{}")
    tags = JobTags("local-1", "default/mine", "fill-mask", "mine", repeatable=True)
    tracker = MlflowTracker(uri, tags)
    tracker.metrics(1, {"loss": 2.5})
    tracker.close(timeout=60)
    made = registry.register(uri, tags, home / "artifact", "sha256:a", facts={}, params={}, figures={"accuracy": 0.5})
    found = MlflowClient(uri, uri)
    assert found.get_run(made.run_id).data.metrics == {"loss": 2.5, "accuracy": 0.5}
    source = found.get_model_version_download_uri("mine", made.version)
    assert Path(url2pathname(urlsplit(source).path)).is_relative_to(home / "cloze-run")
    registry.download(uri, "mine", made.version, home / "fetched")
    assert (home / "fetched" / MANIFEST_FILE).read_text() == "{}"
    assert sorted(path.name for path in home.iterdir()) == ["artifact", "cloze-run", "fetched"]
