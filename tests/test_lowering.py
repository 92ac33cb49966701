import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robjax import lowering

RNG = np.random.default_rng(0)


def array(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def assert_same(f, *args, atol=2e-5):
    """`fast(f)` returns what `f` does; both are compiled in one program."""
    fast = lowering.fast(f)
    expected, got = jax.jit(lambda *a: (f(*a), fast(*a)))(*args)
    assert jax.tree.structure(expected) == jax.tree.structure(got)
    named = jax.tree.leaves_with_path(expected)
    for (path, a), b in zip(named, jax.tree.leaves(got), strict=True):
        name = jax.tree_util.keystr(path)
        assert a.shape == b.shape and a.dtype == b.dtype, name
        a = np.asarray(a)
        scale = max(1.0, np.abs(a).max())
        np.testing.assert_allclose(b, a, atol=atol * scale, err_msg=name)


def gradients(convolution):
    """Value and both gradients of a convolution, contracted with fixed weights."""

    def f(x, w):
        out, back = jax.vjp(convolution, x, w)
        return out, back(
            jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        )

    return f


CONVOLUTIONS = {
    "same": {"padding": "SAME"},
    "valid": {"padding": "VALID"},
    "uneven padding": {"padding": [(2, 0), (0, 3)]},
    "negative padding": {"padding": [(-1, 1), (2, -1)]},
    "strided": {"padding": "SAME", "window_strides": (2, 2)},
    "strided unevenly": {"padding": "VALID", "window_strides": (3, 2)},
    "strided and padded": {"padding": [(1, 2), (0, 1)], "window_strides": (2, 3)},
    "dilated kernel": {"padding": "SAME", "rhs_dilation": (2, 2)},
    "dilated input": {"padding": [(2, 1), (0, 2)], "lhs_dilation": (2, 3)},
    "all": {
        "padding": [(3, 2), (2, 3)],
        "window_strides": (2, 1),
        "lhs_dilation": (3, 2),
        "rhs_dilation": (1, 2),
    },
}


@pytest.mark.parametrize("kernel", [(3, 3, 3, 7), (5, 2, 6, 2), (1, 1, 3, 6)])
def test_convolutions_and_their_gradients_are_equal(kernel):
    def f(x, w):
        found = {}
        for name, options in CONVOLUTIONS.items():
            convolution = functools.partial(
                lax.conv_general_dilated,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                **{"window_strides": (1, 1), **options},
            )
            found[name] = gradients(convolution)(x, w)
        return found

    assert_same(f, array(2, 9, 8, kernel[2]), array(*kernel))


@pytest.mark.parametrize("side", [1, 2, 4])
def test_kernels_larger_than_the_image_are_equal(side):
    x, w = array(3, side, side + 1, 6), array(5, 5, 6, 8)
    convolution = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert_same(gradients(convolution), x, w)


@pytest.mark.parametrize("layout", [("NCHW", "OIHW", "NCHW"), ("NHWC", "OIHW", "NCHW")])
def test_other_layouts_are_equal(layout):
    shape = {"N": 2, "C": 4, "H": 7, "W": 6}
    x, w = array(*(shape[c] for c in layout[0])), array(5, 4, 3, 3)
    convolution = functools.partial(
        lax.conv_general_dilated,
        window_strides=(2, 1),
        padding="SAME",
        dimension_numbers=layout,
    )
    assert_same(gradients(convolution), x, w)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_grouped_convolutions_are_equal(strides):
    x, w = array(2, 8, 8, 6), array(3, 3, 2, 9)
    convolution = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    assert_same(gradients(convolution), x, w)


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_signals_and_volumes_are_left_alone(rank):
    x, w = array(2, *([6] * rank), 3), array(*([3] * rank), 3, 4)
    spatial = "HWD"[:rank]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    convolution = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1,) * rank,
        padding="SAME",
        dimension_numbers=layout,
    )
    assert_same(gradients(convolution), x, w)


@pytest.mark.parametrize("window", [(2, 2), (3, 3), (2, 1), (1, 3)])
def test_pooling_gradients_are_equal_with_ties(window):
    # few values, so that most windows have ties: the first maximum gets it all
    x = jnp.asarray(RNG.integers(0, 3, size=(2, 7, 9, 3)), jnp.float32)
    direction = array(*x.shape)

    def of(pool, x):
        out, back = jax.vjp(pool, x)
        weights = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return back(weights), jax.jvp(pool, (x,), (direction,))

    def f(x):
        found = {}
        for strides in {window, (1, 1), (2, 2)}:
            for padding in ("VALID", "SAME"):
                pool = functools.partial(
                    nn.max_pool, window_shape=window, strides=strides, padding=padding
                )
                found[f"{strides} {padding}"] = of(pool, x)
        return found

    assert_same(f, x, atol=1e-6)


class Net(nn.Module):
    """A model as a user writes it: nothing of robjax in it."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(12, (3, 3), strides=(2, 2))(x))
        x = nn.gelu(nn.Conv(12, (1, 1), strides=(2, 2))(x))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def net():
    model, x = Net(), array(3, 12, 12, 2)
    params = jax.jit(model.init)(jax.random.key(0), x)

    def loss(x, params):
        return jnp.sum(jnp.tanh(model.apply(params, x)) ** 2)

    return loss, x, params


def test_every_transformation_around_fast_still_works(net):
    loss, x, params = net
    grad = jax.grad(loss)
    direction = array(*x.shape)

    def jvp(f):
        return lambda x: jax.jvp(lambda v: f(v, params), (x,), (direction,))

    def vjp(f):
        return lambda x: jax.vjp(lambda v: f(v, params), x)[1](direction)

    def loop(f):
        return lambda x: lax.fori_loop(0, 3, lambda _, v: v + 0.1 * f(v, params), x)

    def mapped(f):
        return lambda x: jax.vmap(lambda v: f(v[None], params))(x)

    for around in (jvp, vjp, loop, mapped):
        expected = jax.jit(around(grad))(x)
        got = jax.jit(around(lowering.fast(grad)))(x)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-5)


def test_bodies_of_loops_branches_and_remat_are_rewritten(net):
    loss, x, params = net
    remat = jax.checkpoint(loss)

    def scanned(x, params):
        def body(v, _):
            return v + 0.1 * jax.grad(loss)(v, params), loss(v, params)

        return lax.scan(body, x, None, length=3)

    def branched(x, params):
        return lax.cond(x.sum() > 0, jax.grad(loss), lambda v, _: v, x, params)

    def total(x, params):
        return lax.scan(lambda v, _: (0.9 * v, loss(v, params)), x, None, 3)[1].sum()

    for f in (scanned, branched, jax.grad(remat), jax.value_and_grad(total)):
        assert_same(f, x, params)
        assert "select_and_scatter_add" in str(jax.make_jaxpr(f)(x, params))
        fast = jax.make_jaxpr(lowering.fast(f))(x, params)
        assert "select_and_scatter_add" not in str(fast)


def test_gradient_convolutions_come_out_in_the_form_the_cpu_is_fast_at(net):
    loss, x, params = net
    closed = jax.make_jaxpr(lowering.fast(jax.grad(loss)))(x, params)
    equations = {"conv_general_dilated": [], "select_and_scatter_add": []}
    for equation in closed.jaxpr.eqns:
        equations.get(equation.primitive.name, []).append(equation.params)
    assert not equations["select_and_scatter_add"]
    assert equations["conv_general_dilated"]
    for params in equations["conv_general_dilated"]:
        numbers = params["dimension_numbers"]
        assert tuple(numbers.lhs_spec) == (0, 3, 1, 2)
        assert tuple(numbers.rhs_spec) == (3, 2, 0, 1)
        assert tuple(params["lhs_dilation"]) == (1, 1)


def test_float64_is_equal_to_rounding():
    with jax.enable_x64(True):
        x, w = (
            jnp.asarray(RNG.normal(size=(2, 8, 8, 3))),
            jnp.asarray(RNG.normal(size=(3, 3, 3, 5))),
        )
        convolution = functools.partial(
            lax.conv_general_dilated,
            window_strides=(2, 2),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        assert_same(gradients(convolution), x, w, atol=1e-13)


def test_no_arguments_lost_in_trees_and_constants():
    scale = array(3)

    def f(tree):
        return {"a": tree["x"] * scale[None], "b": (tree["y"], jnp.float32(2.0))}

    assert_same(f, {"x": array(2, 3), "y": array(4)})
