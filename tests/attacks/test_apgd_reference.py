"""APGD against the code of its authors, step by step, on a small network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import losses
from robjax.attacks.apgd import apgd, apgd_targeted
from robjax.balls import L1, L2, Linf
from tests.attacks.stepwise import apgd_path, defined_until
from tests.oracles import autoattack as reference

KEY = jax.random.key(0)
BALLS = {"Linf": Linf, "L2": L2, "L1": L1}


def network(x, first, second, tanh):
    return tanh(x.reshape(x.shape[0], -1) @ first) @ second


def small_problem(norm, eps, classes=6):
    """Float64 weights, images with saturated pixels, labels and starts in the ball."""
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(36, 24)) / 2, rng.normal(size=(24, classes))
    x = rng.uniform(size=(10, 6, 6, 1))
    x[:, :2] = np.round(x[:, :2])
    y = network(x, *weights, np.tanh).argmax(1)
    t = rng.uniform(-1, 1, size=(10, 36))
    order = {"Linf": np.inf, "L2": 2, "L1": 1}[norm]
    t *= 0.95 * eps / np.linalg.norm(t, ord=order, axis=1, keepdims=True)
    return weights, x, y, np.clip(x + t.reshape(x.shape), 0, 1)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", ["ce", "dlr"])
def test_a_run_is_the_reference_step_by_step(float64, norm, name):
    torch, base = float64
    eps = {"Linf": 0.03, "L2": 0.15, "L1": 0.4}[norm]
    weights, x, y, start = small_problem(norm, eps)
    tensors = [torch.tensor(w) for w in weights]
    run = reference.run_apgd(
        base.APGDAttack(None, norm=norm, eps=eps, loss=name, device="cpu"),
        lambda v: network(v, tensors[0], tensors[1], torch.tanh),
        *(x, y, start),
    )
    loss = losses.cross_entropy if name == "ce" else losses.dlr
    model = Partial(_net, *map(jnp.asarray, weights))
    x, start, labels = jnp.asarray(x), jnp.asarray(start), jnp.asarray(y)
    points, values, steps, predicted, _ = apgd_path(
        model,
        *(x, start, BALLS[norm](eps), lambda z: loss(z, labels)),
        reference_quirks=True,
    )
    known = defined_until(run, name)
    assert 0 < run.robust.sum() < len(y)  # verdicts of both kinds
    assert len(np.unique(run.step_sizes)) >= 5  # the schedule had something to do
    np.testing.assert_allclose(values[known], run.losses[known], rtol=1e-7)
    np.testing.assert_allclose(points[known], run.points[known], atol=1e-9)
    np.testing.assert_allclose(
        steps[:-1][known[:-1]], run.step_sizes[known[:-1]], rtol=1e-12
    )
    np.testing.assert_array_equal((predicted == y)[known], run.correct[known])

    if name == "dlr":
        return
    options = {"start": start, "reference_quirks": True}
    out = apgd(model, x, labels, key=KEY, ball=BALLS[norm](eps), **options)
    fooled = ~run.robust
    np.testing.assert_array_equal(out.success, fooled)
    np.testing.assert_allclose(out.x_adv[fooled], run.x_adv[fooled], atol=1e-9)
    np.testing.assert_allclose(out.x_adv[~fooled], run.x_best[~fooled], atol=1e-9)


def _net(first, second, x):
    return network(x, first, second, jnp.tanh)


def test_a_targeted_run_is_the_reference_step_by_step(float64):
    torch, base = float64
    weights, x, y, start = small_problem("Linf", 0.03)
    tensors = [torch.tensor(w) for w in weights]
    attack = base.APGDAttack_targeted(None, norm="Linf", eps=0.03, device="cpu")
    target = np.argsort(-network(x, *weights, np.tanh), axis=1)[:, 2]
    attack.y_target = torch.tensor(target)
    run = reference.run_apgd(
        attack, lambda v: network(v, tensors[0], tensors[1], torch.tanh), x, y, start
    )
    model = Partial(_net, *map(jnp.asarray, weights))
    labels, goal = jnp.asarray(y), jnp.asarray(target)
    points, values, steps, *_ = apgd_path(
        model,
        *(jnp.asarray(x), jnp.asarray(start), Linf(0.03)),
        lambda z: losses.targeted_dlr(z, labels, goal),
        reference_quirks=True,
    )
    np.testing.assert_allclose(values, run.losses, rtol=1e-7)
    np.testing.assert_allclose(points, run.points, atol=1e-9)
    np.testing.assert_allclose(steps[:-1], run.step_sizes, rtol=1e-12)
    out = apgd_targeted(
        model,
        *(jnp.asarray(x), labels),
        key=KEY,
        ball=Linf(0.03),
        targets=[2],  # the third largest logit, as above
        start=jnp.asarray(start),
        reference_quirks=True,
    )
    np.testing.assert_array_equal(out.success, ~run.robust)
    np.testing.assert_allclose(
        out.x_adv[~run.robust], run.x_adv[~run.robust], atol=1e-9
    )


def test_the_l1_run_with_large_radii_is_the_reference(float64):
    torch, base = float64
    weights, x, y, _ = small_problem("L1", 0.4)
    tensors = [torch.tensor(w) for w in weights]
    attack = base.APGDAttack(
        None, norm="L1", eps=0.4, loss="ce", device="cpu", use_largereps=True
    )
    runs, single = [], attack.attack_single_run

    def recorded(x, y, x_init):
        attack.attack_single_run = single
        run = reference.run_apgd(
            attack,
            lambda v: network(v, tensors[0], tensors[1], torch.tanh),
            *(x.numpy(), y.numpy(), x_init.numpy()),
        )
        runs.append(run)
        attack.attack_single_run = recorded
        answer = run.x_best, run.robust, run.losses, run.x_adv
        return tuple(map(torch.tensor, answer))

    attack.attack_single_run = recorded
    attack.decr_eps_pgd(
        torch.tensor(x), torch.tensor(y), [3 * 0.4, 2 * 0.4, 0.4], [30, 30, 40]
    )
    model, labels = Partial(_net, *map(jnp.asarray, weights)), jnp.asarray(y)
    points, values, steps, *_ = apgd_path(
        model,
        *(jnp.asarray(x), jnp.asarray(runs[0].points[0]), L1(0.4)),
        lambda z: losses.cross_entropy(z, labels),
        large_reps=True,
        reference_quirks=True,
    )
    np.testing.assert_allclose(
        points, np.concatenate([run.points for run in runs]), atol=1e-9
    )
    np.testing.assert_allclose(
        values, np.concatenate([run.losses for run in runs]), rtol=1e-7
    )
    inner = np.setdiff1d(np.arange(103), [30, 61, 102])
    np.testing.assert_allclose(
        steps[inner], np.concatenate([run.step_sizes for run in runs]), rtol=1e-12
    )


# --- closed forms and properties ----------------------------------------------------
