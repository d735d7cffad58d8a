"""Where a version comes from and what has come of it, out of the manifests in a real MLflow."""

import contextlib
import gzip
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from remote_stores import serving
from whole_runs import Trainer, finetune
from whole_runs import command as command_of

from cloze_api.manifest import Limits, Lineage, Manifest, write_manifest
from cloze_api.names import ENV_CORPUS_ROOT, ENV_MLFLOW_URI
from cloze_api.progress import ExitCode
from cloze_api.task import Task
from cloze_trainer import connection, registry
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.errors import BaseModelError, InputError, RegistryError, TrainerError
from cloze_trainer.lineage import command, descent
from cloze_trainer.lineage.descent import Version
from cloze_trainer.tracking import JobTags

MAILS = "pvc://mails/train.jsonl"


def manifest(name: str, base: Version | None, data: dict[str, str], **lineage: Any) -> Manifest:
    return Manifest(
        name=name,
        task=Task.FILL_MASK,
        architecture="BertForMaskedLM",
        limits=Limits(max_length=8, vocab_size=8),
        special_tokens=SPECIAL_IDS,
        lowercase=True,
        tokenizer_fingerprint="",
        inputs=["input_ids"],
        output="logits",
        lineage=Lineage(
            job=f"ml/{name}",
            job_uid=f"uid-{name}",
            kind="FineTuneJob" if base else "PretrainJob",
            created="2026-01-02T03:04:05Z",
            trainer_version="0.1.0",
            data=data,
            **{"base": base.reference, "base_digest": base.digest} if base else {},
            **lineage,
        ),
        files={},
    )


def registered(mlflow: str, folder: Path, name: str, base: Version | None = None, **data: str) -> Version:
    """A version of a model, made of data (by letter) and a base."""
    sources = {f"pvc://{source}/train.jsonl": digest * 64 for source, digest in data.items()}
    described = manifest(name, base, sources)
    folder = folder / name
    folder.mkdir()
    digest = write_manifest(folder, described)
    tags = JobTags(f"uid-{name}", f"ml/{name}", "fill-mask", name)
    found = registry.register(mlflow, tags, folder, digest, facts={}, params={}, figures={})
    return Version(name, found.version, digest, described.lineage)


@pytest.fixture(scope="module")
def family(mlflow: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Version]:
    """An encoder, what was trained from it by way of another, and a stranger that shares data with neither."""
    folder = tmp_path_factory.mktemp("family")
    encoder = registered(mlflow, folder, "line-encoder", books="a")
    legal = registered(mlflow, folder, "line-legal", encoder, contracts="b")
    spam = registered(mlflow, folder, "line-spam", legal, mails="c", spam_test="d")
    stranger = registered(mlflow, folder, "line-stranger", contracts2="e")
    connection.client(mlflow).set_registered_model_alias("line-spam", "champion", "1")
    return {"encoder": encoder, "legal": legal, "spam": spam, "stranger": stranger}


@pytest.fixture(autouse=True)
def short_budget(mlflow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connection.ENV_BUDGET, "2")
    monkeypatch.setenv(ENV_MLFLOW_URI, mlflow)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command prints. Other tests' versions, which have no lineage, are in the same registry."""
    with contextlib.suppress(TrainerError):
        command.run(command.parse(words))
    return capsys.readouterr().out


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What it prints for a program."""
    return json.loads(printed(capsys, *words, "--json"))


def references(document: Any) -> list[str]:
    """Versions of a tree, each before its own."""
    return [document["version"], *(each for child in document["descendants"] for each in references(child))]


@pytest.mark.usefixtures("family")
def test_a_version_is_traced_to_all_its_data(capsys: pytest.CaptureFixture[str]) -> None:
    """By its alias: its own data, its base's, and those of the base of that."""
    lines = printed(capsys, "line-spam@champion").splitlines()
    assert lines[0].startswith("line-spam/1  @champion  FineTuneJob ml/line-spam, 2026-01-02T03:04:05Z  sha256:")
    assert [re.sub(r"(base \S+)  .*", r"\1", line) for line in lines[1:]] == [
        f"├─ data pvc://mails/train.jsonl  {'c' * 64}",
        f"├─ data pvc://spam_test/train.jsonl  {'d' * 64}",
        "└─ base line-legal/1",
        f"   ├─ data pvc://contracts/train.jsonl  {'b' * 64}",
        "   └─ base line-encoder/1",
        f"      └─ data pvc://books/train.jsonl  {'a' * 64}",
    ]
    assert "line-encoder/1  PretrainJob ml/line-encoder" in lines[5]
    found = answer(capsys, "line-spam/1")
    assert found["base"]["base"]["data"] == [{"source": "pvc://books/train.jsonl", "digest": "a" * 64}]
    assert found["unread"] == {}


@pytest.mark.usefixtures("family")
def test_an_erasure_finds_what_was_made_of_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    """By digest or by URI, with everything that came of it by way of others; what shares nothing stays out."""
    for words in ((f"sha256:{'b' * 64}",), ("b" * 64,), ("pvc://contracts/train.jsonl",)):
        found = answer(capsys, "--data", *words)
        assert [references(each) for each in found["versions"]] == [["line-legal/1", "line-spam/1"]]
    assert references(answer(capsys, "line-encoder/1", "--downstream")) == [
        "line-encoder/1",
        "line-legal/1",
        "line-spam/1",
    ]
    assert printed(capsys, "--data", "pvc://nowhere/x") == "no registered version is made of pvc://nowhere/x\n"


@pytest.fixture(scope="module")
def trained(mlflow: str, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a claim's files that a real job has made `line-trained` of."""
    folder = tmp_path_factory.mktemp("trained")
    tiny.save(folder / "model", "bert", Task.FILL_MASK)
    job = finetune(folder, base={"uri": f"file://{folder}/model"}, registry={"name": "line-trained"})
    claim = folder / "mounts" / "pvc" / "mails"
    (claim / "train").mkdir(parents=True)
    rows = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (claim / "train" / "old.jsonl").write_text("".join(rows[:16]))
    with gzip.open(claim / "train" / "new.jsonl.gz", "wt") as packed:
        packed.write("".join(rows[16:]))
    (folder / "test.jsonl").rename(claim / "test.jsonl")
    job["spec"]["dataset"] = {"train": "pvc://mails/train/*", "test": "pvc://mails/test.jsonl"}
    trainer = Trainer(folder / "run", {ENV_MLFLOW_URI: mlflow, ENV_CORPUS_ROOT: str(folder / "mounts")})
    assert trainer.run(job) == 0, trainer.log
    return claim


@pytest.mark.parametrize("file", ["test.jsonl", "train/old.jsonl", "train/new.jsonl.gz"])
def test_an_erasure_finds_a_real_job_by_a_file(trained: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By what `sha256sum` says of it, or by its own URI, also where the job has named several files at once."""
    digest = hashlib.sha256((trained / file).read_bytes()).hexdigest()
    for data in (f"sha256:{digest}", digest, f"pvc://mails/{file}"):
        assert "line-trained/1" in [each["version"] for each in answer(capsys, "--data", data)["versions"]], data
    nothing = hashlib.sha256((trained / file).read_bytes() + b"\n").hexdigest()
    assert answer(capsys, "--data", nothing)["versions"] == []


@pytest.mark.usefixtures("trained")
def test_a_version_of_many_files_is_told_by_what_its_job_names(capsys: pytest.CaptureFixture[str]) -> None:
    """For a person in one line; a program gets each file."""
    shown = [line for line in printed(capsys, "line-trained/1").splitlines() if "data" in line]
    assert [re.sub("[0-9a-f]{64}", "…", line) for line in shown] == [
        "├─ data pvc://mails/test.jsonl  …",
        "├─ data pvc://mails/train/*  …  2 files",
    ]
    sources = [each["source"] for each in answer(capsys, "line-trained/1")["data"]]
    assert sources == ["pvc://mails/test.jsonl", "pvc://mails/train/*"] + [
        f"pvc://mails/train/{name}" for name in ("new.jsonl.gz", "old.jsonl")
    ]
    assert [each["version"] for each in answer(capsys, "--data", "pvc://mails/train/*")["versions"]] == [
        "line-trained/1"
    ]


def test_an_import_is_found_by_what_was_imported(
    mlflow: str, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its URI, with or without the revision, and by one of its files; with what has come of it."""
    tiny.save(tmp_path / "model", "bert", Task.SEQUENCE_CLASSIFICATION)
    # The other files are those of other tests' imports, too.
    (tmp_path / "model" / "README.md").write_text("a card")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    words = ("--task", "sequence-classification", "--name", "line-import", "--output", f"{tmp_path}/artifact")
    with serving(files) as address:
        access = {"HF_TOKEN": "t0ken", "HF_ENDPOINT": address, ENV_MLFLOW_URI: mlflow}
        access[connection.ENV_BUDGET] = "60"
        code, said = command_of(tmp_path, "import", "hf://o/books", "--revision", "v2", *words, "--register", **access)
    assert code == 0, said
    digest = hashlib.sha256(files["README.md"]).hexdigest()
    for data in ("hf://o/books", "hf://o/books/", "hf://o/books@v2", f"sha256:{digest}"):
        assert [each["version"] for each in answer(capsys, "--data", data)["versions"]] == ["line-import/1"], data
    assert answer(capsys, "--data", "hf://o/book")["versions"] == []
    # A job of that name has imported nothing.
    assert answer(capsys, "--data", "ml/line-spam")["versions"] == []


def test_a_version_with_the_digests_of_before_is_found_by_its_file() -> None:
    """They were of the content's digest and the packing; of several files nothing is known of one."""
    content = hashlib.sha256(b"a line\n").digest()
    older = [hashlib.sha256(content + packing).hexdigest() for packing in (b"", b".gz", b".zst")]
    lineages = [manifest(f"x{number}", None, {MAILS: digest}).lineage for number, digest in enumerate(older)]
    versions = [Version(lineage.job, "1", f"sha256:{lineage.job}", lineage) for lineage in lineages]
    assert len(descent.made_of(f"sha256:{content.hex()}", versions)) == len(older)
    assert [each["version"] for each in descent.made_of(older[0], versions)] == ["ml/x0/1"]


def test_a_secret_of_an_address_is_neither_needed_nor_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Manifests have addresses without it."""
    assert "pa55" not in printed(capsys, "--data", "https://ada:pa55@host/x.jsonl?key=pa55")
    lineage = manifest("x", None, {"https://host/x.jsonl": "1" * 64}).lineage
    data = command._recorded("https://ada:pa55@host/x.jsonl?key=pa55")
    assert descent.made_of(data, [Version("x", "1", "sha256:1", lineage)])


def test_an_answer_that_is_not_whole_is_none(
    mlflow: str, tmp_path: Path, family: dict[str, Version], capsys: pytest.CaptureFixture[str]
) -> None:
    """A manifest that isn't the one that was registered is named, and the exit code isn't success."""
    lost = registered(mlflow, tmp_path, "line-lost", family["legal"], books2="f")
    client = connection.client(mlflow)
    client.set_model_version_tag("line-lost", lost.number, "cloze.dev/digest", "sha256:" + "0" * 64)
    capsys.readouterr()
    with pytest.raises(TrainerError, match="missing from the answer") as failed:
        command.run(command.parse(["--data", "b" * 64, "--json"]))
    assert (failed.value.reason, failed.value.exit_code) == ("LineageIncomplete", ExitCode.REGISTRY)
    shown = json.loads(capsys.readouterr().out)
    assert shown["unread"]["line-lost/1"] == "its manifest.json isn't the one that was registered"
    assert len(shown["versions"]) == 1
    client.delete_registered_model("line-lost")


@pytest.mark.usefixtures("family")
def test_unknown_versions_are_told() -> None:
    """Each with a sentence: no such version, no such alias, no reference at all, no registry."""
    with pytest.raises(InputError, match="line-spam/7 has no lineage: there is no such version"):
        command.run(command.parse(["line-spam/7"]))
    with pytest.raises(BaseModelError, match="no alias 'nobody'"):
        command.run(command.parse(["line-spam@nobody"]))
    with pytest.raises(InputError, match="name/version or name@alias"):
        command.run(command.parse(["spam"]))


def test_a_refusal_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MLflow's, where it doesn't allow the host that it is asked by: a reason, and no trace."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403, "Invalid Host header")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(ENV_MLFLOW_URI, f"http://127.0.0.1:{server.server_port}")
        for words in (["spam/1"], ["--data", "b" * 64]):
            with pytest.raises(RegistryError, match=r"MLflow refused to .* and the hosts that it allows"):
                command.run(command.parse(words))
        server.shutdown()


def test_a_base_that_is_not_registered_is_told_by_its_digest() -> None:
    """A folder in Hugging Face's format has no version; a name that was given to another model isn't taken for it."""
    folder = Lineage(
        job="ml/x",
        job_uid="x",
        kind="FineTuneJob",
        base="hf://owner/name",
        base_digest="sha256:" + "9" * 64,
        data={MAILS: "8" * 64, f"{MAILS}#2": "7" * 64},
        created="x",
        trainer_version="x",
    )
    version = Version("x", "1", "sha256:1", folder)
    tree = descent.ancestry(version, lambda _reference, _digest: None)
    assert tree["base"] == {"source": "hf://owner/name", "digest": "sha256:" + "9" * 64}
    for data in ("hf://owner/name", "sha256:" + "9" * 64, MAILS, "7" * 64):
        assert [each["version"] for each in descent.made_of(data, [version])] == ["x/1"]
    assert descent.made_of("7" * 63, [version]) == []


def test_a_base_that_is_gone_leaves_the_answer_open(
    mlflow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody knows any more of what it was made, and so of what came of it: an erasure isn't told that all is found."""
    base = registered(mlflow, tmp_path, "line-gone", books3="9")
    registered(mlflow, tmp_path, "line-heir", base, letters="8")
    client = connection.client(mlflow)
    client.delete_registered_model("line-gone")
    for words in (["--data", "pvc://books3/train.jsonl"], ["line-heir/1"], ["line-heir/1", "--downstream"]):
        capsys.readouterr()
        with pytest.raises(TrainerError, match="or may be"):
            command.run(command.parse([*words, "--json"]))
        assert "base line-gone/1 isn't in the registry" in json.loads(capsys.readouterr().out)["unread"]["line-heir/1"]
    client.delete_registered_model("line-heir")


def test_a_student_is_made_of_what_its_teacher_is_made_of() -> None:
    """An erasure finds it by the teacher's data, once where base and teacher come from the same; its tree has both."""

    def made(name: str, **lineage: Any) -> Version:
        known = {"job": f"ml/{name}", "job_uid": name, "kind": "FineTuneJob", "created": "x", "trainer_version": "x"}
        return Version(name, "1", f"sha256:{name}", Lineage.model_validate({**known, **lineage}))

    encoder = made("encoder", data={"pvc://books/a": "a" * 64})
    teacher = made("teacher", base="encoder/1", base_digest=encoder.digest, data={MAILS: "8" * 64})
    taught = {"teacher": "teacher/1", "teacher_digest": teacher.digest}
    student = made("student", base="encoder/1", base_digest=encoder.digest, **taught)
    versions = [encoder, teacher, student, made("twin", base="teacher/1", base_digest=teacher.digest, **taught)]
    (found,) = descent.made_of(MAILS, versions)
    assert references(found) == ["teacher/1", "student/1", "twin/1"]
    assert references(descent.descendants(encoder, versions)) == [
        *("encoder/1", "teacher/1", "student/1", "twin/1", "student/1")
    ]
    known = {each.reference: each for each in versions}
    tree = descent.ancestry(student, lambda reference, _digest: known[reference])
    assert tree["teacher"]["data"] == [{"source": MAILS, "digest": "8" * 64}]
    assert "└─ teacher teacher/1" in descent.text(tree)
