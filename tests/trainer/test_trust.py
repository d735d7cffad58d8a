"""Where keys are named, the trainer reads what one of them has signed alone: bases, teachers, champions, in gates."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from key_pairs import Keys

from cloze_api.finetune import FineTuneJobSpec
from cloze_api.manifest import MANIFEST_FILE, SIGNATURE_FILE, file_sha256
from cloze_api.names import ENV_MLFLOW_URI, ENV_SIGNING_KEY, ENV_VERIFY_KEY
from cloze_api.pretrained import PretrainedFolder, PretrainedVersion
from cloze_api.progress import FINAL_EXIT_CODES, ExitCode
from cloze_api.task import Task
from cloze_trainer import import_options, importing, trust
from cloze_trainer.adoption import adopt_base
from cloze_trainer.base import fetch, open_base, open_tokenizer
from cloze_trainer.distillation import teacher
from cloze_trainer.errors import InputError, TrainerError
from cloze_trainer.quality import champion, command
from cloze_trainer.run import Run, open_run

LABELS = ("O", "B-PER", "I-PER")
ROWS = [{"text": f"{first}b c", "label": label} for first in "abcd" for label in LABELS]


@dataclass
class Registry:
    """Versions of one model. folder: of the artifact that all of them have."""

    folder: Path
    downloads: int = 0

    def download(self, uri: str, name: str, version: str, folder: Path) -> None:
        self.downloads += 1
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)

    def version_of_alias(self, uri: str, name: str, alias: str) -> str:
        return "1"

    def tamper(self) -> None:
        """Change what a file holds, and the manifest with it, so that the artifact is consistent in itself."""
        (self.folder / "README.md").write_text("another card")
        document = json.loads((self.folder / MANIFEST_FILE).read_text())
        document["files"]["README.md"] = file_sha256(self.folder / "README.md")
        (self.folder / MANIFEST_FILE).write_text(json.dumps(document))


@pytest.fixture(scope="module")
def imported(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Task], Path]:
    """Makes an artifact for a task, without a signature."""
    root = tmp_path_factory.mktemp("imported")

    def make(task: Task) -> Path:
        folder = root / task
        if not folder.exists():
            tiny.save(root / f"{task}-source", "bert", task)
            words = ["--task", task, "--name", "tiny", "--output", str(folder)]
            importing.run(import_options.parse([str(root / f"{task}-source"), *words]))
        return folder

    return make


def run_of(folder: Path) -> tuple[Run, FineTuneJobSpec]:
    job = {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "filter"},
        "spec": {
            "base": {"model": {"name": "tiny", "version": "1"}},
            "task": "sequence-classification",
            "dataset": {"train": "file:///a", "test": "file:///b"},
            "registry": {"name": "filter"},
            "evaluation": {"champion": {}},
        },
    }
    (folder / "job.json").write_text(json.dumps(job))
    run = open_run(folder / "job.json")
    assert isinstance(run.job.spec, FineTuneJobSpec)
    run = Run(run.job, run.identity, folder / "workspace", folder, "http://127.0.0.1:1")
    run.workspace.mkdir()
    return run, run.job.spec


def _base(folder: Path) -> Any:
    run, spec = run_of(folder)
    return lambda: fetch(run, spec.base.model, open_base)


def _tokenizer(folder: Path) -> Any:
    run, spec = run_of(folder)
    return lambda: fetch(run, spec.base.model, open_tokenizer)


def _teacher(folder: Path) -> Any:
    run, _ = run_of(folder)
    return lambda: teacher.find(run, PretrainedVersion(name="tiny", alias="best"))


def _champion(folder: Path) -> Any:
    run, spec = run_of(folder)
    return lambda: champion.find(run, spec, LABELS)


def _data(folder: Path) -> str:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(folder / "data.jsonl")


def _gate(folder: Path) -> Any:
    asked = command.parse(["tiny@best", _data(folder)])
    return lambda: command.run(asked)


def _folder_gate(folder: Path) -> Any:
    asked = command.parse([str(folder / "registry"), _data(folder)])
    return lambda: command.run(asked)


def _gate_against(folder: Path) -> Any:
    """A version against another one: the first is signed by who is trusted."""
    shutil.copytree(folder / "registry", folder / "own")
    mine = Keys(folder, "mine")
    mine.sign(folder / "own")
    keys = [word for each in (mine.public, folder / "old.pem", folder / "new.pem") for word in ("--verify-key", each)]
    arguments = [str(folder / "own"), _data(folder), "--against", "tiny/1", "--max-loss", "1"]

    def judge() -> Any:
        given = keys if os.environ.get(ENV_VERIFY_KEY) else []
        return command.run(command.parse([*arguments, *map(str, given)]))

    return judge


@pytest.fixture(
    params=[
        (_base, Task.FILL_MASK, "Base", ExitCode.BASE_MISMATCH),
        (_tokenizer, Task.FILL_MASK, "Base", ExitCode.BASE_MISMATCH),
        (_teacher, Task.SEQUENCE_CLASSIFICATION, "Teacher", ExitCode.BASE_MISMATCH),
        (_champion, Task.SEQUENCE_CLASSIFICATION, "Champion", ExitCode.INVALID_INPUT),
        (_gate, Task.SEQUENCE_CLASSIFICATION, "", ExitCode.INVALID_INPUT),
        (_folder_gate, Task.SEQUENCE_CLASSIFICATION, "", ExitCode.INVALID_INPUT),
        (_gate_against, Task.SEQUENCE_CLASSIFICATION, "", ExitCode.INVALID_INPUT),
    ],
    ids=["base", "tokenizer", "teacher", "champion", "gate", "gate of a folder", "gate against another"],
)
def reader(request: pytest.FixtureRequest) -> Any:
    """Who reads an artifact, of which task, how its reasons begin, and its exit code."""
    return request.param


def test_only_what_a_trusted_key_has_signed_is_read(
    reader: Any, imported: Callable[[Task], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a signature, with another key's or with one of another manifest it is refused for good; while keys are
    changed either may have signed; and what was refused is fetched anew.
    """
    begin, task, prefix, code = reader
    registry, old, new = Registry(tmp_path / "registry"), Keys(tmp_path, "old"), Keys(tmp_path, "new")
    shutil.copytree(imported(task), registry.folder)
    monkeypatch.setattr("cloze_trainer.registry.download", registry.download)
    monkeypatch.setattr("cloze_trainer.registry.version_of_alias", registry.version_of_alias)
    monkeypatch.setenv(ENV_MLFLOW_URI, "http://127.0.0.1:1")
    read = begin(tmp_path)

    def refused() -> tuple[str, str]:
        with pytest.raises(TrainerError) as refusal:
            read()
        assert refusal.value.exit_code == code
        assert code in FINAL_EXIT_CODES
        return refusal.value.reason.removeprefix(prefix), refusal.value.message

    read()
    monkeypatch.setenv(ENV_VERIFY_KEY, f"{old.public} {new.public}")
    reason, message = refused()
    assert reason == "SignatureMissing"
    assert SIGNATURE_FILE in message
    Keys(tmp_path, "other").sign(registry.folder)
    reason, message = refused()
    assert reason == "SignatureInvalid"
    assert "none of the keys" in message
    for key in (old, new):
        key.sign(registry.folder)
        read()
    registry.tamper()
    if registry.downloads:
        # What is in the workspace was verified, and stays.
        shutil.rmtree(tmp_path / "workspace", ignore_errors=True)
        (tmp_path / "workspace").mkdir()
    reason, message = refused()
    assert reason == "SignatureInvalid"
    assert "sign it again" in message
    monkeypatch.delenv(ENV_VERIFY_KEY)
    read()


def test_a_base_in_the_workspace_is_checked_again(
    imported: Callable[[Task], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that isn't trusted any more refuses what it has signed, and one that is takes it without a download."""
    registry, old, new = Registry(tmp_path / "registry"), Keys(tmp_path, "old"), Keys(tmp_path, "new")
    shutil.copytree(imported(Task.FILL_MASK), registry.folder)
    monkeypatch.setattr("cloze_trainer.registry.download", registry.download)
    read = _base(tmp_path)
    old.sign(registry.folder)
    monkeypatch.setenv(ENV_VERIFY_KEY, str(old.public))
    read()
    read()
    assert registry.downloads == 1
    monkeypatch.setenv(ENV_VERIFY_KEY, str(new.public))
    with pytest.raises(TrainerError, match="none of the keys"):
        read()
    new.sign(registry.folder)
    read()
    assert registry.downloads == 3


@pytest.mark.parametrize("material", [[], {"publicKey": "x"}, {"publicKey": {"hint": [0]}}], ids=json.dumps)
def test_a_signature_of_another_shape_ends_for_good(
    reader: Any, imported: Callable[[Task], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, material: Any
) -> None:
    """With an envelope that is valid: by the signature's reason, and not as an unexpected error, which is retried."""
    begin, task, prefix, code = reader
    registry, owner = Registry(tmp_path / "registry"), Keys(tmp_path, "old")
    owner.sign(shutil.copytree(imported(task), registry.folder))
    bundle = json.loads((registry.folder / SIGNATURE_FILE).read_text())
    (registry.folder / SIGNATURE_FILE).write_text(json.dumps(bundle | {"verificationMaterial": material}))
    monkeypatch.setattr("cloze_trainer.registry.download", registry.download)
    monkeypatch.setattr("cloze_trainer.registry.version_of_alias", registry.version_of_alias)
    monkeypatch.setenv(ENV_MLFLOW_URI, "http://127.0.0.1:1")
    Keys(tmp_path, "new")
    read = begin(tmp_path)
    monkeypatch.setenv(ENV_VERIFY_KEY, str(owner.public))
    with pytest.raises(TrainerError) as refusal:
        read()
    assert (refusal.value.reason, refusal.value.exit_code) == (f"{prefix}SignatureInvalid", code)


def test_a_folder_in_hugging_face_s_format_has_nothing_to_sign(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no manifest: who names it answers for it."""
    tiny.save(tmp_path / "given", "bert", Task.FILL_MASK)
    run, _ = run_of(tmp_path)
    monkeypatch.setenv(ENV_VERIFY_KEY, str(Keys(tmp_path, "owner").public))
    assert adopt_base(run, PretrainedFolder(uri=f"file://{tmp_path}/given")).config.layers == 2


def test_a_key_that_is_none_never_switches_the_check_off(
    imported: Callable[[Task], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By flag or variable: it is told as such, and not as something that the base lacks."""
    assert trust.find() is None
    (tmp_path / "empty").mkdir()
    for place in (str(tmp_path / "absent.pem"), str(tmp_path / "empty"), "key:AAAA"):
        with pytest.raises(InputError, match=trust.FLAG) as refusal:
            command.run(command.parse([str(imported(Task.FILL_MASK)), _data(tmp_path), trust.FLAG, place]))
        assert refusal.value.reason == "VerifyKeyInvalid"
        monkeypatch.setenv(ENV_VERIFY_KEY, place)
        with pytest.raises(InputError, match=ENV_VERIFY_KEY) as refusal:
            open_base(imported(Task.FILL_MASK), "tiny/1", None)
        assert refusal.value.reason == "VerifyKeyInvalid"


def test_keys_of_the_command_line_reach_the_run(tmp_path: Path) -> None:
    """Before anything is prepared; those of the environment count where the command line has none."""
    run_of(tmp_path)
    program = str(Path(sys.executable).with_name("cloze-train"))
    environment = os.environ | {ENV_VERIFY_KEY: str(Keys(tmp_path, "good").public)}

    def ended(*words: str, **more: str) -> tuple[int, str]:
        arguments = [program, str(tmp_path / "job.json"), "--workspace", str(tmp_path / "new"), *words]
        done = subprocess.run(
            arguments, env=environment | more, check=False, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stderr + done.stdout

    for code, text in (
        ended(trust.FLAG, str(tmp_path / "absent.pem")),
        ended(**{ENV_VERIFY_KEY: str(tmp_path / "absent.pem")}),
    ):
        assert code == ExitCode.INVALID_INPUT
        assert "VerifyKeyInvalid" in text
    code, text = ended(trust.FLAG, "two words.pem")
    assert code == 2
    assert "white space" in text


def test_a_run_ends_for_good_where_its_base_is_not_signed(
    tiny: Any, tmp_path: Path, mlflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two versions in a real registry the signed one is taken, so that the run ends by what it lacks next."""
    owner = Keys(tmp_path, "owner")
    tiny.save(tmp_path / "given", "bert", Task.FILL_MASK)
    monkeypatch.setenv(ENV_MLFLOW_URI, mlflow)

    def ended(kind: str) -> tuple[int, str]:
        # The registry is other tests', too.
        name = f"{kind}-{uuid.uuid4().hex[:8]}"
        words = ("--task", "fill-mask", "--name", name, "--output", str(tmp_path / name / "artifact"), "--register")
        importing.run(import_options.parse([str(tmp_path / "given"), *words]))
        run_of(tmp_path / name)
        job = json.loads((tmp_path / name / "job.json").read_text())
        job["spec"]["base"]["model"]["name"] = name
        job["spec"]["dataset"] = {"train": "file:///absent-train", "test": "file:///absent-test"}
        (tmp_path / name / "job.json").write_text(json.dumps(job))
        command = [str(Path(sys.executable).with_name("cloze-train")), "run", str(tmp_path / name / "job.json")]
        command += ["--workspace", str(tmp_path / name / "run"), trust.FLAG, str(owner.public)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stderr + done.stdout

    code, text = ended("unsigned")
    assert code == ExitCode.BASE_MISMATCH, text
    assert "BaseSignatureMissing" in text
    monkeypatch.setenv(ENV_SIGNING_KEY, str(owner.private))
    code, text = ended("signed")
    assert code == ExitCode.INVALID_INPUT, text
    assert "absent-train" in text
