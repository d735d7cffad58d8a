"""What the version with the alias decides in a job: whether it begins, and whether its model is registered."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from small_runs import finetune_of
from whole_runs import Trainer, finetune, kill_after, versions

from cloze_api.manifest import verify
from cloze_api.names import ENV_MLFLOW_URI
from cloze_api.progress import ExitCode
from cloze_api.task import Task
from cloze_trainer import import_options, importing, preparation
from cloze_trainer.errors import InputError, RegistryError
from cloze_trainer.progress import ProgressFile
from cloze_trainer.run import Run

pytestmark = pytest.mark.timeout(300)
Import = Callable[..., str]


@pytest.fixture
def name() -> str:
    """Of a model that no other test registers: the registry is theirs, too."""
    return f"champion-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def imported(tiny: Any, mlflow: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Import:
    """Registers a tiny classifier with these labels as the next version, which gets the alias."""
    monkeypatch.setenv(ENV_MLFLOW_URI, mlflow)

    def make(*labels: str, problem: str = "single-label", task: Task = Task.SEQUENCE_CLASSIFICATION) -> str:
        folder = tmp_path / f"import-{uuid.uuid4().hex[:8]}"
        named = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
        tiny.save(folder / "source", "bert", task, **named)
        words = ("--task", task, "--name", name, "--output", str(folder / "artifact"), "--register")
        words += ("--problem", problem) if task is Task.SEQUENCE_CLASSIFICATION else ()
        importing.run(import_options.parse([str(folder / "source"), *words]))
        version = str(max(int(each["version"]) for each in versions(mlflow, name)))
        MlflowClient(mlflow, mlflow).set_registered_model_alias(name, "champion", version)
        return version

    return make


def whole_job(folder: Path, tiny: Any, name: str, **spec: Any) -> tuple[Trainer, dict[str, Any]]:
    """A fine-tuning of a tiny encoder to a version of the model, in a folder of its own."""
    folder.mkdir()
    tiny.save(folder / "model", "bert", Task.FILL_MASK)
    job = finetune(folder, base={"uri": f"file://{folder}/model"}, registry={"name": name}, **spec)
    job["metadata"] |= {"name": folder.name, "uid": str(uuid.uuid4())}
    return Trainer(folder / "run", {}), job


def verdicts(trainer: Trainer) -> dict[str, bool]:
    """What came of each gate."""
    report = json.loads((trainer.artifact / "evaluation.json").read_text(encoding="utf-8"))
    return {each["gate"]: each["passed"] for each in report["gates"]}


def test_a_new_version_is_held_to_the_one_with_the_alias(tiny: Any, mlflow: str, name: str, tmp_path: Path) -> None:
    """While nothing has the alias there is no gate; then a worse one is kept with its figures, unregistered, and an
    equal one is registered.
    """
    learned = {"epochs": 12, "batchSequences": 4, "learningRate": 1e-2}
    cases: list[tuple[str, float, int, dict[str, bool], int]] = [
        ("first", 1e-2, 0, {}, 1),
        ("worse", 1e-9, ExitCode.GATE_FAILED, {"champion": False}, 1),
        ("equal", 1e-2, 0, {"champion": True}, 2),
    ]
    for case, rate, code, told, registered in cases:
        evaluation = {"champion": {"maxLoss": 0.2}}
        trainer, job = whole_job(
            tmp_path / case, tiny, name, evaluation=evaluation, optimization={**learned, "learningRate": rate}
        )
        trainer.environment[ENV_MLFLOW_URI] = mlflow
        assert trainer.run(job) == code, trainer.log
        assert verdicts(trainer) == told
        assert len(versions(mlflow, name)) == registered
        figures = verify(trainer.artifact).evaluation
        assert trainer.outcome["metrics"]["accuracy"] == figures["accuracy"]
        if case == "first":
            assert figures["accuracy"] == 1
            assert '"event": "no champion"' in trainer.log
            MlflowClient(mlflow, mlflow).set_registered_model_alias(name, "champion", "1")
        if case == "worse":
            said = f"accuracy is {figures['accuracy']:.4f}, that of {name}/1 1.0000 on the same examples"
            assert said in trainer.outcome["message"]


def prepared(folder: Path, mlflow: str | None, name: str, tiny: Any, cache: Path | None = None) -> Callable[[], Any]:
    """Prepares a job for two labels, as each of its starts does."""
    if not (folder / "model").is_dir():
        tiny.save(folder / "model", "bert", Task.FILL_MASK)
    rows = [{"text": letter * 3, "label": label} for letter in "abcd" for label in ("ham", "spam")]
    run, spec = finetune_of(folder, {"train": rows, "test": rows}, registry={"name": name}, evaluation={"champion": {}})
    run = Run(run.job, run.identity, run.workspace, run.corpus_root, mlflow, cache)
    return lambda: preparation.prepare(run, spec, ProgressFile(None))


@pytest.mark.parametrize(
    ("champion", "reason"),
    [
        ({"problem": "multi-label"}, "ChampionTaskDiffers"),
        ({"task": Task.TOKEN_CLASSIFICATION}, "ChampionTaskDiffers"),
        ({"third": "eggs"}, "ChampionLabelsDiffer"),
    ],
)
def test_a_champion_that_answers_something_else_ends_the_job_before_the_training(
    imported: Import, tiny: Any, mlflow: str, name: str, tmp_path: Path, champion: dict[str, Any], reason: str
) -> None:
    """With a sentence that says what to do; also where another job has prepared the same data, and at a next start."""
    prepared(tmp_path, mlflow, f"{name}-nobody", tiny, tmp_path / "cache")()
    # Of a workspace of its own the next job knows no more than what the cache holds.
    (tmp_path / "workspace" / "champion.json").unlink(missing_ok=True)
    third = champion.pop("third", None)
    version = imported("ham", "spam", *([third] if third else []), **champion)
    prepare = prepared(tmp_path, mlflow, name, tiny, tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(InputError, match=f"{name}/{version}, which has the alias .*; move the alias") as refused:
            prepare()
        assert refused.value.reason == reason
    imported("spam", "ham")
    prepare()


def test_a_run_goes_on_while_the_registry_is_away(
    imported: Import, tiny: Any, mlflow: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion is looked at once before the training, not at each start; a job of another identity looks itself."""
    imported("ham", "spam")
    prepared(tmp_path, mlflow, name, tiny)()
    monkeypatch.setenv("CLOZE_REGISTRY_BUDGET_SECONDS", "1")
    prepared(tmp_path, "http://127.0.0.1:1", name, tiny)()
    (tmp_path / "workspace" / "champion.json").write_text('{"job": "another"}')
    with pytest.raises(RegistryError):
        prepared(tmp_path, "http://127.0.0.1:1", name, tiny)()


def test_an_alias_that_moves_in_the_training_costs_no_result(
    imported: Import, tiny: Any, mlflow: str, name: str, tmp_path: Path
) -> None:
    """To a version with other labels: the run goes on, and in the end its model is kept with its figures, and isn't
    registered, as nobody knows whether it is worse.
    """
    imported("ham", "spam")
    trainer, job = whole_job(
        tmp_path / "moved", tiny, name, evaluation={"champion": {"maxLoss": 1}}, checkpoint={"everySteps": 5}
    )
    trainer.environment[ENV_MLFLOW_URI] = mlflow
    kill_after(trainer, job, 10)
    version = imported("ham", "spam", "eggs")
    for _ in range(2):
        assert trainer.run(job) == ExitCode.GATE_FAILED, trainer.log
        assert trainer.outcome["reason"] == "GateFailed"
        assert f"{name}/{version}, which has the alias champion, can't be compared with" in trainer.outcome["message"]
        assert trainer.outcome["metrics"]["accuracy"] == verify(trainer.artifact).evaluation["accuracy"]
    assert trainer.resumed() >= 10
    assert verdicts(trainer) == {"champion": False}
    assert len(versions(mlflow, name)) == int(version)
