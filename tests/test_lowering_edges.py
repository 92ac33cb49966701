"""What `lowering` must not change: rare shapes, dtypes, numbers and surroundings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from robjax import lowering

RNG = np.random.default_rng(0)
NHWC = ("NHWC", "HWIO", "NHWC")


def array(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def convolve(x, w, strides=(1, 1), padding="SAME", **options):
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=NHWC, **options
    )


def max_pool(x, window=(2, 2), strides=(2, 2), padding="VALID"):
    lowest = np.array(-np.inf, x.dtype)
    shape = (1, *window, 1)
    return lax.reduce_window(x, lowest, lax.max, shape, (1, *strides, 1), padding)


def with_gradients(f):
    """Value and gradients of `f`, contracted with fixed weights."""

    def g(*args):
        out, back = jax.vjp(f, *args)
        weights = jnp.cos(jnp.arange(out.size)).reshape(out.shape)
        return out, back(weights.astype(out.dtype))

    return g


def mesh(kind):
    return jax.make_mesh((4,), ("batch",), axis_types=(kind,))


def with_fast(f, around=jax.jit):
    """What `f` and `fast(f)` return, in one program."""
    fast = lowering.fast(f)
    return around(lambda *args: (f(*args), fast(*args)))


def compare(both, rtol=1e-5):
    """Types, finite entries and numbers are equal."""
    expected, got = both
    assert jax.tree.structure(expected) == jax.tree.structure(got)
    named = jax.tree.leaves_with_path(expected)
    for (path, a), b in zip(named, jax.tree.leaves(got), strict=True):
        name = jax.tree_util.keystr(path)
        kinds = [(v.shape, v.dtype, v.weak_type) for v in (a, b)]
        assert kinds[0] == kinds[1], name
        a, b = (np.asarray(v).astype(np.float64) for v in (a, b))
        finite = np.isfinite(a)
        np.testing.assert_array_equal(finite, np.isfinite(b), err_msg=name)
        scale = np.abs(a[finite]).max(initial=1.0)
        np.testing.assert_allclose(
            b[finite], a[finite], rtol=0, atol=rtol * scale, err_msg=name
        )


def assert_same(f, *args, rtol=1e-5, around=jax.jit):
    """`fast(f)` returns what `f` does."""
    compare(with_fast(f, around)(*args), rtol)


# Where the axes, the types or the parts of a body belong to what is around it


def model_that_names_an_axis(w):
    def body(x):
        norm = lax.pmean(jnp.sum(jnp.tanh(convolve(x, w))), "batch")
        return x + norm + convolve(jnp.tanh(convolve(x, w, (2, 2))), w).mean()

    return body


def test_a_models_own_shard_map_keeps_its_axes():
    x = array(4, 6, 6, 2)
    spec = PartitionSpec("batch")
    body = model_that_names_an_axis(array(3, 3, 2, 2))
    model = jax.shard_map(body, mesh=mesh(AxisType.Auto), in_specs=spec, out_specs=spec)

    def scanned(x):
        return lax.scan(lambda v, _: (jnp.tanh(model(v)), None), x, None, 2)[0]

    for f in (model, scanned):
        assert_same(with_gradients(f), x)
        assert_same(f, x, around=lambda g: g)


def test_a_models_own_pmap_keeps_its_axes():
    body = model_that_names_an_axis(array(3, 3, 2, 2))
    model = jax.pmap(body, axis_name="batch")
    assert_same(with_gradients(model), array(4, 1, 6, 6, 2))


@pytest.mark.usefixtures("usual_compilation")
def test_loops_inside_a_shard_map_around_fast():
    w = array(3, 3, 2, 2)

    def f(x):
        def loss(x):
            x, _ = lax.scan(lambda v, _: (jnp.tanh(convolve(v, w)), None), x, None, 2)
            return jnp.sum(max_pool(convolve(x, w, (2, 2))) ** 2)

        return lax.fori_loop(0, 2, lambda _, v: v + 0.01 * jax.grad(loss)(v), x)

    spec = PartitionSpec("batch")
    sharded = functools.partial(
        jax.shard_map, mesh=mesh(AxisType.Auto), in_specs=spec, out_specs=spec
    )
    assert_same(f, array(4, 8, 8, 2), around=lambda g: jax.jit(sharded(g)))


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_shardings_that_are_part_of_the_type(strides):
    w = array(3, 3, 2, 3)
    x = array(4, 8, 8, 2)

    def loss(x):
        return jnp.sum(max_pool(jnp.tanh(convolve(x, w, strides))))

    with jax.set_mesh(mesh(AxisType.Explicit)):
        x = jax.device_put(x, PartitionSpec("batch"))
        assert_same(jax.grad(loss), x)
        assert_same(
            lambda x: lax.fori_loop(0, 2, lambda _, v: v + jax.grad(loss)(v), x), x
        )


def test_a_linear_solver_inside():
    w = array(3, 3, 2, 2) / 30

    def f(x):
        y, _ = jax.scipy.sparse.linalg.cg(
            lambda v: v + convolve(convolve(v, w), w), x, maxiter=4
        )
        return convolve(y, w)

    assert_same(with_gradients(f), array(2, 6, 6, 2))


def test_mutable_references_in_a_loop():
    w = array(3, 3, 2, 2) / 5

    def f(x):
        state = jax.new_ref(x)

        def step(_, total):
            state[...] = jnp.tanh(convolve(state[...], w))
            return total + jnp.sum(state[...] ** 2)

        return lax.fori_loop(0, 3, step, 0.0), state[...]

    assert_same(f, array(1, 6, 6, 2))


def test_weak_types_and_keys_in_loops_and_branches():
    w = array(3, 3, 2, 2) / 5

    def looped(x):
        def body(carry):
            count, scale, x = carry
            return count + 1, scale * 2.0, jnp.tanh(convolve(x, w))

        return lax.while_loop(lambda carry: carry[0] < 3, body, (0, 1.0, x))

    def branched(x):
        return lax.cond(
            x.sum() > 0, lambda v: (1.0, convolve(v, w)), lambda v: (2.0, v), x
        )

    def random(x):
        def step(carry, _):
            x, key = carry
            key, new = jax.random.split(key)
            return (convolve(x, w) + jax.random.normal(new, x.shape), key), None

        return lax.scan(step, (x, jax.random.key(0)), None, 3)[0][0]

    for f in (looped, branched, random):
        assert_same(f, array(1, 6, 6, 2))


def test_callbacks_run_once():
    w = array(3, 3, 2, 2) / 5
    seen = []

    def f(x):
        def step(v, _):
            jax.debug.callback(lambda s: seen.append(float(s)), v.sum(), ordered=True)
            return convolve(v, w), None

        return lax.scan(step, x, None, 3)[0]

    x = array(1, 6, 6, 2)
    for g in (f, lowering.fast(f)):
        jax.block_until_ready(jax.jit(g)(x))
        jax.effects_barrier()
    assert len(seen) == 6
    np.testing.assert_allclose(seen[3:], seen[:3], rtol=1e-4, atol=1e-5)


# Shapes and types


EMPTY = {
    "no image": ((0, 8, 8, 2), (3, 3, 2, 8), {}),
    "no image, strided": ((0, 8, 8, 2), (3, 3, 2, 8), {"strides": (2, 2)}),
    "no channel": ((2, 8, 8, 0), (3, 3, 0, 3), {}),
    "no output channel": ((2, 8, 8, 2), (3, 3, 2, 0), {}),
    "no row": ((2, 0, 8, 2), (3, 3, 2, 3), {}),
    "kernel beyond the image": ((2, 2, 2, 2), (4, 4, 2, 3), {"padding": "VALID"}),
    "all cropped": ((2, 8, 8, 2), (3, 3, 2, 8), {"padding": [(-4, -4)] * 2}),
    "all cropped, 1×1": ((2, 8, 8, 2), (1, 1, 2, 3), {"padding": [(-4, -4)] * 2}),
    "all cropped, strided": (
        (2, 3, 3, 2),
        (3, 3, 2, 8),
        {"strides": (2, 2), "padding": [(-3, 0), (0, 0)]},
    ),
}


@pytest.mark.parametrize("case", EMPTY.values(), ids=EMPTY.keys())
def test_empty_arrays(case):
    images, kernel, options = case
    convolution = functools.partial(convolve, **options)
    assert_same(with_gradients(convolution), array(*images), array(*kernel))


@pytest.mark.parametrize("kernel", [(1, 1, 2, 3), (3, 3, 2, 3), (3, 3, 2, 6)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_results_of_a_wider_type_than_the_images(kernel, dtype):
    def f(x, w):
        found = {}
        for strides in ((1, 1), (2, 2)):
            for wide in ("float32", "float64"):
                convolution = functools.partial(
                    convolve, strides=strides, preferred_element_type=jnp.dtype(wide)
                )
                found[f"{strides} {wide}"] = with_gradients(convolution)(x, w)
        return found

    with jax.enable_x64(True):
        x = array(2, 7, 8, 2, dtype=dtype)
        expected, got = with_fast(f)(x, array(*kernel, dtype=dtype))
        compare(
            [{k: v[0] for k, v in found.items()} for found in (expected, got)], 1e-6
        )
        compare((expected, got), 4e-3 if dtype == "bfloat16" else 1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("channels", [(1, 3), (3, 3), (3, 16), (16, 3)])
def test_half_precision_is_as_exact_as_it_was(dtype, channels):
    x = array(2, 12, 12, channels[0], dtype=dtype)
    kernels = [array(size, size, *channels, dtype=dtype) for size in (1, 3, 5)]
    cotangent = array(2, 12, 12, channels[1], dtype=dtype)

    def f(x, kernels, cotangent):
        found = []
        for w in kernels:
            out, back = jax.vjp(convolve, x, w)
            found += [out, *back(cotangent)]
        return found

    args = (x, kernels, cotangent)
    exact = jax.jit(f)(*jax.tree.map(lambda v: np.asarray(v).astype(np.float32), args))

    def error(outputs):
        pairs = zip(map(np.asarray, outputs), map(np.asarray, exact), strict=True)
        return [
            np.linalg.norm(a.astype(np.float32) - b) / np.linalg.norm(b)
            for a, b in pairs
        ]

    before, after = map(error, with_fast(f)(*args))
    assert all(b <= 1.2 * a for a, b in zip(before, after, strict=True))


def test_float64_within_a_program_in_float32():
    w = np.asarray(RNG.normal(size=(3, 3, 2, 3)))

    def f(x):
        with jax.enable_x64(True):
            x = x.astype(jnp.float64)
            y = convolve(x, w) + convolve(x, w, (2, 2)).sum()
            v = w[..., :2]
            return lax.fori_loop(0, 2, lambda _, y: convolve(y, v), y[..., :2])

    assert_same(f, array(2, 6, 6, 2), rtol=1e-12)


@pytest.mark.parametrize("around", [jax.jit, lambda g: g], ids=["jit", "eager"])
def test_numpy_arrays_as_arguments(around):
    x = RNG.normal(size=(2, 8, 8, 2))
    w = RNG.normal(size=(3, 3, 2, 3))

    def f(x, w):
        return jax.grad(lambda x: jnp.sum(jnp.tanh(max_pool(convolve(x, w)))))(x)

    assert_same(f, jnp.asarray(x), jnp.asarray(w), around=around)
    np.testing.assert_allclose(
        around(lowering.fast(f))(x, w), f(jnp.asarray(x), jnp.asarray(w)), atol=1e-5
    )
    back = lowering.fast(lambda x: jax.vjp(max_pool, x)[1](jnp.ones((2, 4, 4, 2)))[0])
    assert around(back)(x.astype(np.float64)).dtype == jnp.float32


# Numbers that are not finite


VALUES = [
    [0, 1, np.nan],
    [np.nan],
    [-np.inf],
    [-np.inf, 0, np.inf],
    [np.nan, -np.inf, np.inf, 0, 1],
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("window", "strides"), [((2, 2), (2, 2)), ((3, 2), (3, 2)), ((3, 3), (2, 2))]
)
def test_pooling_chooses_among_nan_and_infinities_as_before(dtype, window, strides):
    pool = functools.partial(max_pool, window=window, strides=strides)

    def f(x, direction):
        out, back = jax.vjp(pool, x)
        weights = jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(x.dtype)
        return back(weights), jax.jvp(pool, (x,), (direction,))

    both = with_fast(f)
    for values in VALUES:
        x = jnp.asarray(RNG.choice(values, size=(2, 7, 9, 2)), dtype)
        compare(both(x, array(*x.shape, dtype=dtype)), rtol=0)


@pytest.mark.parametrize("size", [(3, 3), (2, 1), (4, 5)])
def test_a_gradient_that_is_not_finite_spreads_no_further(size):
    w = array(*size, 2, 6)

    def f(x, row):
        found = {}
        for padding in ("SAME", "VALID"):
            for strides in ((2, 2), (3, 1), (3, 2)):
                convolution = functools.partial(
                    convolve, w=w, strides=strides, padding=padding
                )
                out, back = jax.vjp(convolution, x)
                broken = jnp.ones_like(out).at[0, row, 1, 0].set(jnp.inf)
                found[f"{strides} {padding}"] = back(broken)
        return found

    both = with_fast(f)
    for row in (0, 1):
        compare(both(array(1, 11, 10, 2), row))


def test_large_windows_are_left_to_xla():
    def f(x):
        return jax.grad(lambda x: max_pool(x, (8, 8), (8, 8)).sum())(x)

    x = array(1, 8, 8, 2)
    assert "select_and_scatter_add" in str(jax.make_jaxpr(lowering.fast(f))(x))
    assert_same(f, x)


# Random networks


def random_layer(rng, shape):
    """A layer of images of this shape, a few of its parameters drawn; or None."""
    channels = shape[-1]
    window = tuple(rng.integers(1, 5, size=2).tolist())
    strides = tuple(rng.choice([1, 1, 2, 3], size=2).tolist())
    kind = rng.choice(["convolution", "convolution", "pooling", "body"])
    if kind == "pooling":
        padding = str(rng.choice(["SAME", "VALID"]))
        chosen = window if rng.integers(2) else strides
        return functools.partial(
            max_pool, window=window, strides=chosen, padding=padding
        )
    if kind == "body":
        w = rng.normal(size=(*window, channels, channels)) / np.prod(window)

        def same(x):
            return jnp.tanh(convolve(x, jnp.asarray(w, x.dtype)))

        bodies = [
            lambda x: lax.fori_loop(0, 2, lambda _, v: same(v), x),
            jax.checkpoint(same),
            lambda x: lax.cond(x.sum() < 1e30, same, lambda v: v, x),
            lambda x: jax.vmap(lambda v: same(v[None])[0])(x),
            jax.jit(same),
        ]
        return bodies[rng.integers(len(bodies))]
    groups = channels if rng.integers(4) == 0 else 1
    outputs = groups * int(rng.integers(1, 7))
    w = rng.normal(size=(*window, channels // groups, outputs)) / np.prod(window)
    margins = tuple(map(tuple, rng.integers(-2, 4, size=(2, 2)).tolist()))
    options = {
        "strides": strides,
        "padding": margins if rng.integers(2) else "VALID",
        "rhs_dilation": tuple(rng.choice([1, 1, 2], size=2).tolist()),
        "lhs_dilation": tuple(rng.choice([1, 1, 1, 2], size=2).tolist()),
        "feature_group_count": groups,
    }
    return lambda x: convolve(x, jnp.asarray(w, x.dtype), **options)


def random_network(rng, shape):
    layers = []
    while len(layers) < 3:
        layer = random_layer(rng, shape)
        try:
            out = jax.eval_shape(layer, jax.ShapeDtypeStruct(shape, jnp.float32))
        except ValueError:  # all pixels cropped, and some
            continue
        if 0 < out.size < 3000:
            layers.append(layer)
            shape = out.shape
    return lambda x: functools.reduce(lambda x, layer: layer(x), layers, x)


@pytest.mark.parametrize("seed", range(25))
def test_random_networks_are_equal_in_float64(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers([1, 1, 1, 1], [3, 10, 10, 6]).tolist())
    with jax.enable_x64(True):
        network = random_network(rng, shape)
        x = jnp.asarray(rng.normal(size=shape))
        direction = jnp.asarray(rng.normal(size=shape))

        def gradient(x):
            return jax.grad(lambda x: jnp.sum(jnp.tanh(network(x)) ** 2))(x)

        programs = [
            lambda x: (network(x), gradient(x)),
            lambda x: jax.jvp(network, (x,), (direction,)),
            lambda x: jax.vmap(lambda v: gradient(v[None]))(x),
            lambda x: lax.fori_loop(0, 2, lambda _, v: v + 0.1 * gradient(v), x),
        ]
        assert_same(programs[seed % len(programs)], x, rtol=1e-11)
