"""Every rule by itself: intervals and lines against values all over the box."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robjax.balls import Linf
from robjax.certification.graph import record
from robjax.certification.intervals import Equation, Interval, roundoff
from robjax.certification.linear import lower_bound, propagate, relax
from robjax.certification.regions import Region, least_inner, total
from robjax.certification.relaxations import leaky
from robjax.certification.rules import FUNCTIONS, RULES, Rule

SHARES = np.linspace(0, 1, 61, dtype=np.float32)[:, None, None]

# one interval a column: below 0, above, across 0 either way, short, a point
REAL = np.float32(
    [[-3.0, 0.2, -1.0, -4.0, 0.5, -0.7, -6.0], [-0.5, 3.0, 2.5, 1.0, 0.5001, -0.7, 8.0]]
)[:, None]
POSITIVE = np.abs(REAL).cumsum(axis=0) + np.float32(0.1)
ONES = jnp.arange(1.0, 8.0)[None] / 4

ELEMENTWISE = {
    # with lines of their own: (function, box)
    "relu": (jax.nn.relu, REAL),
    "relu of a shift": (lambda x: jnp.maximum(ONES, x), REAL),
    "minimum": (lambda x: jnp.minimum(x, 0.5), REAL),
    "leaky relu": (lambda x: nn.leaky_relu(x, 0.2), REAL),
    "leaky relu by default": (nn.leaky_relu, REAL),
    "tanh": (jnp.tanh, REAL),
    "sigmoid": (jax.nn.sigmoid, REAL),
    "erf": (lax.erf, REAL),
    "exp": (jnp.exp, REAL),
    "expm1": (jnp.expm1, REAL),
    "exp2": (jnp.exp2, REAL),
    "softplus": (jax.nn.softplus, REAL),
    "silu": (jax.nn.silu, REAL),
    "abs": (jnp.abs, REAL),
    "square": (jnp.square, REAL),
    "product with itself": (lambda x: x * x, REAL),
    "hundredth power": (lambda x: lax.integer_pow(x, 100), REAL / 8),
    "high exp2": (jnp.exp2, 15 * REAL),
    "fourth power": (lambda x: lax.integer_pow(x, 4), REAL),
    "log": (jnp.log, POSITIVE),
    "log1p": (jnp.log1p, POSITIVE),
    "sqrt": (jnp.sqrt, POSITIVE),
    "rsqrt": (lax.rsqrt, POSITIVE),
    # of intervals alone, or of several equations
    "gelu": (jax.nn.gelu, REAL),
    "exact gelu": (functools.partial(jax.nn.gelu, approximate=False), REAL),
    "elu": (jax.nn.elu, REAL),
    "relu6": (jax.nn.relu6, REAL),
    "hard tanh": (jax.nn.hard_tanh, REAL),
    "clamp": (lambda x: lax.clamp(-1.0, x, 2.0), REAL),
    "third power": (lambda x: x**3, REAL),
    "reciprocal": (lambda x: 1 / x, POSITIVE),
    "power −1": (lambda x: lax.integer_pow(x, -1), POSITIVE),
    "power −2": (lambda x: lax.integer_pow(x, -2), POSITIVE),
    "erfc": (lax.erfc, REAL),
    "others": (lambda x: jnp.atan(x) + lax.asinh(x) + jnp.sinh(x) + lax.cbrt(x), REAL),
    "steps": (lambda x: jnp.floor(x) + jnp.ceil(x) + jnp.round(x) + jnp.sign(x), REAL),
    "where": (lambda x: jnp.where((x > 0) & ~(x >= 2), x, -0.5 * x), REAL),
    "where below": (lambda x: jnp.where((x < 0) | (x <= -2), 0.3, x), REAL),
    "counts": (lambda x: (x > 0).astype(jnp.float32) - x.astype(int), REAL),
    "finite": (lambda x: jnp.where(jnp.isfinite(x), x, 0), REAL),
    "stop_gradient": (lambda x: lax.stop_gradient(-x) / 3, REAL),
    "maximum of two": (lambda x: jnp.maximum(x, 1 - x), REAL),
    "minimum of two": (lambda x: jnp.minimum(x, 0.3 - x / 2), REAL),
}


def box_of(ends):
    lower, upper = map(jnp.asarray, ends)
    return Region((lower + upper) / 2, jnp.array(0.0), Linf, Interval(lower, upper))


def found(function, ends):
    """The interval of the result, and its ends by linear bounds."""
    region = box_of(ends)
    graph = record(function, region.image)
    at = graph.output
    bounds = propagate(graph, region, rows=99, tighten=False)
    lines = relax(graph, bounds)
    shape = graph.nodes[at].type.shape

    def end(row):
        return lower_bound(graph, bounds, lines, region, row.reshape(shape), at)

    rows = jnp.eye(int(np.prod(shape)))
    lower, upper = jax.vmap(end)(
        jnp.stack([rows, -rows]).reshape(-1, len(rows))
    ).reshape(2, *shape)
    return bounds.intervals[at], Interval(lower, -upper), graph, lines


@pytest.fixture(scope="module")
def elementwise():
    @jax.jit
    def everything():
        results = {}
        for name, (function, ends) in ELEMENTWISE.items():
            interval, linear, graph, lines = found(function, ends)
            points = ends[0] + SHARES[:, 0] * (ends[1] - ends[0])
            points = jnp.clip(points, *ends)
            values = jax.vmap(lambda v, f=function: f(v[None])[0])(points)
            held = {}
            if len(graph.nodes) == 2 and lines:  # one equation: its lines themselves
                held["below"] = lines[1].lower(points)
                held["above"] = lines[1].upper(points)
            results[name] = interval, linear, values, held
        return results

    return jax.device_get(everything())


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_value_lies_within_its_bounds(name, elementwise):
    interval, linear, values, lines = elementwise[name]
    for lower, upper in (interval, linear):
        assert np.all(np.isfinite(lower)) and np.all(np.isfinite(upper))
        assert (lower <= values).all() and (values <= upper).all()
    if lines:
        assert (lines["below"] <= values).all() and (values <= lines["above"]).all()


TIGHT = {
    "relu", "leaky relu", "tanh", "sigmoid", "erf", "exp", "log", "sqrt", "abs",
    "softplus", "silu", "square", "third power", "clamp", "relu6", "rsqrt",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TIGHT))
def test_intervals_of_single_functions_are_as_short_as_can_be(name, elementwise):
    interval, _, values, _ = elementwise[name]
    np.testing.assert_allclose(interval.lower, values.min(0)[None], 1e-4, 0.1)
    np.testing.assert_allclose(interval.upper, values.max(0)[None], 1e-4, 1e-5)


def test_lines_have_their_published_slopes(elementwise):
    below, above = (elementwise["relu"][3][k] for k in ("below", "above"))
    l, u = REAL[:, 0]
    points = l + SHARES[:, 0] * (u - l)
    across = (l < 0) & (u > 0)
    chord = np.where(across, u * (points - l) / np.maximum(u - l, 1e-9), points)
    np.testing.assert_allclose(above[:, across], chord[:, across], atol=1e-5)
    steep = np.where(u > -l, points, 0)
    np.testing.assert_allclose(below[:, across], steep[:, across], atol=1e-5)
    for name in ("tanh", "sigmoid", "erf", "exp", "softplus"):
        _, _, values, lines = elementwise[name]
        for side in ("below", "above"):  # a best line touches the function
            gap = np.abs(lines[side] - values).min(axis=0)
            assert (gap <= 1e-3 * (1 + np.abs(values).max(axis=0))).all()


MAPS = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 2)).astype(np.float32)
MAPS.sort(axis=0)
KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 2, 3)), jnp.float32)
DEPTHWISE = jnp.asarray(np.random.default_rng(2).normal(size=(2, 2, 1, 4)), jnp.float32)
DENSE = jnp.asarray(np.random.default_rng(3).normal(size=(32, 3)), jnp.float32)


def convolved(x, kernel, **params):
    return lax.conv_general_dilated(
        x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **params
    )


@jax.custom_vjp
def doubled(x):
    return x + x


doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (0 * g,))  # a lie

AFFINE = {
    "dense": lambda x: 1 - 2 * (x.reshape(1, -1) @ DENSE),
    "convolution": lambda x: convolved(
        x, KERNEL, window_strides=(2, 1), padding="SAME", rhs_dilation=(1, 2)
    ),
    "depthwise": lambda x: convolved(
        x, DEPTHWISE, window_strides=(1, 1), padding="VALID", feature_group_count=2
    ),
    "transposed": lambda x: nn.ConvTranspose(2, (2, 2), strides=(2, 2)).apply(
        {"params": {"kernel": KERNEL[:2, :2, :, :2], "bias": jnp.ones(2)}}, x
    ),
    "average pooling": lambda x: nn.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME"),
    "batch norm": lambda x: nn.BatchNorm(use_running_average=True).apply(
        {
            "params": {"scale": jnp.array([-1.0, 2.0]), "bias": jnp.ones(2)},
            "batch_stats": {"mean": jnp.ones(2), "var": jnp.array([0.5, 2.0])},
        },
        x,
    ),
    "shapes": lambda x: (
        jnp.concatenate(
            [
                x.transpose(0, 2, 1, 3)[:, ::-1, 1:],
                jnp.pad(
                    x[:, :, :1], ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=2
                ),
            ],
            axis=2,
        )
        - jnp.squeeze(x[:, 0, 0, 0])
    ),
    "entries": lambda x: (
        x[:, jnp.array([2, 0])] + lax.dynamic_slice_in_dim(x, jnp.array(1), 2, 1)
    ),
    "split": lambda x: jnp.split(x, 2, axis=1)[1] - x.cumsum(axis=2)[:, :2],
    "outside": lambda x: (
        jnp.take(x, jnp.array([1, 7]), axis=1, mode="fill", fill_value=5.0)
        - x.at[:, :2].get(mode="clip")
    ),
    "stacks": lambda x: (
        jnp.tile(jnp.stack([x[:, 0], 1 - x[:, 1]], axis=1), (1, 2, 1, 1))
        + jnp.stack(jnp.unstack(x, axis=2)[::-1], axis=2)
    ),
    "choice": lambda x: jnp.where(jnp.arange(4)[:, None] > 1, x, 0.5),
    "remat": jax.checkpoint(lambda x: x.mean(axis=(1, 2)) - x[:, 0, 0]),
}

OTHERS = {
    "custom derivative": lambda x: doubled(x)[:, 0],
    "max pooling": lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)),
    "overlapping": lambda x: nn.max_pool(x, (3, 2), strides=(1, 2), padding="SAME"),
    "global maximum": lambda x: x.max(axis=(1, 2)) + x.min(axis=(1, 2)),
    "running maximum": lambda x: lax.cummax(x, axis=1) - lax.cummin(x, axis=2),
    "one choice for all": lambda x: lax.select_n(x[0, 0, 0, 0] > 0, x, 1 - x),
    "product": lambda x: x[..., :1] * x[..., 1:],
    "quotient": lambda x: x[..., :1] / (3 + x[..., 1:] ** 2),
    "two bounded matrices": lambda x: x[0, :, :, 0] @ x[0, :, :, 1],
    "softmax": lambda x: jax.nn.softmax(x, axis=2),
    "log of softmax": lambda x: jax.nn.log_softmax(x.reshape(1, -1)),
    "logsumexp": lambda x: jax.nn.logsumexp(x, axis=(1, 2)),
    "layer norm": lambda x: nn.LayerNorm().apply(
        {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}, 3 * x
    ),
}


@pytest.fixture(scope="module")
def maps():
    lower, upper = MAPS
    shares = np.random.default_rng(4).uniform(size=(200, *lower.shape))
    shares = np.concatenate([shares, np.round(shares)]).astype(np.float32)
    points = np.clip(lower + shares * (upper - lower), lower, upper)

    @jax.jit
    def everything(points, centre):
        results = {}
        for name, function in {**AFFINE, **OTHERS}.items():
            interval, linear, _, _ = found(function, MAPS)
            slopes = jax.jacobian(function)(centre) if name in AFFINE else None
            values = jax.vmap(function)(points)
            results[name] = interval, linear, values, function(centre), slopes
        return results

    return jax.device_get(everything(points, (lower + upper) / 2))


@pytest.mark.parametrize("name", {**AFFINE, **OTHERS})
def test_every_map_lies_within_its_bounds(name, maps):
    interval, linear, values, centre, slopes = maps[name]
    for lower, upper in (interval, linear):
        assert (lower <= values).all() and (values <= upper).all()
    if slopes is not None:  # of an affine function linear bounds are exact
        reach = (np.abs(slopes) * (MAPS[1] - MAPS[0]) / 2).sum(axis=(-4, -3, -2, -1))
        np.testing.assert_allclose(linear.lower, centre - reach, 1e-4, 1e-4)
        np.testing.assert_allclose(linear.upper, centre + reach, 1e-4, 1e-4)


def test_log_of_softmax_loses_nothing_in_differences():
    ends = np.float32([[[0.0, 1.0, 2.0]], [[0.5, 1.5, 2.5]]])
    region = box_of(ends)

    @jax.jit
    def least():
        graph = record(jax.nn.log_softmax, region.image)
        bounds = propagate(graph, region, rows=9, tighten=False)
        row = jnp.array([[-1.0, 0.0, 1.0]])
        return lower_bound(graph, bounds, {}, region, row, graph.output)

    assert least() == pytest.approx(1.5, abs=1e-4)


def test_every_rule_is_tested():
    used = set()

    def trace(box, maps):
        for function in [function for function, _ in ELEMENTWISE.values()]:
            used.update(node.equation.name for node in record(function, box).nodes)
        for function in (*AFFINE.values(), *OTHERS.values()):
            used.update(node.equation.name for node in record(function, maps).nodes)

    jax.eval_shape(trace, jnp.asarray(REAL[0]), jnp.asarray(MAPS[0]))
    assert RULES.keys() == used - {"image", *FUNCTIONS}


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: jnp.argmax(x, axis=1, keepdims=True) * 1.0, "'argmax'"),
        (jnp.sin, "'sin'.*certification.Rule"),
        (lambda x: x.astype(jnp.bfloat16), "bfloat16"),
        (lambda x: x.astype(bool) * 1.0, "bool"),
        (lambda x: jnp.arange(9.0).take(x[0].astype(int), mode="clip"), "places"),
        (lambda x: (x.astype(int) & 3) * 1.0, "bits"),
        (lambda x: x.astype(int).astype(jnp.int8) * 1.0, "int8"),
        (lambda x: (x.astype(int) * 100_000) * 1.0, "overflow.*'mul'"),
        (lambda x: -x.astype(int) * 1.0, "overflow.*'neg'"),
        (lambda x: lax.scan(lambda c, v: (c, v), 0.0, x)[1], "scan"),
    ],
)
def test_what_no_rule_bounds_is_an_error(function, words):
    def bound(x):
        graph = record(function, x)
        return propagate(graph, box_of(REAL[..., :2]), rows=9, tighten=False).intervals

    with pytest.raises(ValueError, match=words):
        jax.eval_shape(bound, jnp.ones((1, 2)))


def test_the_chord_of_a_relu_does_not_overflow():
    top = jnp.array(3e38)
    equation = Equation("leaky_relu", jax.nn.leaky_relu, {})
    assert leaky(equation, Interval(-top, top), 0.0).upper(top) >= top


def test_a_loop_over_constants_is_written_out():
    weights = jnp.array([2.0, -3.0])
    graph = record(
        lambda x: lax.scan(lambda c, w: (c * w, None), x, weights)[0], jnp.ones((1, 2))
    )
    assert [node.equation.name for node in graph.nodes] == ["image", "mul", "mul"]


def test_a_function_of_a_known_name_is_not_taken_for_it():
    @jax.jit
    def silu(x):
        return 5 * x

    names = [n.equation.name for n in record(silu, jnp.ones((1, 2))).nodes]
    assert names == ["image", "mul"]
    names = [n.equation.name for n in record(jax.nn.silu, jnp.ones((1, 2))).nodes]
    assert names == ["image", "silu"]


def test_a_rule_can_be_added():
    def bound(equation, x):
        return Interval(-jnp.ones_like(x.lower), jnp.ones_like(x.upper))

    graph = record(jnp.sin, jnp.ones((1, 7)), {**RULES, "sin": Rule(bound)})
    bounds = propagate(graph, box_of(REAL), rows=9, tighten=False)
    assert bounds.intervals[-1].upper.min() >= 1


@pytest.mark.parametrize("terms", [1, 10, 100, 1000, 10_000])
@pytest.mark.parametrize("values", ["equal", "random", "growing", "falling"])
def test_sums_err_by_less_than_is_stated(terms, values):
    rng = np.random.default_rng(terms)
    a = {
        "equal": np.full(terms, 0.1),
        "random": rng.normal(size=terms),
        "growing": np.geomspace(1e-6, 1, terms),
        "falling": np.geomspace(1, 1e-6, terms),
    }[values].astype(np.float32)
    b = np.full((terms, 1), 0.7, np.float32)
    wide = a.astype(np.float64) @ b.astype(np.float64)
    stated = roundoff(np.float32, terms) * np.abs(
        wide if values != "random" else np.abs(a) @ np.abs(b)
    )
    assert np.abs(jnp.asarray(a) @ jnp.asarray(b) - wide) < stated
    assert (
        np.abs(jnp.sum(jnp.asarray(a)) - a.sum(dtype=np.float64))
        < roundoff(np.float32, terms) * np.abs(a).sum()
    )
    assert total(jnp.asarray(a)) < a.sum(dtype=np.float64)


@pytest.mark.parametrize("size", [1, 30, 3000])
def test_inner_products_are_bounded_closely(size):
    rng = np.random.default_rng(size)
    row = rng.normal(size=size).astype(np.float32)
    low = rng.normal(size=size).astype(np.float32)
    high = low + rng.uniform(size=size).astype(np.float32)
    error = rng.uniform(0, 0.01, size=size).astype(np.float32)
    wide, l, u, e = (np.float64(a) for a in (row, low, high, error))
    exact = np.where(wide > 0, wide * (l - e), wide * (u + e)).sum()
    found = float(least_inner(*map(jnp.asarray, (row, low, high, error))))
    size_of_terms = (np.abs(wide) * (np.maximum(np.abs(l), np.abs(u)) + e)).sum()
    stated = 3 * roundoff(np.float32, size) * size_of_terms
    assert exact - stated < found < exact


ATTAINED = {
    "a pixel, scaled": (lambda x: 3 * x[None] / 2 - 1, True),
    "one sum of pixels": (lambda x: (x.reshape(1, 4) @ SIDE + 1) * 2, True),
    "a convolution": (
        lambda x: lax.conv(x[None, None], jnp.ones((2, 1, 2, 2)), (1, 1), "SAME"),
        True,
    ),
    "two sums": (lambda x: x.reshape(1, 4) @ SIDE @ SIDE, False),
    "a sum of copies": (
        lambda x: jnp.tile(x.reshape(1, 4), (1, 2)) @ jnp.tile(-SIDE, (2, 1)),
        False,
    ),
    "a pixel twice": (lambda x: x - 2 * x[::-1], False),
    "after a ReLU": (lambda x: jax.nn.relu(x - 0.5).reshape(1, 4) @ SIDE, False),
}
SIDE = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)


@pytest.mark.parametrize("name", ATTAINED)
def test_intervals_that_are_called_exact_are(name):
    function, attained = ATTAINED[name]
    image = jnp.full((2, 2), 0.5)
    graph = record(function, image)
    assert graph.attained()[graph.output] == attained
    if attained:
        box = Interval(image - 0.5, image + 0.5)
        region = Region(image, jnp.asarray(0.5), Linf, box)
        bounds = propagate(graph, region, rows=1, tighten=False)
        corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4), -1).reshape(-1, 2, 2)
        values = np.stack([function(jnp.asarray(c, jnp.float32)) for c in corners])
        found = bounds.intervals[graph.output]
        np.testing.assert_allclose(found.lower, values.min(axis=0), atol=1e-5)
        np.testing.assert_allclose(found.upper, values.max(axis=0), atol=1e-5)
