"""The global order: every sample exactly once an epoch, whatever the number of ranks and restarts."""

import itertools
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloze_trainer.data.order import Order

SAMPLES = st.integers(1, 60)
BATCH = st.integers(1, 17)
SEED = st.integers(0, 2**31 - 1)


def lengths_of(samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 100, size=samples)


@given(SAMPLES, BATCH, SEED, st.integers(1, 3), st.data())
def test_every_sample_once_an_epoch_at_any_world_size(
    samples: int, batch: int, seed: int, epochs: int, data: st.DataObject
) -> None:
    """All ranks together see each sample once an epoch, though the number of ranks changes at every step."""
    order = Order(samples, batch, seed, lengths=lengths_of(samples, seed))
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(epochs * order.steps_per_epoch):
        world = data.draw(st.integers(1, 4))
        for rank in range(world):
            indices, epoch_of = order.share(step, rank, world)
            seen.update(zip(epoch_of.tolist(), indices.tolist(), strict=True))
    assert seen == Counter({(epoch, sample): 1 for epoch in range(epochs) for sample in range(samples)})


@given(SAMPLES, BATCH, SEED, st.integers(1, 3), st.data())
def test_a_stream_has_full_batches_and_every_sample_once_an_epoch(
    samples: int, batch: int, seed: int, epochs: int, data: st.DataObject
) -> None:
    """Samples of one length: no batch is short, and epochs follow each other within one, at any number of ranks."""
    order = Order(samples, batch, seed)
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(-(-samples * epochs // batch)):
        world = data.draw(st.integers(1, 4))
        shares = [order.share(step, rank, world) for rank in range(world)]
        assert sum(len(indices) for indices, _ in shares) == batch
        for indices, epoch_of in shares:
            seen.update(zip(epoch_of.tolist(), indices.tolist(), strict=True))
    whole = {key: count for key, count in seen.items() if key[0] < epochs}
    assert whole == {(epoch, sample): 1 for epoch in range(epochs) for sample in range(samples)}


@given(SAMPLES, st.integers(4, 17), SEED, st.integers(1, 20), st.data())
def test_a_growing_batch_reads_the_stream_without_gap_or_repetition(
    samples: int, batch: int, seed: int, growing: int, data: st.DataObject
) -> None:
    """Evenly to the full one, each sample once an epoch, at any number of ranks and from any step on."""
    first = data.draw(st.integers(1, batch))
    order = Order(samples, batch, seed, first=first, growing=growing)
    sizes, seen = [], []
    for step in range(growing + 5):
        world = data.draw(st.integers(1, 4))
        resumed = Order(samples, batch, seed, first=first, growing=growing)
        shares = [resumed.share(step, rank, world) for rank in range(world)]
        sizes.append(sum(len(indices) for indices, _ in shares))
        seen += [pair for indices, epochs in shares for pair in zip(epochs.tolist(), indices.tolist(), strict=True)]
        assert order.start(step + 1) == len(seen)
        assert order.reaching(len(seen)) == step + 1
    assert sizes[0] == first
    assert sizes[growing:] == [batch] * 5
    assert all(0 <= after - before <= -(-batch // growing) for before, after in itertools.pairwise(sizes))
    steady = Order(samples, 1, seed)
    assert Counter(seen) == Counter(
        (int(epoch[0]), int(index[0])) for index, epoch in map(steady.step, range(len(seen)))
    )


@given(SAMPLES, BATCH, SEED, st.integers(0, 50))
def test_a_step_depends_on_its_number_alone(samples: int, batch: int, seed: int, step: int) -> None:
    """A resumed run, which starts at this step, gets what an undisturbed one got."""
    for lengths in (None, lengths_of(samples, seed)):
        undisturbed = Order(samples, batch, seed, lengths=lengths)
        for earlier in range(step):
            undisturbed.step(earlier)
        resumed = Order(samples, batch, seed, lengths=lengths)
        assert np.array_equal(undisturbed.step(step)[0], resumed.step(step)[0])


@given(SAMPLES, BATCH, SEED, st.integers(0, 3))
def test_an_epoch_of_lengths_is_whole_batches_and_one_short_one_at_its_end(
    samples: int, batch: int, seed: int, epoch: int
) -> None:
    """No batch spans two epochs, and only an epoch's last one may be short."""
    order = Order(samples, batch, seed, lengths=lengths_of(samples, seed))
    first = epoch * order.steps_per_epoch
    batches = [order.step(step) for step in range(first, first + order.steps_per_epoch)]
    assert all((epochs == epoch).all() for _, epochs in batches)
    assert [len(indices) for indices, _ in batches[:-1]] == [batch] * (order.steps_per_epoch - 1)
    assert len(batches[-1][0]) == samples - batch * (order.steps_per_epoch - 1)


def test_every_epoch_pads_little() -> None:
    """Batches are of similar length in the first epoch and in each later one, though the last batch is short."""
    lengths = lengths_of(2003, 5)
    order = Order(2003, 16, seed=1, lengths=lengths)
    for epoch in range(4):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = [lengths[order.step(step)[0]] for step in steps]
        padded = sum(len(batch) * batch.max() for batch in batches)
        assert padded / lengths.sum() < 1.12, epoch


def test_seeds_give_other_orders() -> None:
    """The order is shuffled, and by the seed."""
    first, second = (Order(1000, 1000, seed).step(0)[0] for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.arange(1000))
