"""Between proof and attack."""

from typing import NamedTuple

import numpy as np
import pytest

from robjax.evaluation import bracket


class Attacked(NamedTuple):
    robust: np.ndarray


class Certified(NamedTuple):
    proven: np.ndarray


ROBUST = np.array([True, True, False, True])


def test_each_image_is_proven_broken_or_open():
    found = bracket(Attacked(ROBUST), Certified(np.array([True, False, False, False])))
    assert found.proven.tolist() == [True, False, False, False]
    assert found.broken.tolist() == [False, False, True, False]
    assert found.open.tolist() == [False, True, False, True]
    assert (found.lower.mean, found.upper.mean) == (0.25, 0.75)
    assert "between 25.0 % (proven) and 75.0 % (attacked), 2 of 4" in repr(found)


def test_a_contradiction_is_loud():
    with pytest.raises(ValueError, match=r"images \[2\] are proven and broken"):
        bracket(Attacked(ROBUST), Certified(np.array([True, False, True, False])))


def test_other_images_are_an_error():
    with pytest.raises(ValueError, match="got 4 and 3"):
        bracket(Attacked(ROBUST), Certified(np.ones(3, bool)))


def test_margins_are_no_proofs():
    with pytest.raises(ValueError, match=r"certificate.proven must be \[N\] bool"):
        bracket(Attacked(ROBUST), Certified(np.array([1.0, -2.0, 0.5, 1.0])))
