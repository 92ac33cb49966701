"""Masks that grow and means over classes, against SciPy and NumPy."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from robjax.metrics import spurious

SHAPE = (3, 12, 9)


@pytest.mark.parametrize(("kernel", "iterations"), [(5, 2), (3, 1), (5, 0), (5, 15)])
def test_dilation_of_hard_and_soft_masks(kernel, iterations):
    rng = np.random.default_rng(0)
    soft = np.where(rng.random(SHAPE) < 0.05, rng.random(SHAPE), 0).astype(np.float32)
    soft[2] = 0  # nothing grows out of nothing
    hard = soft > 0
    expected, grown = soft, hard
    for _ in range(iterations):
        window = (1, kernel, kernel)
        expected = ndimage.grey_dilation(expected, size=window, mode="constant")
        grown = ndimage.binary_dilation(grown, np.ones(window))
    options = {"kernel": kernel, "iterations": iterations}
    found = spurious.dilate(soft, **options)
    np.testing.assert_array_equal(found, expected)
    found = spurious.dilate(hard, **options)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, grown)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": np.ones(SHAPE, np.uint8)}, "masks must hold truth values or"),
        ({"masks": np.ones((4, 4), bool)}, r"masks must have .* got \(4, 4\)"),
        ({"masks": np.full(SHAPE, 2.0)}, r"masks must be finite and in \[0, 1\]"),
        ({"kernel": 4}, "kernel must be odd, got 4"),
        ({"iterations": -1}, "iterations must be a whole number of at least 0"),
    ],
)
def test_dilation_names_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        spurious.dilate(**{"masks": np.ones(SHAPE, bool)} | changes)


def test_accuracies_that_are_balanced_over_classes():
    """A rare class counts as much as the others; one that is left out does not."""
    x = jax.random.uniform(jax.random.key(0), (30, 4, 4, 3))
    masks = np.zeros((30, 4, 4))
    masks[:, :2] = 1
    masks[27:] = 0  # all images of class 4 are left out
    y = np.repeat([0, 2, 3, 4], [18, 6, 3, 3])
    found = spurious.noise_sensitivity(
        lambda x: 9 * (x.reshape(len(x), -1)[:, :48:9] - 0.5), x, y, masks,
        key=jax.random.key(1), linf_levels=(0.3,), l2_levels=(), class_balanced=True,
    )  # fmt: skip
    correct = np.asarray(found.correct)
    each = [correct[..., y == label] for label in (0, 2, 3)]
    means = np.mean([one.mean(-1) for one in each], 0)
    np.testing.assert_allclose(found.accuracy.value, means, atol=1e-6)
    variances = [one.var(-1, ddof=1) / one.shape[-1] for one in each]
    stderr = np.sqrt(np.sum(variances, 0)) / 3
    np.testing.assert_allclose(found.accuracy.stderr, stderr, atol=1e-6)
    rfs = spurious.relative_sensitivity(*means.T.astype(np.float32))
    np.testing.assert_allclose(found.relative.value, rfs, atol=1e-6)
    plain = found._replace(classes=None)
    assert abs(plain.accuracy.value - means).max() > 0.01
    # of as many images in each class it is the mean over images
    rows = np.concatenate([np.flatnonzero(y == label)[:3] for label in (0, 2, 3)])
    part = found._replace(
        correct=found.correct[..., rows], clean=found.clean[rows], classes=y[rows]
    )
    over_images = part._replace(classes=None)
    np.testing.assert_allclose(
        part.accuracy.value, over_images.accuracy.value, atol=1e-6
    )
    assert part.clean_accuracy.value == pytest.approx(
        float(over_images.clean_accuracy.value), abs=1e-6
    )
