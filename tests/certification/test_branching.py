"""Branch and bound against exact answers, attacks and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax.balls import L2, Linf
from robjax.certification import Branched, branch_and_bound, certify
from robjax.evaluation import bracket
from tests.certification.test_certify import exact_margin, mlp, random_problem


def test_it_decides_every_image_as_the_exact_answer_does():
    """Twelve ReLUs; new weights, labels and radii compile nothing."""
    traces, calls, linear, halved, decided = [], 0, 0, 0, 0

    def network(layers, x):
        traces.append(1)
        return mlp(layers, x)

    for seed in range(4):
        layers, x, y = random_problem(seed, 6)
        y[-1] = (y[-1] + 1) % 3  # misclassified as it is
        eps = np.float32(0.25 + seed / 50)
        exact = [exact_margin(layers, *one, eps) for one in zip(x, y, strict=True)]
        exact = np.array(exact)
        model = Partial(network, jax.tree.map(jnp.float32, layers))
        images = jnp.float32(x)
        found = branch_and_bound(model, images, y, ball=Linf(eps), domains=3000)
        sure = np.abs(exact) > 1e-4
        assert (found.proven == (exact > 0))[sure].all()
        assert (found.broken == (exact < 0))[sure].all()
        assert (found.margin <= exact + 1e-4).all()
        # what breaks is in the ball and the box, and another class
        assert (np.abs(found.x_adv - images) <= eps + 1e-7).all()
        assert (found.x_adv >= 0).all() and (found.x_adv <= 1).all()
        given = np.argmax(mlp(layers, found.x_adv.astype(float)), axis=1)
        assert (given != y)[found.broken & sure].all()
        np.testing.assert_array_equal(found.x_adv[~found.broken], images[~found.broken])
        assert found.domains[-1] == 0 and found.broken[-1]
        assert bracket(found, found).lower.mean == found.proven.mean()
        only = certify(model, images, y, ball=Linf(eps), method=("alpha_crown",))
        assert found.proven[only.proven].all()
        linear += only.proven.sum()
        halved += found.proven.sum()
        decided += (found.domains > 1).sum()
        calls = len(traces) if seed == 0 else calls
    assert len(traces) == calls
    assert halved > linear and decided > 3
    none = branch_and_bound(model, images, y, ball=Linf(eps), domains=0)
    assert none.open.any() and not none.domains.any()


def test_smooth_functions_and_products_in_l2():
    """Two pixels, so that a fine grid over the ball has the exact answer."""
    rng = np.random.default_rng(0)
    x, eps = rng.uniform(size=(8, 2)).astype(np.float32), 0.5

    def score(v):
        return v[..., 0] * v[..., 1] - jnp.tanh(3 * v[..., 0] - 2 * v[..., 1])

    def network(least, v):
        return jnp.stack([score(v), jnp.broadcast_to(least, len(v))], axis=1)

    radius, angle = np.meshgrid(np.linspace(0, eps, 200), np.linspace(0, 6.3, 400))
    disc = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    points = np.clip(x[:, None] + disc.reshape(1, -1, 2), 0, 1)
    exact = np.asarray(score(points).min(axis=1))  # clipped, they are in the ball
    y, ball = np.zeros(8, int), L2(eps)
    for shift in (-0.02, 0.02):
        model = Partial(network, jnp.float32(np.median(exact) + shift))
        found = branch_and_bound(model, x, y, ball=ball, domains=500)
        margin = exact - np.median(exact) - shift
        assert (found.margin <= margin + 1e-3).all()
        assert (found.proven == (margin > 0))[np.abs(margin) > 0.01].all()
        assert (found.broken == (margin < 0))[np.abs(margin) > 0.01].all()
        length = np.linalg.norm(np.float64(found.x_adv) - x, axis=1)
        assert (length <= eps * (1 + 1e-6)).all()
        wrong = np.asarray(model(found.x_adv)).argmax(axis=1) != 0
        np.testing.assert_array_equal(found.broken, wrong)


def test_what_may_be_nan_stays_open():
    def network(x):
        unknown = jnp.tanh(jnp.exp(x[:, 0]) - jnp.exp(x[:, 1]))  # ∞ − ∞
        return jnp.stack([3 + unknown, jax.nn.relu(x[:, 0])], axis=1)

    found = branch_and_bound(
        network, jnp.zeros((1, 2)), np.array([0]), ball=Linf(99.0), bounds=(0, 100)
    )
    assert found.margin[0] == -np.inf and not found.proven[0]
    assert found.domains[0] == 0


def test_arguments_and_words():
    given = {"ball": Linf(0.1)}
    for changes, words in (
        ({"domains": -1}, "domains"),
        ({"steps": -1}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"ball": Linf}, "ball must be Linf"),
    ):
        with pytest.raises(ValueError, match=words):
            branch_and_bound(
                lambda v: v, jnp.ones((1, 2)), np.array([0]), **{**given, **changes}
            )
    found = Branched(
        np.array([1.0, -1]), np.array([True, False]), np.array([False, False]),
        np.ones((2, 1)), np.array([3, 9]),
    )  # fmt: skip
    words = "Branched(2 images: 1 proven, 0 broken, 1 open, 12 domains)"
    assert repr(found) == words and found.robust.all()
