"""What the models compute, against NumPy; their input checks; their forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import models
from robjax.models.resnet import conv


def numpy_conv(x, kernel, stride, pad):
    """Cross-correlation of one image [H, W, C] by the definition."""
    side = kernel.shape[0]
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    rows = range(0, x.shape[0] - side + 1, stride)
    columns = range(0, x.shape[1] - side + 1, stride)
    return np.array(
        [
            [
                np.einsum("ijc,ijco->o", x[r : r + side, s : s + side], kernel)
                for s in columns
            ]
            for r in rows
        ]
    )


def numpy_pool(x, reduce):
    """2×2 pooling of one image; an odd last row or column is dropped."""
    rows, columns = x.shape[0] // 2, x.shape[1] // 2
    x = x[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, -1)
    return reduce(x, axis=(1, 3))


def test_cnn_equals_numpy(random_variables):
    with jax.enable_x64(True):
        model = models.CNN(3, blocks=((2, 3), (4,)), kernel=3, hidden=5)
        x = np.random.default_rng(0).normal(size=(2, 7, 6, 2))
        variables = random_variables(model, x)
        logits = jax.jit(model.apply)(variables, x)
        assert logits.dtype == jnp.float64
    params = variables["params"]
    for image, row in zip(x, np.asarray(logits), strict=True):
        for block in (("conv1_1", "conv1_2"), ("conv2_1",)):
            for name in block:
                maps = numpy_conv(image, params[name]["kernel"], 1, 1)
                image = np.maximum(maps + params[name]["bias"], 0)
            image = numpy_pool(image, np.max)
        hidden = image.ravel() @ params["dense"]["kernel"] + params["dense"]["bias"]
        hidden = np.maximum(hidden, 0)
        expected = hidden @ params["logits"]["kernel"] + params["logits"]["bias"]
        np.testing.assert_allclose(row, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("form", "reduce"),
    [("relu", np.max), ("half_linear", np.max), ("pure_linear", np.mean)],
)
def test_vgg_equals_numpy(form, reduce, random_variables):
    """On 7×7 images two of the three poolings fit."""
    with jax.enable_x64(True):
        model = models.VGG(3, blocks=((2,), (3,), (4,)), form=form)
        x = np.random.default_rng(0).normal(size=(1, 7, 7, 2))
        variables = random_variables(model, x)
        logits = np.asarray(jax.jit(model.apply)(variables, x))[0]
    params = variables["params"]
    (image,) = x
    for name in ("conv1_1", "conv2_1", "conv3_1"):
        image = numpy_conv(image, params[name]["kernel"], 1, 1) + params[name]["bias"]
        image = np.maximum(image, 0) if form == "relu" else image
        image = numpy_pool(image, reduce) if len(image) > 1 else image
    assert image.shape == (1, 1, 4)
    expected = image[0, 0] @ params["logits"]["kernel"] + params["logits"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_strided_convolution_is_padded_on_every_side(kernel, stride, random_variables):
    with jax.enable_x64(True):
        layer = conv(3, kernel, stride, "conv")
        x = np.random.default_rng(0).normal(size=(1, 6, 6, 2))
        variables = random_variables(layer, x)
        maps = np.asarray(layer.apply(variables, x))[0]
    expected = numpy_conv(x[0], variables["params"]["kernel"], stride, kernel // 2)
    assert expected.shape == (6 // stride, 6 // stride, 3)
    np.testing.assert_allclose(maps, expected, rtol=1e-12)


def superposition_gap(random_variables, form):
    """|f(a + b) − f(a) − f(b) + f(0)| over the size of f; 0 for affine f."""
    with jax.enable_x64(True):
        model = models.VGG(4, blocks=((8,), (8, 8)), form=form, mean=(0.4,), std=(0.2,))
        a, b = np.random.default_rng(0).uniform(size=(2, 3, 8, 8, 3))
        variables = random_variables(model, a, low=-0.3, high=0.3)
        apply = jax.jit(model.apply)
        fa, fb, both, zero = (
            apply(variables, x) for x in (a, b, a + b, np.zeros_like(a))
        )
        return float(jnp.abs(both - fa - fb + zero).max() / jnp.abs(fa).max())


def test_pure_linear_is_affine_and_the_other_forms_are_not(random_variables):
    assert superposition_gap(random_variables, "pure_linear") < 1e-13
    assert superposition_gap(random_variables, "half_linear") > 1e-2
    assert superposition_gap(random_variables, "relu") > 1e-2


def test_linear_model_is_a_matrix(random_variables):
    model = models.Linear(3, mean=(0.5, 0.25), std=(2.0,))
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 3, 3, 2)), jnp.float32)
    variables = random_variables(model, x)
    layer = variables["params"]["logits"]
    flat = ((np.asarray(x) - np.array([0.5, 0.25])) / 2).reshape(4, 18)
    expected = flat @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, x), expected, rtol=1e-5, atol=1e-6
    )


def test_mlp_without_hidden_layers_is_linear(random_variables):
    x = jnp.ones((2, 4, 4, 1))
    variables = random_variables(models.Linear(3), x)
    expected = models.Linear(3).apply(variables, x)
    np.testing.assert_array_equal(
        models.MLP(3, widths=()).apply(variables, x), expected
    )


@pytest.mark.parametrize(
    "model",
    [
        models.Linear(5),
        models.MLP(5),
        models.CNN(5),
        models.VGG(5, blocks=((4,), (4,), (4,), (4,), (4,))),
        models.ResNet(5, blocks_per_group=1),
        models.WideResNet(5, depth=10, width=1),
        models.PreActResNet(5, blocks_per_group=1, channels=(4, 8)),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (1, 28, 28, 1), (1, 32, 32, 3)])
def test_logits_shape_dtype_and_default_is_inference(model, shape):
    x = jnp.ones(shape)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert set(variables) <= {"params", "batch_stats"}
    logits = jax.eval_shape(model.apply, variables, x)
    assert (logits.shape, logits.dtype) == ((shape[0], 5), jnp.float32)


def test_a_preact_resnet_with_the_groups_of_a_wide_one_is_that(random_variables):
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 8, 8, 3)), jnp.float32)
    wide = models.WideResNet(4, depth=10, width=1)
    same = models.PreActResNet(4, blocks_per_group=1, channels=(16, 32, 64))
    variables = random_variables(wide, x, low=-0.2, high=0.2)
    variables["batch_stats"] = jax.tree.map(lambda v: v + 1, variables["batch_stats"])
    ours, theirs = (jax.jit(model.apply)(variables, x) for model in (same, wide))
    np.testing.assert_array_equal(ours, theirs)
    raw = same.clone(raw_shortcut=True)
    assert not np.allclose(jax.jit(raw.apply)(variables, x), theirs, rtol=1e-3)


def init(model, x):
    return jax.eval_shape(model.init, jax.random.key(0), x)


def test_bad_input_is_named():
    images = jnp.zeros((2, 8, 8, 3))
    with pytest.raises(ValueError, match=r"form must be one of .*'abc'"):
        models.vgg13(10, form="abc")
    with pytest.raises(ValueError, match="depth must be 6n"):
        models.WideResNet(10, depth=20)
    with pytest.raises(ValueError, match="one number for each of the 3 groups"):
        models.ResNet(10, blocks_per_group=(1, 2))
    for model in (models.CNN(10), models.vgg11(10), models.resnet20(10)):
        with pytest.raises(ValueError, match="x must be a batch of images"):
            init(model, images[0])
    with pytest.raises(ValueError, match="x must be at least 4 pixels"):
        init(models.CNN(10), images[:, :2])
    with pytest.raises(ValueError, match="scale integer images"):
        init(models.MLP(10), images.astype(jnp.uint8))
    with pytest.raises(ValueError, match="mean must hold 1 or 3"):
        init(models.CNN(10, mean=(0.5, 0.5)), images)
    with pytest.raises(ValueError, match="std must hold 1 or 3"):
        init(models.CNN(10, std=(0.5, 0.5)), images)
    with pytest.raises(ValueError, match="std must be positive"):
        init(models.CNN(10, std=(0.0,)), images)
