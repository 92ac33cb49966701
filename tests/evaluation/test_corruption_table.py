"""The table of corruptions against direct calls, and its means by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import corruptions, evaluation

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X = RNG.uniform(size=(13, 8, 8, 1)).astype(np.float32)
X = np.clip(X * np.linspace(0.5, 1.4, 13, dtype=np.float32)[:, None, None, None], 0, 1)
TRACES = []


def brightness(x):
    mean = x.mean(axis=(1, 2, 3))
    return jnp.stack([0.5 - mean, mean - 0.5], axis=1)


Y = np.array(jnp.argmax(brightness(jnp.asarray(X)), axis=1))
Y[[2, 9]] = 1 - Y[[2, 9]]  # errors on clean images


def own(x, *, key, severity):
    TRACES.append(None)
    noise = jax.vmap(lambda k: jax.random.uniform(k, x.shape[1:]))(key)
    return x + severity * 0.1 * noise


KINDS = {"brightness": corruptions.brightness, "own": own}


@pytest.fixture(scope="module")
def table():
    return evaluation.corruption_table(
        brightness, (X, Y), KINDS, key=KEY, severities=(1, 3), batch_size=8
    )


def test_every_image_is_shown_and_draws_from_its_own_key(table):
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(13))
    for row, kind in enumerate(KINDS.values()):
        for column, severity in enumerate((1, 3)):
            moved = jnp.clip(kind(jnp.asarray(X), key=keys, severity=severity), 0, 1)
            right = np.asarray(jnp.argmax(brightness(moved), axis=1)) == Y
            np.testing.assert_array_equal(table.right[row, column], right)
    assert not table.clean[[2, 9]].any() and table.clean.sum() == 11
    # a corruption may make a wrong image right, which counts
    assert (table.right & ~table.clean).any()


def test_an_image_that_became_nan_is_not_right():
    def broken(x, *, key, severity):
        return jnp.where(x == 1, jnp.nan, x)  # as the bright images have it

    table = evaluation.corruption_table(
        brightness, (X, Y), {"broken": broken}, key=KEY, severities=(1,)
    )
    hit = (X == 1).any(axis=(1, 2, 3))
    assert 0 < hit.sum() < 13 and (table.clean & hit).any()
    np.testing.assert_array_equal(table.right[0, 0], table.clean & ~hit)


def test_severities_compile_nothing_anew(table):
    """What is left is the trace that checks the kind, once for all severities."""
    before = len(TRACES)
    again = evaluation.corruption_table(
        brightness, (X, Y), KINDS, key=KEY, severities=(2, 4, 5), batch_size=8
    )
    assert len(TRACES) <= before + 1
    assert again.severities == (2, 4, 5)


def test_means_by_hand(table):
    wrong = 1 - np.asarray(table.right, float)
    np.testing.assert_allclose(table.errors, wrong.mean(axis=2))
    of_images = wrong.reshape(4, 13).mean(axis=0)
    mean, stderr = table.mean_error
    assert mean == pytest.approx(table.errors.mean())
    assert stderr == pytest.approx(np.std(of_images, ddof=1) / np.sqrt(13))
    robust = table.clean & (of_images == 0)
    np.testing.assert_array_equal(table.robust, robust)
    other = table._replace(right=np.zeros_like(table.right))  # always wrong
    by_hand = np.mean([row.sum() / 2 for row in table.errors])
    assert table.normalised_error(other) == pytest.approx(by_hand)
    assert table.normalised_error(table) == pytest.approx(1)
    assert table.accuracy("own", 3).mean == table.right[1, 1].mean()
    lines = table.table().splitlines()
    assert len(lines) == 7 and "mean corruption error" in lines[-1]


def test_it_is_written_to_a_file(table, tmp_path):
    table.save(tmp_path / "table.npz")
    with np.load(tmp_path / "table.npz") as saved:
        np.testing.assert_array_equal(saved["right"], table.right)
        assert saved["kinds"].tolist() == ["brightness", "own"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": [own]}, "kinds must be a mapping"),
        ({"severities": (0,)}, "severities must be whole numbers from 1 to 5"),
        ({"severities": ()}, "severities must be whole numbers from 1 to 5"),
        ({"kinds": {"none": None}}, "kinds['none'] must be a corruption"),
        ({"data": (2 * X, Y)}, "data images must lie inside bounds"),
        ({"data": (X[:, :7], Y)}, "x must be [B, H, W, C] with H and W at least 8"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"data": (X, Y), "kinds": KINDS, "key": KEY} | change
    with pytest.raises(ValueError) as caught:
        evaluation.corruption_table(brightness, **given)
    assert message in str(caught.value)


def test_tables_of_other_corruptions_are_no_baseline(table):
    with pytest.raises(ValueError, match="baseline must have the kinds"):
        table.normalised_error(table._replace(severities=(1, 2)))
    perfect = table._replace(right=np.ones_like(table.right))
    with pytest.raises(ValueError, match="baseline must make errors under"):
        table.normalised_error(perfect)
