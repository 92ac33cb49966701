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
    task = Task.make(
        MODEL, np.zeros((count, 4, 4, 1), np.float32), np.zeros(count, int), key=KEY,
        bounds=(0.0, 1.0), batch_size=batch_size, devices=jax.devices()[:devices],
    )  # fmt: skip
    index = 3 * np.arange(count) + 1
    batches = list(task.batches(index))
    real = np.concatenate([batch[:n] for batch, n in batches])
    np.testing.assert_array_equal(real, index)
    sizes = [len(batch) for batch, _ in batches]
    assert sizes == sorted(sizes, reverse=True)
    powers = [-(-(2**i) // devices) * devices for i in range(3, 7)]
    assert set(sizes) <= {task.batch_size, *powers}
    for batch, n in batches:
        size = len(batch)
        assert size % devices == 0 and n <= size <= task.batch_size
        assert set(batch[n:]) <= {batch[0]}
    assert all(n == size for size, (_, n) in zip(sizes[:-1], batches, strict=False))
    # no more copies than a quarter, or what the smallest batch takes
    assert sizes[-1] - batches[-1][1] <= max(sizes[-1] // 4, 7) + devices
