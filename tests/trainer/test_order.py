"""The global order: every sample exactly once an epoch, whatever the number of ranks and restarts."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloze_trainer.data.order import Order

SAMPLES = st.integers(1, 60)
BATCH = st.integers(1, 17)
SEED = st.integers(0, 2**31 - 1)


@given(SAMPLES, BATCH, SEED, st.integers(1, 3), st.data())
def test_every_sample_once_an_epoch_at_any_world_size(
    samples: int, batch: int, seed: int, epochs: int, data: st.DataObject
) -> None:
    """All ranks together see each sample once an epoch, though the number of ranks changes at every step."""
    limit = samples * epochs
    order = Order(samples, batch, seed, limit=limit)
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(-(-limit // batch)):
        world = data.draw(st.integers(1, 4))
        for rank in range(world):
            indices, epoch_of = order.share(step, rank, world)
            seen.update(zip(epoch_of.tolist(), indices.tolist(), strict=True))
    assert seen == Counter({(epoch, sample): 1 for epoch in range(epochs) for sample in range(samples)})


@given(SAMPLES, BATCH, SEED, st.integers(0, 50))
def test_a_step_depends_on_its_number_alone(samples: int, batch: int, seed: int, step: int) -> None:
    """A resumed run, which starts at this step, gets what an undisturbed one got."""
    undisturbed = Order(samples, batch, seed)
    for earlier in range(step):
        undisturbed.step(earlier)
    resumed = Order(samples, batch, seed)
    assert np.array_equal(undisturbed.step(step)[0], resumed.step(step)[0])


@given(st.lists(st.integers(1, 100), min_size=1, max_size=300), BATCH, SEED)
def test_sorting_by_length_loses_nothing(lengths: list[int], batch: int, seed: int) -> None:
    """Batches of similar length still hold every sample exactly once."""
    samples = len(lengths)
    order = Order(samples, batch, seed, lengths=np.array(lengths), limit=samples)
    seen = np.concatenate([order.step(step)[0] for step in range(-(-samples // batch))])
    assert sorted(seen.tolist()) == list(range(samples))


def test_seeds_give_other_orders() -> None:
    """The order is shuffled, and by the seed."""
    first, second = (Order(1000, 1000, seed).step(0)[0] for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.arange(1000))
