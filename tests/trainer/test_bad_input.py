"""Data that can't be trained on, and volumes that can't be written: a reason and a sentence, before the first step."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import finetune_of, run_of
from whole_runs import Trainer, pretrain

from cloze_api.progress import FINAL_EXIT_CODES, ExitCode
from cloze_api.task import Task
from cloze_trainer import preparation
from cloze_trainer.adoption import adopt_base
from cloze_trainer.errors import InputError
from cloze_trainer.origin import find_all
from cloze_trainer.pretrain import prepare
from cloze_trainer.progress import ProgressFile

MAIL = "write to ada@example.org about the ship"
PAGE = " ".join(f"word{number}" for number in range(60))


@pytest.mark.parametrize(
    ("texts", "spec", "reason", "words"),
    [
        (
            [f"the ship number {number} sails" for number in range(20)],
            {"optimization": {"batchSequences": 50}},
            "BatchTooLarge",
            r"packs into \d+ sequences of 128 tokens, fewer than optimization.batchSequences \(50\): lower it or add",
        ),
        ([], {}, "CorpusEmpty", r"no document is left of 0 read: check corpus.format and spec.cleaning"),
        (["a", "b"], {}, "CorpusEmpty", r"no document is left of 2 read \(dropped: short 2\): check corpus.format"),
        (
            [MAIL, f"{MAIL}s", "short"],
            {"cleaning": {"pii": "drop"}},
            "CorpusEmpty",
            r"of 3 read \(dropped: pii 2, short 1\)",
        ),
        (
            [f"{PAGE} {number}" for number in range(30)],
            {},
            "HeldOutSeen",
            r"all 9 held-out documents are nearly training documents: set cleaning.deduplicate to near, or raise",
        ),
    ],
)
def test_a_corpus_that_can_not_be_trained_on_is_told(
    tmp_path: Path, texts: list[str], spec: dict[str, Any], reason: str, words: str
) -> None:
    """What is wrong with it, in numbers, and what to change."""
    run, parsed = run_of(tmp_path, texts, tokenizer={"vocabSize": 200}, **spec)
    with pytest.raises(InputError, match=words) as refusal:
        prepare(run, parsed, ProgressFile(None))
    assert refusal.value.reason == reason
    assert refusal.value.exit_code in FINAL_EXIT_CODES


def test_examples_that_fill_no_batch_are_told(tmp_path: Path, tiny: Any) -> None:
    """Of a fine-tuning, with both numbers."""
    tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
    rows = [{"text": f"a ship {number}", "label": "ab"[number % 2]} for number in range(6)]
    run, spec = finetune_of(tmp_path, {"train": rows, "test": rows}, optimization={"batchSequences": 7})
    words = r"train.jsonl holds 6 examples, fewer than optimization.batchSequences \(7\): lower it or add examples"
    with pytest.raises(InputError, match=words) as refusal:
        preparation.prepare(run, spec, ProgressFile(None))
    assert refusal.value.reason == "BatchTooLarge"


@pytest.mark.parametrize("changed", ["train", "test", "validation"])
@pytest.mark.parametrize("gone", [False, True])
def test_examples_that_change_while_they_are_read_are_told(tmp_path: Path, tiny: Any, changed: str, gone: bool) -> None:
    """Nothing is made of examples that aren't those whose digest is recorded, for this run or for others."""
    tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
    given = {
        name: [{"text": f"{name} {number}", "label": "ab"[number % 2]} for number in range(6)]
        for name in ("train", "test", "validation")
    }
    run, spec = finetune_of(tmp_path, given, optimization={"batchSequences": 2, "earlyStopping": {}})
    base = adopt_base(run, spec.base, spec.task)
    sources = find_all(run)
    file = tmp_path / f"{changed}.jsonl"
    if gone:
        file.unlink()
    else:
        # As many bytes of the same form.
        file.write_text(file.read_text().replace("1", "7"))
    with pytest.raises(InputError, match=rf"{changed}\.jsonl") as refusal:
        preparation.publish_examples(tmp_path / "data" / "key", spec, sources, base=base, max_length=16)
    assert refusal.value.reason == ("SourceGone" if gone else "SourceChanged")
    assert not list(tmp_path.glob("data/*"))


SCORED = [{"text": f"ship {number}", "other": f"boat {number}", "score": number} for number in range(6)]
PAIRS = [{"text": f"ship {number}", "positive": f"boat {number}"} for number in range(6)]
ANSWERED, UNANSWERED = (
    [{"question": f"which ship is {number}", "context": "a red ship sails", "answers": answers} for number in range(6)]
    for answers in ({"text": ["red"], "answer_start": [2]}, {"text": [], "answer_start": []})
)


@pytest.mark.parametrize(
    ("task", "rows", "test", "there", "missing"),
    [
        (Task.EMBEDDING, PAIRS, SCORED, ["spearman"], ["mrr", "recall_at_1", "worst_slice_mrr", "seed_least_mrr"]),
        (Task.EMBEDDING, PAIRS, PAIRS[::-1], ["mrr", "recall_at_1"], ["spearman", "lower_spearman"]),
        (Task.QUESTION_ANSWERING, ANSWERED, ANSWERED[:4], ["answerable_f1"], ["unanswerable_accuracy"]),
        (
            *(Task.QUESTION_ANSWERING, ANSWERED, UNANSWERED),
            ["unanswerable_accuracy"],
            ["answerable_f1", "answerable_exact_match"],
        ),
        (Task.QUESTION_ANSWERING, ANSWERED, ANSWERED[:2] + UNANSWERED, ["answerable_f1", "unanswerable_accuracy"], []),
    ],
)
def test_a_figure_that_the_examples_can_not_give_is_refused_before_the_training(
    tmp_path: Path, tiny: Any, task: Task, rows: list[Any], test: list[Any], there: list[str], missing: list[str]
) -> None:
    """Whether a gate is on it, or a step is to be chosen by it; what they give is announced."""
    tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
    sliced = [row | {"metadata": {"kind": "all"}} for row in test]

    def prepare_with(figure: str) -> None:
        gates = [{"figure": figure, "minimum": 0}]
        evaluation = {"gates": gates, "minSliceExamples": 1, "seeds": 2}
        run, spec = finetune_of(tmp_path, {"train": rows, "test": sliced}, task=task, evaluation=evaluation)
        preparation.prepare(run, spec, ProgressFile(None))

    def choose_by(figure: str) -> None:
        early = {"batchSequences": 2, "earlyStopping": {"figure": figure}}
        given = {"train": rows, "test": rows[1:], "validation": test}
        run, spec = finetune_of(tmp_path, given, task=task, optimization=early)
        preparation.prepare(run, spec, ProgressFile(None))

    for figure in there:
        prepare_with(figure)
        choose_by(figure)
    for figure in missing:
        with pytest.raises(InputError, match="doesn't give") as refusal:
            prepare_with(figure)
        assert refusal.value.reason == "GateFigureUnknown"
        with pytest.raises(InputError, match="doesn't give") as refusal:
            choose_by(figure)
        assert refusal.value.reason == "EarlyStoppingFigureUnknown"


def test_a_vocabulary_larger_than_the_data_is_told_in_the_outcome(tmp_path: Path) -> None:
    """The run goes on with what the corpus gives, and says so to the end."""
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"the ship number {number} sails on the sea" for number in range(100)))
    trainer = Trainer(tmp_path / "run", {})
    job = pretrain(
        file,
        tokenizer={"vocabSize": 5000},
        optimization={"steps": 2, "batchSequences": 4},
        topology={"processesPerNode": 1},
    )
    assert trainer.run(job) == 0, trainer.log
    told = trainer.outcome["message"]
    assert "fewer than spec.tokenizer.vocabSize (5000), as the corpus gives no more: add text, or lower it" in told
    assert '"event": "vocabulary smaller than asked"' in trainer.log


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with a workspace, on a file system of its own that nobody may write to."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "cloze-test", workspace], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", workspace], check=True)


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_on_a_volume_that_can_not_be_written_says_so(corpus: Path, read_only: Path, begun: bool) -> None:
    """Whether it begins there or was begun before: which folder, what the system says, what to look at."""
    job = pretrain(corpus, topology={"processesPerNode": 1})
    workspace = read_only / "workspace"
    if begun:
        (workspace / ".run").write_text(job["metadata"]["uid"])
    subprocess.run(["mount", "-o", "remount,ro", workspace], check=True)
    trainer = Trainer(read_only, {})
    assert trainer.run(job) == ExitCode.STORAGE, trainer.log
    assert trainer.outcome["reason"] == "StorageUnusable"
    message = trainer.outcome["message"]
    assert message.startswith(str(workspace))
    assert "can't be used (Read-only file system): check the volume and that the pod's user may write to it" in message
    assert "Traceback" not in trainer.log
