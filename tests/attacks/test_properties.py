"""What holds for every attack, ball, model, image and radius, drawn at random.

All examples share one shape, so that each attack compiles once for each ball.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from robjax import attacks, losses
from robjax.balls import L1, L2, Linf

BATCH, SHAPE, CLASSES = 5, (3, 3, 1), 4
BALLS = {"Linf": Linf, "L2": L2, "L1": L1}
RADII = {"Linf": 0.2, "L2": 0.5, "L1": 1.0}
bind: Any = functools.partial


def unlabelled(attack):
    return lambda logits_fn, x, y, **options: attack(logits_fn, x, **options)


ATTACKS = {
    "fgsm": attacks.fgsm,
    "mi_fgsm": bind(attacks.mi_fgsm, steps=3),
    "pgd": bind(attacks.pgd, steps=4, random_start=False),
    "pgd, random start": bind(attacks.pgd, steps=4),
    "kl_pgd": bind(unlabelled(attacks.kl_pgd), steps=4),
    "apgd": bind(attacks.apgd, steps=10),
    "apgd_targeted": bind(attacks.apgd_targeted, steps=10, targets=2),
    "fab": bind(attacks.fab, steps=5, targets=2),
    "square": bind(attacks.square, queries=12),
    "hop_skip_jump": bind(attacks.hop_skip_jump, queries=60, draws=9),
    "boundary_attack": bind(attacks.boundary_attack, queries=60),
    "deepfool": bind(attacks.deepfool, steps=5),
    "fmn": bind(attacks.fmn, steps=5, reference_quirks=True),
    "ddn": bind(attacks.ddn, steps=5, reference_quirks=True),
    "carlini_wagner": bind(
        attacks.carlini_wagner, steps=5, searches=2, reference_quirks=True
    ),
}
# what an attack is made for, or enough because it shares its loop with another
ONLY = {
    "ddn": ("L2",),
    "carlini_wagner": ("L2",),
    "boundary_attack": ("L2",),
    "hop_skip_jump": ("Linf",),
    "mi_fgsm": ("Linf", "L2"),
    "pgd": ("Linf",),
    "kl_pgd": ("Linf",),
}
CASES = [(name, norm) for name in ATTACKS for norm in ONLY.get(name, BALLS)]
# these return their last iterate
MAY_BE_WORSE = {"fgsm", "mi_fgsm"}
each_case = pytest.mark.parametrize(("name", "norm"), CASES)
seeds = st.integers(0, 2**31)
# Zero, small, beyond the box. Where ε is of the order of the rounding of a pixel, 6e-8,
# a projection that moves several pixels in L1 can end that far outside the ball.
scales = st.one_of(st.sampled_from([0.0, 0.01, 1.0, 20.0]), st.floats(0.01, 3))


class Case:
    """A model, images (some pixels at the bounds), labels (some wrong) and keys."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        size = rng.choice([0.3, 1.0, 5.0])
        self.params = tuple(
            jnp.asarray(size * rng.normal(size=shape), jnp.float32)
            for shape in ((9, 7), (7, CLASSES))
        )
        x = np.clip(rng.uniform(-0.2, 1.2, size=(BATCH, *SHAPE)), 0, 1)
        self.x = jnp.asarray(x, jnp.float32)
        y = np.argmax(mlp(self.params, self.x), axis=1)
        wrong = rng.random(BATCH) < 0.2
        self.y = jnp.asarray(np.where(wrong, (y + 1) % CLASSES, y), jnp.int32)
        self.model = Partial(mlp, self.params)
        self.keys = jax.random.split(jax.random.key(seed), BATCH)


def mlp(params, x):
    return jnp.tanh((x.reshape(x.shape[0], -1) - 0.5) @ params[0]) @ params[1]


def attacked(name, norm, case, scale):
    ball = BALLS[norm](jnp.float32(scale * RADII[norm]))
    out = ATTACKS[name](case.model, case.x, case.y, key=case.keys, ball=ball)
    return jax.device_get(out), float(ball.eps)


def length(norm, delta):
    """In float64."""
    order = {"Linf": np.inf, "L2": 2, "L1": 1}[norm]
    return np.linalg.norm(delta.reshape(len(delta), -1), ord=order, axis=1)


@pytest.mark.filterwarnings("ignore:ball.eps is")  # radii beyond the box, too
@each_case
@settings(max_examples=10)
@given(seed=seeds, scale=scales)
def test_inside_ball_and_box_and_never_worse_than_the_clean_image(
    name, norm, seed, scale
):
    case = Case(seed)
    out, eps = attacked(name, norm, case, scale)
    x, x_adv = (np.asarray(a, np.float64) for a in (case.x, out.x_adv))
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    slack = 1e-7 if norm == "Linf" else 1e-6 * eps + 1e-7
    assert (length(norm, x_adv - x) <= eps + slack).all()
    if eps == 0:
        np.testing.assert_array_equal(out.x_adv, case.x)

    margins = np.asarray(losses.margin(case.model(jnp.asarray(out.x_adv)), case.y))
    clean = np.asarray(losses.margin(case.model(case.x), case.y))
    if name == "kl_pgd":
        assert (out.loss >= 0).all()
        return
    assert (margins[out.success] >= -1e-5).all()
    assert (margins[~out.success] <= 1e-5).all()
    if name not in MAY_BE_WORSE:
        assert out.success[clean > 1e-5].all()
        if name in ("pgd", "pgd, random start", "apgd"):
            clean = np.asarray(losses.cross_entropy(case.model(case.x), case.y))
        # a fooling image may be the nearest or the first one, not the worst
        enough = out.loss >= clean - 1e-5 * (1 + abs(clean))
        assert (out.success | enough).all()


@each_case
@settings(max_examples=3)
@given(seed=seeds, scale=st.floats(0.05, 2))
def test_the_same_again_whatever_the_neighbours(name, norm, seed, scale):
    case = Case(seed)
    out, _ = attacked(name, norm, case, scale)
    again, _ = attacked(name, norm, case, scale)
    for a, b in zip(out, again, strict=True):
        np.testing.assert_array_equal(a, b)
    # rotated, and two of the neighbours are others
    strangers = Case(seed + 1)
    order = np.array([3, 4, 0, 1, 2])
    for field in ("x", "y", "keys"):
        moved = getattr(case, field)[order]
        setattr(case, field, moved.at[1].set(getattr(strangers, field)[0]))
    other, _ = attacked(name, norm, case, scale)
    kept = [0, 2, 3, 4]
    np.testing.assert_array_equal(other.success[kept], out.success[order[kept]])
    np.testing.assert_allclose(other.x_adv[kept], out.x_adv[order[kept]], atol=1e-6)


MORE = {
    "pgd steps": (
        attacks.pgd,
        "steps",
        4,
        7,
        {"step_size": 0.05, "random_start": False},
    ),
    "pgd restarts": (attacks.pgd, "restarts", 1, 3, {"steps": 4}),
    "apgd restarts": (attacks.apgd, "restarts", 1, 2, {"steps": 10}),
    "square queries": (attacks.square, "queries", 12, 20, {}),
}


@pytest.mark.parametrize("name", MORE)
@settings(max_examples=8)
@given(seed=seeds, scale=st.floats(0.05, 2))
def test_more_work_never_gives_less(name, seed, scale):
    attack, option, little, much, options = MORE[name]
    case, ball = Case(seed), Linf(jnp.float32(0.2 * scale))
    run = bind(attack, case.model, case.x, case.y, key=case.keys, ball=ball, **options)
    less, more = run(**{option: little}), run(**{option: much})
    assert (more.success >= less.success).all()
    same = more.success == less.success
    assert (more.loss >= less.loss - 1e-6 * (1 + abs(less.loss)))[same].all()


@settings(max_examples=12)
@given(seed=seeds, scale=st.floats(0.05, 1), wider=st.floats(1, 3))
def test_a_wider_ball_never_protects_a_linear_model(seed, scale, wider):
    case = Case(seed)
    w = case.params[0][:, :1]
    case.model = Partial(linear, w)
    case.y = jnp.argmax(case.model(case.x), axis=1)
    narrow, _ = attacked("fgsm", "Linf", case, scale)
    wide, _ = attacked("fgsm", "Linf", case, scale * wider)
    assert (wide.success >= narrow.success).all()
    assert (wide.loss >= narrow.loss - 1e-5).all()


def linear(w, x):
    score = (x.reshape(x.shape[0], -1) - 0.5) @ w
    return jnp.concatenate([score, -score], axis=1)
