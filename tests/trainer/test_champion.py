"""What the version with the alias decides in a job: whether it begins, and whether its model is registered."""

import json
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from small_runs import finetune_of
from tuning import ALONE
from whole_runs import Trainer, finetune, kill_after, versions

from cloze_api.manifest import verify
from cloze_api.names import ENV_MLFLOW_URI
from cloze_api.progress import ExitCode
from cloze_api.task import Task
from cloze_trainer import import_options, importing, preparation
from cloze_trainer.errors import InputError, RegistryError
from cloze_trainer.finetune import FineTuning
from cloze_trainer.progress import ProgressFile
from cloze_trainer.quality import champion
from cloze_trainer.quality.gates import Verdict
from cloze_trainer.run import Run
from cloze_trainer.worker import initial_model

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

    def make(
        *labels: str, problem: str = "single-label", task: Task = Task.SEQUENCE_CLASSIFICATION, **settings: Any
    ) -> str:
        folder = tmp_path / f"import-{uuid.uuid4().hex[:8]}"
        if labels:
            settings["id2label"] = dict(enumerate(labels))
            settings["label2id"] = {label: place for place, label in enumerate(labels)}
        tiny.save(folder / "source", "bert", task, **settings)
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


def prepared(
    folder: Path, mlflow: str | None, name: str, tiny: Any, cache: Path | None = None, identity: str | None = None
) -> Callable[[], Any]:
    """Prepares a job for two labels, as each of its starts does. identity: its own when absent."""
    if not (folder / "model").is_dir():
        tiny.save(folder / "model", "bert", Task.FILL_MASK)
    rows = [{"text": letter * 3, "label": label} for letter in "abcd" for label in ("ham", "spam")]
    run, spec = finetune_of(folder, {"train": rows, "test": rows}, registry={"name": name}, evaluation={"champion": {}})
    run = Run(run.job, identity or run.identity, run.workspace, run.corpus_root, mlflow, cache)
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
    prepared(tmp_path, mlflow, name, tiny, identity="one")()
    monkeypatch.setenv("CLOZE_REGISTRY_BUDGET_SECONDS", "1")
    prepared(tmp_path, "http://127.0.0.1:1", name, tiny, identity="one")()
    with pytest.raises(RegistryError):
        prepared(tmp_path, "http://127.0.0.1:1", name, tiny, identity="another")()


def compared(
    folder: Path, mlflow: str, name: str, tiny: Any, rows: Sequence[Any], task: Task, **spec: Any
) -> Callable[[], Verdict | None]:
    """Has a model that nothing has been taught judged beside the champion, on examples that are prepared now."""
    tiny.save(folder / "model", "bert", Task.FILL_MASK)
    evaluation = {"champion": {"maxLoss": 1}}
    run, asked = finetune_of(
        folder, {"train": rows, "test": rows[::-1]}, registry={"name": name}, evaluation=evaluation, task=task, **spec
    )
    run = replace(run, tracking_uri=mlflow)
    workload = FineTuning(asked, preparation.prepare(run, asked, ProgressFile(None)), torch.device("cpu"))
    scores = workload.score(initial_model(workload, 1), ALONE)
    return lambda: champion.judge(run, asked, scores, workload.labels)


WRITTEN: list[Callable[[Path], object]] = [
    lambda file: file.write_text(file.read_text() + '\n{"text": "eee", "label": "ham"}'),
    lambda file: file.write_text(file.read_text().replace("spam", "ham")),
    lambda file: file.write_text("no JSON"),
    Path.unlink,
]


@pytest.mark.parametrize("write", WRITTEN)
def test_both_models_answer_the_examples_that_were_prepared(
    imported: Import, tiny: Any, mlflow: str, name: str, tmp_path: Path, write: Callable[[Path], object]
) -> None:
    """Whatever becomes of their file while the model is trained."""
    imported("ham", "spam")
    rows = [{"text": letter * 3, "label": label} for letter in "abcd" for label in ("ham", "spam")]
    judge = compared(tmp_path, mlflow, name, tiny, rows, Task.SEQUENCE_CLASSIFICATION)
    verdict = judge()
    assert verdict is not None
    assert f"that of {name}/1 0." in verdict.message
    write(tmp_path / "test.jsonl")
    assert judge() == verdict


def test_examples_that_were_damaged_cost_no_result(
    imported: Import, tiny: Any, mlflow: str, name: str, tmp_path: Path
) -> None:
    """Nobody knows what the champion would say of the right ones: the gate fails, and the run goes on to its end."""
    imported("ham", "spam")
    rows = [{"text": letter * 3, "label": label} for letter in "abcd" for label in ("ham", "spam")]
    judge = compared(tmp_path, mlflow, name, tiny, rows, Task.SEQUENCE_CLASSIFICATION)
    (kept,) = tmp_path.glob("workspace/champion-examples/0*")
    kept.write_text(kept.read_text().replace("aaa", "zzz"))
    verdict = judge()
    assert verdict is not None
    assert not verdict.passed
    assert f"{name}/1, which has the alias champion, can't be compared with: 00000 is damaged" in verdict.message
    # The next attempt prepares, and keeps them anew.
    assert "can't" not in str(compared(tmp_path, mlflow, name, tiny, rows, Task.SEQUENCE_CLASSIFICATION)())


def test_a_champion_that_can_not_read_an_example_costs_no_result(
    imported: Import, tiny: Any, mlflow: str, name: str, tmp_path: Path
) -> None:
    """As one whose longest input has no room for a question beside its context: the gate fails, and says why."""
    imported(task=Task.QUESTION_ANSWERING, max_position_embeddings=8)
    rows = [
        {"question": "where is it", "context": f"it is in {town}", "answers": {"text": [town], "answer_start": [9]}}
        for town in ("bath", "york")
    ]
    verdict = compared(tmp_path, mlflow, name, tiny, rows, Task.QUESTION_ANSWERING)()
    assert verdict is not None
    assert not verdict.passed
    assert "can't be compared with" in verdict.message
    assert "has a question that leaves" in verdict.message


def test_a_number_is_compared_whatever_its_label_is_called(
    imported: Import, tiny: Any, mlflow: str, name: str, tmp_path: Path
) -> None:
    """An import keeps its folder's name of the only label, often LABEL_0."""
    imported("LABEL_0", problem="regression")
    rows = [{"text": letter * 3, "score": number} for number, letter in enumerate("abcdef")]
    verdict = compared(tmp_path, mlflow, name, tiny, rows, Task.SEQUENCE_CLASSIFICATION, problem="regression")()
    assert verdict is not None
    assert re.search(rf"spearman is \S+, that of {name}/1 \S+ on the same examples", verdict.message)


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
