"""What was trained on isn't scored: test examples that are nearly training ones are found, told and refused."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from small_runs import finetune_of

from cloze_api.progress import ExitCode
from cloze_trainer import preparation
from cloze_trainer.data import leakage
from cloze_trainer.data.labelled import Example
from cloze_trainer.errors import InputError
from cloze_trainer.progress import ProgressFile
from cloze_trainer.tasks.embedding import Pair

SENTENCE = "the quick brown fox jumps over the lazy dog and runs far away into the deep dark forest before night"
TRAIN = ["win a free prize now by answering this one question", SENTENCE, "dinner at eight with the whole family"]
TEST = [SENTENCE, SENTENCE + " falls", "an entirely different text about the weather of tomorrow", "lunch at noon"]
WORDS = [
    f"{first}{second}" for first in ("ship", "rain", "road", "tree", "wood") for second in "abcdefghijklmnopqrstuvwxyz"
]


def places(name: str, texts: list[str]) -> list[Example]:
    return [Example(f"{name}:{number}", (text,), ()) for number, text in enumerate(texts, 1)]


def test_equal_and_nearly_equal_texts_are_seen() -> None:
    """Each is told with the training example that it is like; others aren't, nor what only the test repeats."""
    seen = leakage.find("test", places("train", TRAIN), places("test", [*TEST, TEST[2]]))
    assert (seen.count, seen.of, seen.share) == (2, 5, 0.4)
    assert seen.first == ["test:1 as train:2", "test:2 as train:2"]


def test_few_of_many_are_shown() -> None:
    """The sentence has to fit into a condition."""
    seen = leakage.find("test", places("train", [SENTENCE]), places("test", [SENTENCE] * 300))
    assert seen.count == 300
    assert seen.told().endswith("test:10 as train:1, and 290 more")


def seen(train: str, test: str) -> bool:
    return leakage.find("test", places("train", [train]), places("test", [test])).count == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [9, 10, 20, 40, 48])
def test_another_word_in_the_middle_hides_nothing(count: int, seed: int) -> None:
    """In texts of ordinary length; what has no word in common but that one is another text."""
    words = random.Random(seed).sample(WORDS, 2 * count)  # noqa: S311 - a test's
    text, other = words[:count], words[count:]
    middle = count // 2
    assert seen(" ".join(text), " ".join([*text[:middle], "changed", *text[middle + 1 :]]))
    assert not seen(" ".join(text), " ".join([*other[:middle], text[middle], *other[middle + 1 :]]))


def test_a_template_with_two_other_words_in_ten_is_another_text() -> None:
    """As people's requests are, of which a training has many alike."""
    assert not seen(
        "please book me two tickets from london to paris tomorrow morning",
        "please book me two tickets from berlin to rome tomorrow morning",
    )


@pytest.mark.parametrize(
    ("train", "test", "found"),
    [
        ("我们昨天在北京的一家小餐馆里吃了晚饭", "我们昨天在上海的一家小餐馆里吃了晚饭", True),
        ("我们昨天在北京的一家小餐馆里吃了晚饭", "他的父亲每个星期六都要去图书馆看报纸", False),
        ("昨日は友達と一緒に新しい映画を見に行きました", "昨日は家族と一緒に新しい映画を見に行きました", True),
        ("ฉันชอบกินข้าวผัดที่ร้านใกล้บ้าน", "ฉันชอบกินข้าวต้มที่ร้านใกล้บ้าน", True),
    ],
)
def test_texts_without_blanks_are_compared_by_their_characters(train: str, test: str, *, found: bool) -> None:
    """Two of them are others, of 18 and more: a whole clause is no word."""
    assert seen(train, test) is found


@pytest.mark.parametrize(
    ("train", "test", "found"),
    [
        ("!!! :-)", "!!!  :-)", True),
        ("!!! :-)", "!!! :-(", False),
        ("👍", "👍", True),
        ("Thanks!", "thanks", True),
        ("yes", "no", False),
        ("", "", True),
    ],
)
def test_what_is_too_short_for_pairs_is_seen_where_it_is_the_same(train: str, test: str, *, found: bool) -> None:
    """Also without any word."""
    assert seen(train, test) is found


def test_a_pair_is_the_same_the_other_way_round() -> None:
    """Which text comes first says nothing of texts that belong together; one of them with another text is unseen."""
    first, other, third = "which animal", "small dog", "nobody knows"
    train = [Pair("train:1", first, other, None, None)]
    for place, pair in enumerate(((first, other), (other, first))):
        assert leakage.find("test", train, [Pair(f"test:{place}", *pair, None, None)]).count == 1
    assert leakage.find("test", train, [Pair("test:3", first, third, None, None)]).count == 0


def prepared(folder: Path, validation: list[str] | None = None, **evaluation: Any) -> Path:
    """The folder of prepared data of a run; what it trains on and is tested with overlaps by a half."""
    given = {"train": TRAIN, "test": TEST} | ({"validation": validation} if validation else {})
    examples = {
        name: [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(texts)]
        for name, texts in given.items()
    }
    choice = {"earlyStopping": {"figure": "accuracy", "everySteps": 1, "patience": 1}} if validation else {}
    run, spec = finetune_of(folder, examples, evaluation=evaluation, optimization={"batchSequences": 2, **choice})
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


def test_validation_examples_that_are_trained_on_are_told(
    tmp_path: Path, tiny: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a figure of their own; the test's count those of the validation, too, and nothing is refused for them."""
    tiny.save(tmp_path / "model", "bert", tiny.Task.FILL_MASK)
    folder = prepared(tmp_path, validation=[SENTENCE, "a text that nobody knows", TEST[3]], maxSeenShare=0.75)
    meta = json.loads((folder / "dataset.json").read_text())
    assert (meta["validation_seen_share"], meta["test_seen_share"]) == (pytest.approx(1 / 3), 0.75)
    told = capfd.readouterr().err
    assert "validation examples seen in training" in told
    assert f"1 of 3 validation examples are training examples, or nearly: {tmp_path}/validation.jsonl:1" in told
