"""What the trainer signs, servers with the public key load; keys that can't be used are told before any work."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import httpx
import model_signing
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
from key_pairs import Keys

from cloze_api.manifest import MANIFEST_FILE, SIGNATURE_FILE, file_sha256, verify
from cloze_api.names import ENV_SIGNING_KEY
from cloze_api.task import Task
from cloze_server.echo import write_artifact
from cloze_server.exits import ExitCode, FatalError
from cloze_server.lifecycle import Lifecycle
from cloze_server.loading import load_model
from cloze_server.settings import Settings
from cloze_trainer import conclusion, import_options, importing, trust
from cloze_trainer.errors import GateError, InputError
from cloze_trainer.progress import ProgressFile
from cloze_trainer.run import Run, open_run
from cloze_trainer.signing import SigningKey


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    """Those in use."""
    pair = Keys(tmp_path, "current")
    monkeypatch.setenv(ENV_SIGNING_KEY, str(pair.private))
    return pair


def load(folder: Path, *trusted: Keys) -> None:
    """Load an artifact as a server does that trusts these."""
    settings = Settings(model=(str(folder),), verify_key=tuple(str(pair.public) for pair in trusted))
    load_model(0, settings, threading.Event(), Lifecycle())


def refused(folder: Path, *trusted: Keys) -> str:
    with pytest.raises(FatalError) as failed:
        load(folder, *trusted)
    assert failed.value.code == ExitCode.SIGNATURE
    return failed.value.reason


def sign(folder: Path) -> None:
    key = SigningKey.find()
    assert key is not None
    key.sign(folder, verify(folder))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_model_signing_itself_verifies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curve: ec.EllipticCurve
) -> None:
    """The reference implementation takes it for its own, and the server does; a changed file is noticed by both."""
    pair = Keys(tmp_path, "owner", ec.generate_private_key(curve))
    monkeypatch.setenv(ENV_SIGNING_KEY, str(pair.private))
    folder = tmp_path / "model"
    write_artifact(folder, name="probe")
    sign(folder)
    verifying = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=pair.public)
    verifying.verify(folder, folder / SIGNATURE_FILE)
    load(folder, pair)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest | {"name": "evil"}))
    with pytest.raises(ValueError, match="mismatch"):
        verifying.verify(folder, folder / SIGNATURE_FILE)
    assert refused(folder, pair) == "SignatureInvalid"


def test_an_imported_model_is_signed_and_keys_are_changed(
    tmp_path: Path, tiny: Any, keys: Keys, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Signed by the old key, it loads where both are trusted, and where the new one alone is once it is signed anew;
    the artifact stays the same, and the key is nowhere in the log or the artifact.
    """
    tiny.save(tmp_path / "given", "bert", Task.SEQUENCE_CLASSIFICATION)
    folder = tmp_path / "model"
    words = ["--task", "sequence-classification", "--name", "tiny", "--output", str(folder)]
    done = importing.run(import_options.parse([str(tmp_path / "given"), *words]))
    new = Keys(tmp_path, "new")
    load(folder, keys)
    load(folder, keys, new)
    assert refused(folder, new) == "SignatureInvalid"
    monkeypatch.setenv(ENV_SIGNING_KEY, str(new.private))
    again = importing.run(import_options.parse([str(tmp_path / "given"), *words]))
    assert again.model_digest == done.model_digest
    load(folder, new)
    assert refused(folder, keys) == "SignatureInvalid"
    (folder / SIGNATURE_FILE).unlink()
    assert refused(folder, new) == "SignatureMissing"
    secret = keys.private.read_text().splitlines()[1]
    assert secret not in "".join(capfd.readouterr())
    assert not any(secret.encode() in path.read_bytes() for path in folder.iterdir())


def run_of(folder: Path, tracking_uri: str | None, **registry: Any) -> Run:
    job = {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": "small"},
        "spec": {"corpus": [{"uri": "file:///text"}], "registry": {"name": "signed", **registry}},
    }
    (folder / "job.json").write_text(json.dumps(job))
    return Run(open_run(folder / "job.json").job, "uid", folder, folder, tracking_uri)


def trained(run: Run) -> None:
    """What a finished training leaves."""
    write_artifact(run.artifact, name="signed")
    path = run.artifact / MANIFEST_FILE
    (run.artifact / "README.md").write_text("---\nlicense: mit\n---\n\n# A card\n")
    manifest = json.loads(path.read_text())
    manifest["lineage"]["job_uid"] = run.identity
    manifest["files"]["README.md"] = file_sha256(run.artifact / "README.md")
    path.write_text(json.dumps(manifest))


def test_what_is_registered_was_signed_before(tmp_path: Path, keys: Keys, mlflow: str) -> None:
    """The version in MLflow carries the signature of its artifact: who trusts the key takes it."""
    from cloze_trainer import registry  # noqa: PLC0415 - MLflow takes seconds to import

    run = run_of(tmp_path, mlflow, signing={"secretName": "keys"})
    trained(run)
    done = conclusion.conclude(run, ProgressFile(None))
    assert done.model_digest == f"sha256:{file_sha256(run.artifact / MANIFEST_FILE)}"
    assert done.model_version is not None
    registry.download(mlflow, "signed", done.model_version, tmp_path / "fetched")
    load(tmp_path / "fetched", keys)
    trust.verify(tmp_path / "fetched", trust.find([str(keys.public)]), done.model_digest)
    assert refused(tmp_path / "fetched", Keys(tmp_path, "other")) == "SignatureInvalid"
    found = httpx.get(f"{mlflow}/api/2.0/mlflow/model-versions/get", params={"name": "signed", "version": "1"}).text
    assert "PRIVATE" not in found
    assert json.loads(found)["model_version"]["description"] == "# A card"


def test_what_fails_a_gate_is_not_signed(tmp_path: Path, keys: Keys) -> None:
    """A signature says that an artifact may be served."""
    run = run_of(tmp_path, None)
    trained(run)
    (run.artifact / "evaluation.json").write_text(json.dumps({"refusal": "too bad"}))
    manifest = json.loads((run.artifact / MANIFEST_FILE).read_text())
    manifest["files"]["evaluation.json"] = file_sha256(run.artifact / "evaluation.json")
    (run.artifact / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert keys.private.is_file()
    with pytest.raises(GateError):
        conclusion.conclude(run, ProgressFile(None))
    assert not (run.artifact / SIGNATURE_FILE).exists()


def test_unusable_keys_are_told_without_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, a password, another kind, no key at all: each with a reason, and none with the file's content."""
    Keys(tmp_path, "locked", encryption=BestAvailableEncryption(b"password"))
    Keys(tmp_path, "edwards", ed25519.Ed25519PrivateKey.generate())
    Keys(tmp_path, "koblitz", ec.generate_private_key(ec.SECP256K1()))
    (tmp_path / "text.key").write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    for name, why in (
        ("absent", "can't be read"),
        ("locked", "encrypted"),
        ("edwards", "isn't on P-256"),
        ("koblitz", "isn't on P-256"),
        ("text", "no private key"),
    ):
        monkeypatch.setenv(ENV_SIGNING_KEY, str(tmp_path / f"{name}.key"))
        with pytest.raises(InputError, match=why) as refusal:
            SigningKey.find()
        assert refusal.value.reason == "SigningKeyInvalid"
        assert "c2VjcmV0" not in refusal.value.message


def test_a_key_that_is_asked_for_has_to_be_there(tmp_path: Path) -> None:
    """Outside a cluster nobody mounts a Secret: the job says what to do instead of leaving the artifact unsigned."""
    assert ENV_SIGNING_KEY not in os.environ
    assert conclusion.signing_key(run_of(tmp_path, None)) is None
    with pytest.raises(InputError, match=ENV_SIGNING_KEY) as refusal:
        conclusion.signing_key(run_of(tmp_path, None, signing={"secretName": "keys"}))
    assert refusal.value.reason == "SigningKeyMissing"
