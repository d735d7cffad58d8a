"""Where a key is configured, only what it has signed is loaded: with signatures as OpenSSF Model Signing makes them."""

import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_signing
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze_api.manifest import MANIFEST_FILE, SIGNATURE_FILE, verify
from cloze_server import verification
from cloze_server.cache import Cache
from cloze_server.echo import write_artifact
from cloze_server.exits import ExitCode, FatalError
from cloze_server.lifecycle import Lifecycle
from cloze_server.loading import load_model
from cloze_server.reference import RegisteredVersion
from cloze_server.settings import Settings
from cloze_server.signature import TrustedKeys
from cloze_server.source import fetch, open_folder


def sign_anew(envelope: dict[str, Any], statement: Any, signer: "Signer") -> None:
    """Put another statement into an envelope, as the key's owner could."""
    payload = json.dumps(statement).encode()
    key = load_pem_private_key(signer.private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    encoded = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"] = [{"sig": base64.b64encode(key.sign(encoded, ec.ECDSA(hashes.SHA256()))).decode()}]


class Signer:
    """A pair of keys in files."""

    def __init__(self, folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> None:
        key = ec.generate_private_key(curve or ec.SECP256R1())
        self.private, self.public = folder / f"{name}.key", folder / f"{name}.pem"
        self.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    @property
    def inline(self) -> str:
        """The public key as it stands in a variable."""
        return "key:" + "".join(self.public.read_text().splitlines()[1:-1])

    def sign(self, folder: Path) -> None:
        """Sign a folder as its owner does."""
        target = folder / SIGNATURE_FILE
        ignoring = model_signing.hashing.Config().set_ignored_paths(paths=[target])
        model_signing.signing.Config().use_elliptic_key_signer(private_key=self.private).set_hashing_config(
            ignoring
        ).sign(folder, target)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    """Whose key is trusted."""
    return Signer(tmp_path, "trusted")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artifact without a signature."""
    write_artifact(tmp_path / "model", name="probe")
    return tmp_path / "model"


def load(folder: Path, *keys: Any) -> None:
    """Load an artifact as the server does."""
    settings = Settings(model=(str(folder),), verify_key=tuple(map(str, keys)))
    load_model(0, settings, threading.Event(), Lifecycle())


def refused(folder: Path, *keys: Any) -> tuple[ExitCode, str, str]:
    """How loading fails."""
    with pytest.raises(FatalError) as failed:
        load(folder, *keys)
    return failed.value.code, failed.value.reason, str(failed.value)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_what_the_key_signed_is_loaded(folder: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    """Of each kind of key; and the signature changes nothing for who asks for none."""
    digest = open_folder(folder, None).digest
    signer = Signer(tmp_path, "owner", curve)
    signer.sign(folder)
    load(folder, signer.public)
    load(folder)
    assert open_folder(folder, digest).digest == digest


def test_an_unsigned_artifact_is_refused(folder: Path, signer: Signer) -> None:
    """With a code and a reason of its own."""
    assert refused(folder, signer.public)[:2] == (ExitCode.SIGNATURE, "SignatureMissing")
    load(folder)


def test_another_key_is_refused(folder: Path, signer: Signer, tmp_path: Path) -> None:
    """As Model Signing itself refuses it."""
    other = Signer(tmp_path, "other")
    other.sign(folder)
    code, reason, message = refused(folder, signer.public)
    assert (code, reason) == (ExitCode.SIGNATURE, "SignatureInvalid")
    assert "none of the keys" in message
    verifying = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=signer.public)
    with pytest.raises(ValueError, match="Key mismatch"):
        verifying.verify(folder, folder / SIGNATURE_FILE)


def test_a_tampered_artifact_is_refused(folder: Path, signer: Signer) -> None:
    """A file by the manifest, and the manifest by the signature, also where it is consistent in itself."""
    signer.sign(folder)
    signature = (folder / SIGNATURE_FILE).read_bytes()
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "name": "evil"}))
    assert verify(folder).name == "evil"
    assert refused(folder, signer.public)[:2] == (ExitCode.SIGNATURE, "SignatureInvalid")
    other = folder.with_name("other")
    write_artifact(other, name="probe", seed=1)
    (other / SIGNATURE_FILE).write_bytes(signature)
    assert refused(other, signer.public)[1] == "SignatureInvalid"


def test_keys_can_be_changed_without_a_gap(folder: Path, signer: Signer, tmp_path: Path) -> None:
    """Old and new are trusted for a while, in one file, in several, in a folder, or in a variable."""
    new = Signer(tmp_path, "new")
    new.sign(folder)
    both = tmp_path / "both.pem"
    both.write_bytes(signer.public.read_bytes() + b"\n# a comment\n" + new.public.read_bytes())
    keys = tmp_path / "keys"
    (keys / "..data").mkdir(parents=True)
    (keys / "new.pem").symlink_to(new.public)
    for places in ((both,), (signer.public, new.public), (keys,), (signer.inline, new.inline)):
        load(folder, *places)
    signer.sign(folder)
    assert refused(folder, new.public)[1] == "SignatureInvalid"


@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: bundle.pop("dsseEnvelope"),
        lambda bundle: bundle["dsseEnvelope"].update(payloadType="text/plain"),
        lambda bundle: bundle["dsseEnvelope"].update(signatures=[]),
        lambda bundle: bundle["dsseEnvelope"].update(payload="%"),
        lambda bundle: bundle["verificationMaterial"].update(publicKey={"hint": "0" * 64}),
        lambda bundle: bundle.update(verificationMaterial={"certificate": {}}, dsseEnvelope=[]),
    ],
)
def test_a_bundle_that_is_none_is_refused(folder: Path, signer: Signer, change: Callable[[Any], Any]) -> None:
    """Whatever is missing or wrong in it."""
    signer.sign(folder)
    bundle = json.loads((folder / SIGNATURE_FILE).read_text())
    change(bundle)
    (folder / SIGNATURE_FILE).write_text(json.dumps(bundle))
    assert refused(folder, signer.public)[:2] == (ExitCode.SIGNATURE, "SignatureInvalid")
    for text in ("", "[]", "{", "\xff", "[" * 100_000):
        (folder / SIGNATURE_FILE).write_text(text)
        assert refused(folder, signer.public)[:2] == (ExitCode.SIGNATURE, "SignatureInvalid")


@pytest.mark.parametrize(
    "material",
    [
        *(None, True, 7, "x", [], ["x"]),
        *({"publicKey": strange} for strange in (False, 0, 7, "", "x", [], [{}])),
        *({"publicKey": {"hint": strange}} for strange in (7, "x", [0], {"x": 0}, True)),
    ],
    ids=json.dumps,
)
def test_a_valid_envelope_beside_something_else_is_refused(folder: Path, signer: Signer, material: Any) -> None:
    """Whatever stands where the key should be named: the reason is the signature's, and not an unexpected error's."""
    signer.sign(folder)
    bundle = json.loads((folder / SIGNATURE_FILE).read_text())
    (folder / SIGNATURE_FILE).write_text(json.dumps(bundle | {"verificationMaterial": material}))
    assert refused(folder, signer.public)[:2] == (ExitCode.SIGNATURE, "SignatureInvalid")


@pytest.mark.parametrize(
    "change",
    [
        lambda statement: statement,
        lambda statement: statement.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda statement: statement.update(predicateType="https://slsa.dev/provenance/v1"),
        lambda statement: statement["predicate"]["resources"][-1].update(algorithm="blake2b"),
        lambda statement: statement["predicate"]["resources"].pop(),
        lambda statement: statement["predicate"]["resources"].append({**statement["predicate"]["resources"][-1]}),
    ],
)
def test_the_key_s_signature_of_something_else_is_none_of_an_artifact(
    folder: Path, signer: Signer, change: Callable[[Any], Any]
) -> None:
    """A key may sign other things too; only a list of a model's files with the manifest's SHA-256 counts."""
    signer.sign(folder)
    bundle = json.loads((folder / SIGNATURE_FILE).read_text())
    envelope = bundle["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["resources"].sort(key=lambda each: each["name"] == MANIFEST_FILE)
    valid = change(statement) is statement
    sign_anew(envelope, statement, signer)
    (folder / SIGNATURE_FILE).write_text(json.dumps(bundle))
    if valid:
        load(folder, signer.public)
    else:
        assert refused(folder, signer.public)[1] == "SignatureInvalid"


def test_a_signature_without_a_hint_is_tried_with_each_key(folder: Path, signer: Signer, tmp_path: Path) -> None:
    """As older signers made them."""
    signer.sign(folder)
    bundle = json.loads((folder / SIGNATURE_FILE).read_text())
    bundle["verificationMaterial"]["publicKey"] = {}
    (folder / SIGNATURE_FILE).write_text(json.dumps(bundle))
    load(folder, Signer(tmp_path, "other").public, signer.public)


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    """Who has signed what `signed` is."""
    return Signer(tmp_path_factory.mktemp("owner"), "trusted")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, owner: Signer) -> tuple[Path, str, TrustedKeys]:
    """A signed artifact, its digest, and the key."""
    root = tmp_path_factory.mktemp("signed")
    digest = write_artifact(root / "model", name="probe")
    owner.sign(root / "model")
    keys = TrustedKeys.read([str(owner.public)])
    assert keys is not None
    return root / "model", digest, keys


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_bit_of_what_is_signed_can_be_changed(
    signed: tuple[Path, str, TrustedKeys], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Neither of the statement nor of the signature."""
    source, digest, keys = signed
    bundle = json.loads((source / SIGNATURE_FILE).read_text())
    envelope = bundle["dsseEnvelope"]
    place, name = data.draw(st.sampled_from([(envelope, "payload"), (envelope["signatures"][0], "sig")]))
    content = bytearray(base64.b64decode(place[name]))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    place[name] = base64.b64encode(content).decode()
    folder = tmp_path_factory.mktemp("changed")
    (folder / SIGNATURE_FILE).write_text(json.dumps(bundle))
    with pytest.raises(FatalError) as failed:
        keys.verify(folder, digest)
    assert failed.value.reason == "SignatureInvalid"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every field and item within a document, as what it is in and its name or number."""
    inside = dict(document.items() if isinstance(document, dict) else enumerate(document))
    nested = [value for value in inside.values() if isinstance(value, dict | list)]
    return [(document, key) for key in inside] + [place for value in nested for place in places(value)]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_json_in_any_place_is_verified_or_refused_for_its_signature(
    signed: tuple[Path, str, TrustedKeys], owner: Signer, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Of the bundle, and of a statement that the key itself has signed so; nothing else comes of it."""
    source, digest, keys = signed
    bundle = json.loads((source / SIGNATURE_FILE).read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    envelope, whole = bundle["dsseEnvelope"], {"bundle": bundle, "statement": statement}
    was = json.dumps(statement)
    parent, key = data.draw(st.sampled_from(places(whole)))
    parent[key] = data.draw(anything)
    if json.dumps(whole["statement"]) != was:
        sign_anew(envelope, whole["statement"], owner)
    folder = tmp_path_factory.mktemp("strange")
    (folder / SIGNATURE_FILE).write_text(json.dumps(whole["bundle"]))
    reason = "verified"
    try:
        keys.verify(folder, digest)
    except FatalError as failed:
        reason = failed.reason
    assert reason in ("verified", "SignatureInvalid")


@pytest.mark.parametrize(
    "content", [None, "", "no key", "-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n"]
)
def test_a_key_that_is_none_is_refused_before_anything_is_loaded(
    folder: Path, tmp_path: Path, content: str | None
) -> None:
    """A mistake must not switch the check off; nor an empty folder, nor a key of another kind."""
    place = tmp_path / "key.pem"
    if content is not None:
        place.write_text(content)
    (tmp_path / "empty").mkdir()
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    strange = tmp_path / "strange.pem"
    strange.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for each in (place, tmp_path / "empty", strange, "key:", "key:%", "key:AAAA"):
        assert refused(folder, each)[:2] == (ExitCode.CONFIGURATION, "VerifyKeyInvalid")


class Folders:
    """A registry of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def artifact_root(self, version: RegisteredVersion) -> str:
        return ""

    def download(self, root: str, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((self._folder / name).read_bytes())


def test_a_registered_version_comes_with_its_signature(folder: Path, signer: Signer, tmp_path: Path) -> None:
    """Also where the cache has the artifact without it, or signed by a key that is no longer trusted."""

    def get(keys: TrustedKeys | None) -> Path:
        return fetch(
            RegisteredVersion("probe", "1"),
            None,
            trust=keys,
            cache=Cache(tmp_path / "cache"),
            connect=lambda: Folders(folder),
            stop=threading.Event(),
            lifecycle=Lifecycle(),
        ).folder

    keys = TrustedKeys.read([str(signer.public)])
    get(None)
    with pytest.raises(FatalError) as failed:
        get(keys)
    assert failed.value.reason == "SignatureMissing"
    signer.sign(folder)
    assert (get(keys) / SIGNATURE_FILE).exists()
    new = Signer(tmp_path, "new")
    new.sign(folder)
    assert get(TrustedKeys.read([str(new.public)])) == get(None)


def test_the_process_ends_with_its_own_code(folder: Path, signer: Signer, start_server: Any) -> None:
    """And leaves its reason for the operator."""
    server = start_server("--model", str(folder), environment={"CLOZE_VERIFY_KEY": signer.inline})
    assert server.process.wait(30) == ExitCode.SIGNATURE
    assert json.loads(server.termination_log.read_text())["reason"] == "SignatureMissing"


def test_an_artifact_can_be_verified_without_serving_it(folder: Path, signer: Signer) -> None:
    """What it is, or the server's own reasons."""
    arguments = [str(folder), "--verify-key", str(signer.public)]
    with pytest.raises(FatalError) as failed:
        verification.command(arguments, {})
    assert failed.value.code is ExitCode.SIGNATURE
    signer.sign(folder)
    told = json.loads(verification.command(arguments, {}))
    assert told == {
        "name": "probe",
        "version": "local",
        "digest": open_folder(folder, None).digest,
        "task": "echo",
        "signed": True,
    }
    assert json.loads(verification.command([str(folder)], {}))["signed"] is False
    with pytest.raises(FatalError, match="expected sha256"):
        verification.command([*arguments, "--digest", "sha256:" + "0" * 64], {})
