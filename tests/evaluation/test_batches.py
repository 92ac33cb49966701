"""How samples are gathered into batches."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from robjax.evaluation.batches import Task
from tests.attacks.test_autoattack import KEY, MODEL


@given(
    count=st.integers(1, 300),
    batch_size=st.integers(1, 64),
    devices=st.sampled_from([1, 2, 3, 8]),
)
def test_batches_cover_the_index_in_few_sizes(count, batch_size, devices):
    def make(devices):
        return Task.make(
            MODEL, np.zeros((count, 4, 4, 1), np.float32), np.zeros(count, int),
            key=KEY, bounds=(0.0, 1.0), batch_size=batch_size,
            devices=jax.devices()[:devices],
        )  # fmt: skip

    task = make(devices)
    index = 3 * np.arange(count) + 1
    batches = list(task.batches(index))
    real = np.concatenate([batch[:n] for batch, n in batches])
    np.testing.assert_array_equal(real, index)
    sizes = [len(batch) for batch, _ in batches]
    assert sizes == sorted(sizes, reverse=True)
    powers = [
        -(-size // devices) * devices for size in (task.batch_size, 8, 16, 32, 64)
    ]
    assert set(sizes) <= set(powers)
    for batch, n in batches:
        assert n <= task.batch_size and len(batch) < task.batch_size + devices
        assert set(batch[n:]) <= {batch[0]}
    # files of a run hold these samples, whatever devices it goes on with
    assert [n for _, n in batches] == [n for _, n in make(1).batches(index)]
    # no more copies than a quarter, or what the smallest batch takes
    assert sizes[-1] - batches[-1][1] <= max(sizes[-1] // 4, 7) + devices
