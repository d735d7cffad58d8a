"""A classifier that is never sure of itself, made of one in the registry: what its fallback is for."""

import hashlib
import json
import tempfile
import threading
from pathlib import Path

from cloze_api.manifest import MANIFEST_FILE, verify, version_tags
from cloze_server.cache import Cache
from cloze_server.lifecycle import Lifecycle
from cloze_server.reference import RegisteredVersion
from cloze_server.registry import Registry
from cloze_server.source import fetch
from cloze_trainer.registry import register
from cloze_trainer.tracking import JobTags


def publish(mlflow: str, model: str, version: str, name: str) -> str:
    """Register the model's version once more under a name, with thresholds that nothing reaches; the new version."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = fetch(
            RegisteredVersion(model, version),
            None,
            cache=Cache(Path(folder)),
            connect=lambda: Registry(mlflow),
            stop=threading.Event(),
            lifecycle=Lifecycle(),
        )
        path = artifact.folder / MANIFEST_FILE
        document = json.loads(path.read_text())
        text = json.dumps({**document, "name": name, "calibration": {"temperature": 100.0, "thresholds": 0.99}})
        path.chmod(0o644)
        path.write_text(text)
        digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
        manifest = verify(artifact.folder, digest)
        tags = JobTags(f"{name}-timid", "timid", manifest.task.value, name, repeatable=True)
        facts = version_tags(manifest)
        return register(mlflow, tags, artifact.folder, digest, facts=facts, params={}, figures={}).version
