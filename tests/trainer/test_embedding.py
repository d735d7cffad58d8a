"""Texts that belong together get vectors that lie together; figures equal scipy's and what they are by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from cloze_api.manifest import verify
from cloze_api.task import Task
from cloze_trainer import tasks
from cloze_trainer.errors import InputError
from cloze_trainer.quality.assessment import assess
from cloze_trainer.quality.scores import rank_correlation
from cloze_trainer.tasks.embedding import ranks
from cloze_trainer.workload import Chunk

KIND = tasks.of(Task.EMBEDDING)
TOPICS = {
    "the boat sails on the sea": "a ship on the water",
    "rain falls from the cloud": "wet weather all day long",
    "the train is late again": "a delayed railway journey",
    "she bakes bread at home": "fresh loaves from her oven",
    "the team won the match": "victory in the last game",
    "he repairs an old clock": "mending a broken watch",
    "the doctor sees a patient": "a visit at the hospital",
    "they plant a tree in may": "young oaks for the garden",
}
PAIRS = [{"text": text, "positive": other} for text, other in TOPICS.items()]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=40))
def test_the_rank_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    """With ties; where one is constant, 0."""
    one_E, other_E = np.array(pairs, np.float64).T
    found = rank_correlation(one_E, other_E).figure
    if len(set(one_E)) > 1 and len(set(other_E)) > 1:
        assert found == pytest.approx(spearmanr(one_E, other_E).statistic)
    else:
        assert found == 0


@given(
    st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 5)), min_size=2, max_size=40),
    st.sampled_from([1e-3, 1.0, 300.0]),
    st.randoms(use_true_random=False),
)
def test_numbers_that_are_equal_but_for_rounding_share_a_rank(
    pairs: list[tuple[int, int]], size: float, random: Any
) -> None:
    """Whatever their size: as many digits of float32 as another batch changes don't decide which of them is first."""
    given_E, true_E = np.array(pairs, np.float64).T
    noise_E = np.array([random.uniform(-1, 1) for _ in pairs]) * 4e-7 * size * np.abs(given_E).max()
    found = rank_correlation(np.float32(given_E * size + noise_E).astype(np.float64), true_E).figure
    assert found == pytest.approx(rank_correlation(given_E, true_E).figure, abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=200, unique=True), st.randoms(use_true_random=False))
def test_numbers_that_differ_by_more_than_rounding_keep_their_ranks(values: list[float], random: Any) -> None:
    """To the fifth digit of the largest."""
    given_E = np.unique(np.round(np.array(values), 4))
    true_E = np.array(random.sample(range(len(given_E)), len(given_E)), np.float64)
    found = rank_correlation(given_E, true_E).figure
    assert found == pytest.approx(spearmanr(given_E, true_E).statistic if len(given_E) > 1 else 0)


def test_a_partner_is_found_behind_what_is_as_alike() -> None:
    """The places by hand: equal texts count once, ties against the partner, and its other partners not at all."""
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8], [1, 0], [0, 1], [1, 0], [0.8, 0.6]])
    # Rows: a first text and its partner, another pair, the first text again with another partner, and one more pair.
    texts = np.array([0, 1, 2, 3, 0, 4, 5, 6])
    found = ranks(vectors, texts, np.array([0, 2, 4, 6]), np.array([1, 3, 5, 7]))
    # Of the first 1 is best, and 4 aside. Of the second 4 lies nearer than 3. Of the third 3 and 6 do, and 1 is aside.
    assert found.tolist() == [1, 2, 3, 2]


def test_the_loss_is_that_of_in_batch_negatives() -> None:
    """Cross-entropy of scaled cosines; equal texts and an equal text's partners are no wrong answers."""
    output = functional.normalize(torch.randn(7, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    targets = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    chunk = Chunk((output,), targets, weight=3, tokens=0)
    logits = 20 * output[:3] @ output[3:].T
    expected = functional.cross_entropy(logits, torch.arange(3), reduction="sum")
    assert KIND.loss_sum(output, chunk) == pytest.approx(float(expected))
    twice = Chunk((output,), torch.tensor([0, 1, 0, 3, 4, 5, 1]), weight=3, tokens=0)
    logits[0, 2] = logits[2, 0] = logits[1, 3] = -torch.inf
    expected = functional.cross_entropy(logits, torch.arange(3), reduction="sum")
    assert KIND.loss_sum(output, twice) == pytest.approx(float(expected))
    assert KIND.loss_sum(output, Chunk((output,), targets, weight=0, tokens=0)) == 0


@pytest.mark.parametrize("count", [2, 64, 65, 131])
def test_what_a_text_is_told_apart_from_is_the_same_for_any_number_of_ranks(
    tuned: Callable[..., Any], count: int
) -> None:
    """The blocks of all ranks are one rank's, and so is the gradient's sum; a rank without one weighs nothing."""
    rows = [{"text": f"word {number}", "positive": f"other {number}"} for number in range(count)]
    rows[0]["negative"] = "neither"
    workload = tuned(Task.EMBEDDING, rows, PAIRS).workload

    class Lengths(nn.Module):
        def forward(self, ids_BT: Any, *_: Any) -> Any:
            return functional.one_hot(ids_BT.sum(1) % 17, 17).float()

    def blocks(world: int) -> list[tuple[int, float]]:
        chunks = [chunk for rank in range(world) for chunk in workload.share(0, rank, world, 0.0)]
        losses = [(chunk.weight, float(workload.loss_sum(Lengths(), chunk))) for chunk in chunks]
        return sorted(each for each in losses if each[0])

    alone = blocks(1)
    assert sum(weight for weight, _ in alone) == count
    assert max(weight for weight, _ in alone) <= 64
    assert min(weight for weight, _ in alone) > 1
    for world in (2, 3, 5):
        assert blocks(world) == alone


def test_a_block_that_does_not_fit_into_memory_is_told(tuned: Callable[..., Any]) -> None:
    """It can't be cut as other batches are: with the rank, and what to lower. One that just fits is trained on."""
    workload = tuned(Task.EMBEDDING, PAIRS, PAIRS).workload
    (block,) = workload.share(0, 0, 1, 0.0)
    workload.chunk_tokens = block.places
    assert [chunk.weight for chunk in workload.share(0, 0, 1, 0.0)] == [len(PAIRS)]
    workload.chunk_tokens = block.places - 1
    with pytest.raises(InputError, match=f"{len(PAIRS)} examples of {block.places} tokens.*rank 0's memory") as refused:
        workload.share(0, 0, 1, 0.0)
    assert refused.value.reason == "BlockTooLarge"


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        ([{"text": "a", "other": "b", "score": 1}], PAIRS, "PositiveMissing"),
        (PAIRS, [PAIRS[0], {"text": "a", "other": "b", "score": 1}], "PairsMixed"),
        (PAIRS, [{"text": "a", "other": "b"}], "ScoreInvalid"),
        (PAIRS, [{"text": "a", "other": "b", "score": "high"}], "ScoreInvalid"),
        (PAIRS, [{"text": "a", "other": "b", "score": 10**400}], "ScoreInvalid"),
        (PAIRS, [{"text": "a", "other": "b", "score": float("inf")}], "ScoreInvalid"),
        ([{"text": "a"}], PAIRS, "TextFieldMissing"),
        ([{"text": "a", "positive": "b", "negative": 3}], PAIRS, "TextFieldMissing"),
    ],
)
def test_wrong_lines_are_told_by_their_place(
    tmp_path: Path, train: list[dict[str, Any]], test: list[dict[str, Any]], reason: str
) -> None:
    """Before anything is trained."""
    with pytest.raises(InputError, match=r"jsonl:\d ") as refused:
        KIND.labels(
            KIND.read([write(tmp_path / "train.jsonl", train)]), KIND.read([write(tmp_path / "test.jsonl", test)]), ()
        )
    assert refused.value.reason == reason


@pytest.mark.parametrize("scored", [False, True])
def test_what_the_examples_give_is_announced(tuned: Callable[..., Any], scored: bool) -> None:
    """All of it, and nothing else: other figures of pairs with scores than of pairs that belong together."""
    scores = [{"text": text, "other": other, "score": len(text)} for text, other in TOPICS.items()]
    made = tuned(Task.EMBEDDING, PAIRS, scores if scored else PAIRS)
    told, _ = KIND.figure_names((), made.workload._examples.keys["test"])
    assert {name for name in made.judge().figures if not name.startswith(("lower_", "upper_"))} == set(told)


@pytest.mark.anyio
async def test_a_trained_model_is_served_and_loads_in_transformers(tuned: Callable[..., Any], tmp_path: Path) -> None:
    """Its vectors are transformers' hidden states, pooled and normalised, and it finds the partners it has learnt."""
    made = tuned(Task.EMBEDDING, PAIRS, PAIRS, steps=60)
    judged = made.judge()
    assert judged.figures["recall_at_1"] == judged.figures["mrr"] == 1
    artifact = made.publish(judged)
    manifest = verify(artifact)
    assert manifest.embedding is not None
    assert (manifest.embedding.dimensions, manifest.embedding.normalized) == (32, True)
    scored = [{"text": text, "other": other, "score": n % 3} for n, (text, other) in enumerate(TOPICS.items())]
    read = KIND.read([write(tmp_path / "scored.jsonl", scored)])
    model, tokenizer = AutoModel.from_pretrained(artifact).eval(), AutoTokenizer.from_pretrained(artifact)
    texts = [text for pair in TOPICS.items() for text in pair]
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
    vectors = functional.normalize(torch.stack([each.mean(0) for each in states]), dim=-1).numpy()
    async with made.serving(artifact) as client:
        reply = (await client.post("/v1/embeddings", json={"input": texts})).json()
    np.testing.assert_allclose([each["embedding"] for each in reply["data"]], vectors, atol=1e-4)
    found = KIND.statistics(assess(artifact, manifest, read, ()), ())["spearman"].figure
    cosines = (vectors[::2] * vectors[1::2]).sum(-1)
    assert found == pytest.approx(spearmanr(cosines, [row["score"] for row in scored]).statistic)
