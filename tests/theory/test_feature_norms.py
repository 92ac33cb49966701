"""How far norms of one topology are apart, `feature_spaces.norm_ratio`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robjax.theory import feature_spaces as fs

SEEDS = st.integers(0, 10**6)
NORMS = (1, 2, np.inf)


@given(SEEDS, st.integers(1, 300))
def test_norms_lie_between_each_other_and_reach_the_ends(seed, n):
    rng = np.random.default_rng(seed)
    sizes = 10 ** rng.uniform(-6, 6, (40, 1))
    v = sizes * rng.standard_t(2, (40, n))
    one, two, most = (np.linalg.norm(v, p, axis=1) for p in NORMS)
    slack = 1 + 1e-12
    for low, high in (
        (most, two),
        (two, one),
        (one, n**0.5 * two),
        (n**0.5 * two, n * most),
    ):
        assert (low <= slack * high).all()
    ends = np.eye(n)[0], np.ones(n)
    for p in NORMS:
        for q in NORMS:
            ratio = fs.norm_ratio(p, q, n)
            stretch = np.linalg.norm(v, q, axis=1) / np.linalg.norm(v, p, axis=1)
            assert (stretch <= slack * ratio).all()
            attained = [np.linalg.norm(e, q) / np.linalg.norm(e, p) for e in ends]
            assert max(attained) == pytest.approx(ratio, rel=1e-13)
