"""What was trained on isn't scored: test examples that are nearly training ones are found, told and refused."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import finetune_of

from cloze_api.progress import ExitCode
from cloze_trainer import preparation
from cloze_trainer.data import leakage
from cloze_trainer.errors import InputError
from cloze_trainer.progress import ProgressFile

SENTENCE = "the quick brown fox jumps over the lazy dog and runs far away into the deep dark forest before night"
TRAIN = ["win a free prize now by answering this one question", SENTENCE, "dinner at eight with the whole family"]
TEST = [SENTENCE, SENTENCE + " falls", "an entirely different text about the weather of tomorrow", "lunch at noon"]


def places(name: str, texts: list[str]) -> list[tuple[str, str]]:
    return [(f"{name}:{number}", text) for number, text in enumerate(texts, 1)]


def test_equal_and_nearly_equal_texts_are_seen() -> None:
    """Each is told with the training example that it is like; others aren't, nor what only the test repeats."""
    seen = leakage.find(places("train", TRAIN), places("test", [*TEST, TEST[2]]))
    assert (seen.count, seen.of, seen.share) == (2, 5, 0.4)
    assert seen.first == ["test:1 as train:2", "test:2 as train:2"]


def test_few_of_many_are_shown() -> None:
    """The sentence has to fit into a condition."""
    seen = leakage.find(places("train", [SENTENCE]), places("test", [SENTENCE] * 300))
    assert seen.count == 300
    assert seen.told().endswith("test:10 as train:1, and 290 more")


def prepared(folder: Path, **evaluation: Any) -> Path:
    """The folder of prepared data of a run; what it trains on and is tested with overlaps by a half."""
    examples = {
        name: [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(texts)]
        for name, texts in (("train", TRAIN), ("test", TEST))
    }
    run, spec = finetune_of(folder, examples, evaluation=evaluation)
    return preparation.prepare(run, spec, ProgressFile(None)).folder


def test_too_many_are_refused_before_the_training(tmp_path: Path, tiny: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Once prepared and each time it starts again, with a count and places, and never a text; a looser bound passes,
    and without one the log tells.
    """
    tiny.save(tmp_path / "model", "bert", tiny.Task.FILL_MASK)
    for _ in range(2):
        with pytest.raises(InputError) as refused:
            prepared(tmp_path, maxSeenShare=0.4)
        assert (refused.value.reason, refused.value.exit_code) == ("TestExamplesSeen", ExitCode.INVALID_INPUT)
        message = refused.value.message
        assert message.startswith("2 of 4 test examples")
        assert f"{tmp_path}/test.jsonl:2 as {tmp_path}/train.jsonl:2" in message
        assert "50.00%, and spec.evaluation.maxSeenShare allows 40.00%" in message
        assert "fox" not in message
    folder = prepared(tmp_path, maxSeenShare=0.5)
    capfd.readouterr()
    assert prepared(tmp_path) == folder
    told = capfd.readouterr().err
    assert "test examples seen in training" in told
    assert "test.jsonl:1 as" in told
    assert "fox" not in told
