"""Certificates against exact answers, published formulas, attacks and auto_LiRPA."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial
from scipy.optimize import LinearConstraint, milp, minimize

from robjax import attacks, certification, models
from robjax.balls import L1, L2, Linf
from robjax.certification import Certificate, certify

SIZES = (5, 6, 6, 3)


def mlp(layers, x):
    *hidden, (weight, bias) = layers
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b[None])
    return x @ weight + bias[None]


def random_layers(seed, sizes=SIZES):
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(m, n)) * 1.5 / np.sqrt(m), rng.normal(size=n) / 5)
        for m, n in itertools.pairwise(sizes)
    ]


def random_problem(seed, count=4):
    """Float64 layers, images, and the classes that the network gives them."""
    layers = random_layers(seed)
    x = np.random.default_rng(seed + 1).uniform(size=(count, SIZES[0]))
    z = x
    for w, b in layers[:-1]:
        z = np.maximum(z @ w + b, 0)
    return layers, x, (z @ layers[-1][0] + layers[-1][1]).argmax(axis=1)


def margins(layers, x, y, eps, method, kind=Linf):
    with jax.enable_x64(True):
        model = Partial(mlp, jax.tree.map(jnp.asarray, layers))
        found = certify(
            model, jnp.asarray(x), jnp.asarray(y), ball=kind(eps), method=method
        )
        assert found.margin.dtype == jnp.float64
        return np.asarray(found.margin)


def ends(weight, bias, l, u):
    """Interval arithmetic of one layer, row by row."""
    up, down = np.maximum(weight, 0), np.minimum(weight, 0)
    return l @ up + u @ down + bias, u @ up + l @ down + bias


def numpy_margins(layers, x, y, eps):
    """IBP, CROWN-IBP and CROWN of one image by the published formulas."""
    low, high = np.maximum(x - eps, 0), np.minimum(x + eps, 1)
    weight, bias = layers[-1]
    others = np.arange(len(bias)) != y
    spec = (weight[:, [y]] - weight)[:, others], (bias[y] - bias)[others]

    def backward(row, constant, hidden, pre):
        """The least of v · row + constant, v after the hidden layers."""
        for (w, b), (l, u) in zip(hidden[::-1], pre[::-1], strict=True):
            across = (l < 0) & (u > 0)
            chord = np.where(across, u / np.where(across, u - l, 1), l >= 0)
            below = np.where(across, u > -l, l >= 0)
            up, down = np.maximum(row, 0), np.minimum(row, 0)
            constant = constant - np.where(across, chord * l, 0) @ down
            row = below[:, None] * up + chord[:, None] * down
            constant, row = constant + b @ row, w @ row
        return constant + low @ np.maximum(row, 0) + high @ np.minimum(row, 0)

    by_intervals, by_lines = [], []
    l, u = low, high
    for depth, (w, b) in enumerate(layers[:-1]):
        l, u = ends(w, b, l, u)
        by_intervals.append((l, u))
        # linear bounds, cut with intervals from the linear bounds before
        before = [np.maximum(e, 0) for e in by_lines[-1]] if depth else (low, high)
        plain = ends(w, b, *before)
        by_lines.append(
            (
                np.maximum(plain[0], backward(w, b, layers[:depth], by_lines)),
                np.minimum(plain[1], -backward(-w, -b, layers[:depth], by_lines)),
            )
        )
        l, u = np.maximum(l, 0), np.maximum(u, 0)
    ibp = ends(*spec, l, u)[0]
    crown_ibp = np.maximum(ibp, backward(*spec, layers[:-1], by_intervals))
    crown = np.maximum(crown_ibp, backward(*spec, layers[:-1], by_lines))
    return ibp.min(), crown_ibp.min(), crown.min()


def exact_margin(layers, x, y, eps):
    """The exact margin of one image, by mixed-integer programming.

    The unknowns are the image, and for each ReLU its input, its output and whether it
    is active (Tjeng, Xiao and Tedrake, ICLR 2019, arXiv 1711.07356).
    """
    low, high = np.maximum(x - eps, 0), np.minimum(x + eps, 1)
    lower, upper, integral, rows = [*low], [*high], [0] * len(x), []
    start, l, u = 0, low, high

    def unknowns(least, most, whole=0):
        first = len(lower)
        lower.extend(least)
        upper.extend(most)
        integral.extend([whole] * len(least))
        return first

    for w, b in layers[:-1]:
        l, u = ends(w, b, l, u)
        size = len(b)
        pre = unknowns(l, u)
        post = unknowns(np.zeros(size), np.maximum(u, 0))
        active = unknowns(np.zeros(size), np.ones(size), 1)
        for i in range(size):
            inputs = {start + j: -w[j, i] for j in range(len(w))}
            rows.append(({pre + i: 1, **inputs}, b[i], b[i]))
            rows.append(({post + i: 1, pre + i: -1}, 0, np.inf))
            least, most = min(l[i], 0), max(u[i], 0)
            rows.append(({post + i: 1, active + i: -most}, -np.inf, 0))
            rows.append(
                ({post + i: 1, pre + i: -1, active + i: -least}, -np.inf, -least)
            )
        start, l, u = post, np.maximum(l, 0), np.maximum(u, 0)
    matrix = np.zeros((len(rows), len(lower)))
    for row, (entries, _, _) in zip(matrix, rows, strict=True):
        for column, value in entries.items():
            row[column] = value
    limits = LinearConstraint(matrix, [r[1] for r in rows], [r[2] for r in rows])
    weight, bias = layers[-1]
    best = np.inf
    for other in set(range(len(bias))) - {y}:
        cost = np.zeros(len(lower))
        cost[start : start + len(weight)] = weight[:, y] - weight[:, other]
        found = milp(
            cost, constraints=limits, integrality=integral, bounds=(lower, upper)
        )
        assert found.success
        best = min(best, found.fun + bias[y] - bias[other])
    return best


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.floats(0.01, 0.4))
def test_formulas_exact_answers_and_order(seed, eps):
    layers, x, y = random_problem(seed)
    found = [margins(layers, x, y, eps, m) for m in certification.METHODS]
    for one in range(len(x)):
        expected = numpy_margins(layers, x[one], y[one], eps)
        # our ball is 2e-7 larger
        np.testing.assert_allclose([f[one] for f in found[:3]], expected, atol=2e-5)
    for looser, tighter in itertools.pairwise(found):
        assert (looser <= tighter).all()
    exact = [exact_margin(layers, x[one], y[one], eps) for one in range(2)]
    assert (found[-1][:2] <= np.array(exact) + 1e-9).all()


def least_linear(row, x, kind, eps):
    """The exact minimum of row · v over ball ∩ [0, 1]ⁿ."""
    if kind is Linf:
        return row @ np.where(row > 0, np.maximum(x - eps, 0), np.minimum(x + eps, 1))
    room = np.where(row > 0, x, 1 - x)
    if kind is L1:
        value, left = row @ x, eps
        for i in np.argsort(-np.abs(row)):
            step = min(left, room[i])
            value, left = value - np.abs(row[i]) * step, left - step
        return value
    size = np.abs(row)
    low, high = 0.0, 1e6
    for _ in range(200):  # the step of length ε along min(t |row|, room)
        t = (low + high) / 2
        fits = np.linalg.norm(np.minimum(t * size, room)) <= eps
        low, high = (t, high) if fits else (low, t)
    return row @ x - size @ np.minimum(low * size, room)


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_linear_models_are_exact(kind):
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(6, 3)), rng.normal(size=3)
    x, y = rng.uniform(size=(9, 6)), rng.integers(0, 3, 9)
    x[0], x[1] = 0, np.round(x[1])  # corners
    eps = rng.uniform(0, 1.5, 9)
    eps[2] = 0
    found = margins([(weight, bias)], x, y, eps, "ibp", kind)
    for one in range(len(x)):
        exact = min(
            least_linear(weight[:, y[one]] - weight[:, k], x[one], kind, eps[one])
            + bias[y[one]]
            - bias[k]
            for k in {0, 1, 2} - {y[one]}
        )
        assert found[one] <= exact + 1e-9
        assert found[one] == pytest.approx(exact, abs=2e-5 if kind is not L2 else 2e-3)


def test_the_minimum_over_l2_is_that_of_a_solver():
    rng = np.random.default_rng(5)
    row, x, eps = rng.normal(size=6), rng.uniform(size=6), 0.7
    found = minimize(
        lambda v: row @ v,
        x,
        jac=lambda v: row,
        bounds=[(0, 1)] * 6,
        constraints={"type": "ineq", "fun": lambda v: eps**2 - (v - x) @ (v - x)},
    )
    assert least_linear(row, x, L2, eps) == pytest.approx(found.fun, abs=1e-5)


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x.reshape(len(x), 4, -1))
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        x = x + nn.Dense(4)(nn.gelu(nn.Dense(4)(x)))
        return nn.Dense(3)(x.mean(axis=1))


class Smooth(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.silu(nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x)))
        x = nn.leaky_relu(nn.avg_pool(x, (2, 2), (2, 2))).reshape(len(x), -1)
        return nn.Dense(3)(nn.softplus(nn.Dense(5)(x)) * nn.tanh(nn.Dense(5)(x)))


NETWORKS = {
    "CNN": (models.CNN(3, blocks=((3,),), kernel=3, hidden=6), "crown"),
    "ResNet": (models.ResNet(3, blocks_per_group=1, width=1), "ibp"),
    "WideResNet": (models.WideResNet(3, depth=10, width=1), "ibp"),
    "VGG": (models.VGG(3, blocks=((3,), (4,)), form="half_linear"), "ibp"),
    "attention": (Transformer(), "ibp"),
    "smooth": (Smooth(), "ibp"),
}


def random_variables(model, x):
    """Normal weights; scales and variances near 1."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1])
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_attack_goes_below_the_margin(name):
    model, method = NETWORKS[name]
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(4, 8, 8, 1)).astype(np.float32)
    network = Partial(model.apply, random_variables(model, x))
    eps = np.float32(0.003)
    points = x + eps * rng.choice([-1, 0.5, 1], size=(64, *x.shape)).astype(np.float32)
    points = np.clip(points, np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1))
    every = np.concatenate([x[None], points]).reshape(-1, *x.shape[1:])
    logits = np.asarray(jax.jit(network)(every)).reshape(65, 4, 3)
    y = logits[0].argmax(axis=1)
    own = np.take_along_axis(logits, y[None, :, None], 2)
    worst = np.where(np.arange(3) == y[:, None], np.inf, own - logits).min((0, 2))
    found = certify(network, x, y, ball=Linf(eps), method=method)
    assert (found.margin <= worst).all()
    assert np.isfinite(found.margin).all()


def test_what_is_proven_is_not_broken_and_new_weights_compile_nothing():
    traces, names = [], ("ibp", "crown_ibp")

    def network(layers, x):
        traces.append(1)
        return mlp(layers, x.reshape(len(x), -1))

    for seed in range(2):
        layers, x, y = random_problem(seed, 40)
        layers, x = jax.tree.map(jnp.float32, layers), jnp.float32(x)
        model = Partial(network, layers)
        ball = Linf(0.15 + seed / 100)
        found = certify(model, x, y, ball=ball, method=names)
        assert 0 < found.proven.sum() < 40
        assert set(found.method) == set(names)
        if seed == 0:
            broken = attacks.apgd(
                model, x, y, key=jax.random.key(0), ball=ball, steps=20
            )
            assert broken.success.any() and not (broken.success & found.proven).any()
            calls = len(traces)
    assert len(traces) == calls


def test_rounding_is_in_the_margin():
    """Differences that rounding decides are not proven, nor far from the truth."""
    x = jnp.full((1, 64), 0.1)
    weights = jnp.stack([jnp.full(64, 100.0), jnp.full(64, 100.0)], axis=1)

    def network(x):
        return x @ weights + jnp.array([[2e-5, 0.0]])

    found = certify(network, x, np.array([0]), ball=Linf(0.0), method="ibp")
    assert not found.proven[0] and found.margin[0] > -1e-2


@pytest.mark.parametrize(
    "unknown",
    [
        lambda a, b: jnp.tanh(jnp.exp(a) - jnp.exp(b)),  # ∞ − ∞
        lambda a, b: jnp.clip((a - 80) / (b - 80), 0, 1),  # 0 / 0
        lambda a, b: jnp.clip((a - 80) * jnp.inf, 0, 1),  # 0 · ∞
        lambda a, b: jnp.exp(a),  # an infinite logit is no answer, however large
    ],
)
def test_nothing_is_proven_where_a_value_may_be_nan_or_infinite(unknown):
    def network(x):
        return jnp.stack([unknown(x[:, 0], x[:, 1]), x[:, 0] / 1000 - 2], axis=1)

    broken = network(jnp.array([[95.0, 95.0], [80.0, 80.0]]))
    assert not jnp.isfinite(broken).all()
    x, y = jnp.full((1, 2), 80.0), np.array([0])
    found = certify(
        network, x, y, ball=Linf(20.0), bounds=(0, 255), method=("crown_ibp",)
    )
    assert found.margin[0] == -np.inf


def test_infinities_of_masks_do_no_harm():
    def network(x):
        masked = jnp.where(jnp.arange(2)[None] == 0, x, -jnp.inf)
        return jnp.stack([jnp.exp(masked).sum(axis=1), 0 * x[:, 0]], axis=1)

    x, y = jnp.zeros((1, 2)), np.array([0])
    found = certify(network, x, y, ball=Linf(0.1), method="ibp")
    assert found.margin[0] == pytest.approx(1, abs=1e-5)


def test_the_words_of_a_certificate():
    found = Certificate(np.array([1.0, -1.0]), np.array([True, False]), "ibp")
    assert repr(found) == "Certificate(50.00 % of 2 proven, ibp)"


def test_a_model_that_ignores_the_image():
    def constant(x):
        return jnp.broadcast_to(jnp.array([[1.0, 3.0]]), (len(x), 2))

    found = certify(constant, jnp.ones((1, 2)), np.array([1]), ball=L2(9), method="ibp")
    assert found.margin[0] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "lirpa"}, "method must be 'auto'.*'lirpa'"),
        ({"method": ()}, "method"),
        ({"ball": Linf(-1.0)}, "ball.eps"),
        ({"ball": Linf}, "ball must be Linf"),
        ({"ball": Linf(np.ones(3))}, "ball.eps"),
        ({"bounds": (1, 0)}, "bounds"),
        ({"steps": -1}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"y": np.array([5, 0])}, "y must"),
        ({"x": jnp.ones((2, 2), int)}, "x must"),
        ({"logits_fn": lambda x: jnp.sin(x)}, "'sin'"),
    ],
)
def test_arguments(changes, words):
    given = {
        "logits_fn": lambda x: 2 * x,
        "x": jnp.ones((2, 2)),
        "y": np.array([0, 1]),
        "ball": Linf(0.1),
        "method": "ibp",
    }
    with pytest.raises(ValueError, match=words):
        certify(**{**given, **changes})


def test_margins_equal_those_of_auto_lirpa():
    lirpa = pytest.importorskip("auto_LiRPA")
    torch = pytest.importorskip("torch")
    layers, x, y = random_problem(7)
    modules = []
    for w, b in layers:
        module = torch.nn.Linear(*w.shape).double()
        module.weight.data = torch.tensor(w.T)
        module.bias.data = torch.tensor(b)
        modules += [module, torch.nn.ReLU()]
    images = torch.tensor(x)
    bounded = lirpa.BoundedModule(torch.nn.Sequential(*modules[:-1]), images)
    low, high = torch.clamp(images - 0.1, 0, 1), torch.clamp(images + 0.1, 0, 1)
    ball = lirpa.PerturbationLpNorm(norm=np.inf, eps=0.1, x_L=low, x_U=high)
    ones = torch.eye(3).double()
    rows = [[ones[c] - ones[k] for k in range(3) if k != c] for c in y.tolist()]
    spec = torch.stack([torch.stack(row) for row in rows])
    theirs = -np.inf
    for name in ("ibp", "crown_ibp", "crown"):
        argument = lirpa.BoundedTensor(images, ball)
        found, _ = bounded.compute_bounds(
            x=(argument,), C=spec, method=name.upper().replace("_", "-")
        )
        theirs = np.maximum(theirs, found.detach().numpy())
        ours = margins(layers, x, y, 0.1, name)
        assert (ours >= theirs.min(axis=1) - 1e-5).all()
        if name != "crown":  # there ours are cut with intervals inside, too
            np.testing.assert_allclose(ours, theirs.min(axis=1), atol=1e-5)
