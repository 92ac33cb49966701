import functools
import importlib
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import losses
from robjax.attacks import AttackResult
from robjax.attacks import autoattack as on_all_devices
from robjax.attacks.apgd import apgd, apgd_targeted
from robjax.attacks.autoattack import suite
from robjax.balls import L1, Linf
from tests.oracles import autoattack as reference

autoattack = functools.partial(on_all_devices, devices=jax.devices()[:1])
module = importlib.import_module("robjax.attacks.autoattack")
RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(16, 5)), jnp.float32)
X = jnp.asarray(RNG.uniform(size=(11, 4, 4, 1)), jnp.float32)
KEY = jax.random.key(0)
BALL = Linf(0.05)


def linear(w, x):
    return x.reshape(x.shape[0], -1) @ w


MODEL = Partial(linear, W)
Y = jnp.argmax(MODEL(X), axis=1)


def small(version, ball, steps=6):
    """The attacks of a version with less to do, so that they compile fast."""
    return {
        name: functools.partial(
            attack, **({"queries": 30} if name == "square" else {"steps": steps})
        )
        for name, attack in suite(version, ball).items()
    }


def answer(x_adv, first=3):
    """An attack that returns these images, whatever they do to the model."""

    def attack(logits_fn, x, y, *, key, ball, bounds):
        new = x_adv(x, y, key)
        wrong = jnp.argmax(logits_fn(new), axis=1) != y
        count = jnp.full(len(x), first, jnp.int32)
        zero = jnp.zeros(len(x))
        return AttackResult(new, wrong, zero, count, ball.norm(new - x), count + 1)

    return attack


def bright(weights, x):
    """Class 1 where the first pixel is above ½."""
    score = (x[:, 0, 0, 0] - 0.5) * weights
    return jnp.stack([-score, score], axis=1)


BRIGHT = Partial(bright, jnp.ones(()))
# 0.05 moves the first pixel over the border in 2 of 6; the last is misclassified
PIXELS = jnp.broadcast_to(
    jnp.array([0.1, 0.47, 0.52, 0.3, 0.9, 0.1])[:, None, None, None], (6, 2, 2, 1)
)
LABELS = jnp.array([0, 0, 1, 0, 1, 1])


def push(x, y, key):
    return jnp.clip(x + jnp.where(y == 0, 0.05, -0.05)[:, None, None, None], 0, 1)


def test_each_attack_gets_only_what_is_left_and_the_record_says_who_fooled_what():
    seen = []

    def low(x, y, key):
        seen.append(x.shape[0])
        return jnp.where((y == 0)[:, None, None, None], push(x, y, key), x)

    def both(x, y, key):
        seen.append(x.shape[0])
        return push(x, y, key)

    out = autoattack(
        BRIGHT, PIXELS, LABELS, key=KEY, ball=BALL, version="custom",
        attacks={"low": answer(low), "both": answer(both), "again": answer(both, 8)},
    )  # fmt: skip
    assert out.attacks == ("clean", "low", "both", "again")
    np.testing.assert_array_equal(out.fooled_by, [-1, 1, 2, -1, -1, 0])
    np.testing.assert_array_equal(out.success, out.fooled_by >= 0)
    np.testing.assert_array_equal(out.first_success, [-1, 3, 3, -1, -1, 0])
    # one clean look; 4 + 1 for low and for both, 9 + 1 for again
    np.testing.assert_array_equal(out.queries, [21, 6, 11, 21, 21, 1])
    np.testing.assert_allclose(out.distance, [0, 0.05, 0.05, 0, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(
        out.x_adv[[0, 3, 4, 5]], PIXELS[np.array([0, 3, 4, 5])]
    )
    # margins: 2·(distance to the border) on the wrong side, or the closest call
    expected = 2 * np.array([-0.35, 0.02, 0.03, -0.15, -0.35, 0.4])
    np.testing.assert_allclose(out.loss, expected, atol=1e-6)
    accuracy = [5 / 6, 4 / 6, 3 / 6, 3 / 6]
    assert list(out.robust_accuracy.values()) == pytest.approx(accuracy)
    # the arrays would hide the numbers
    assert f"clean {100 * accuracy[0]:.2f} %" in repr(out) and len(repr(out)) < 500
    # traced once before anything runs, at the size of the whole; 5 and 4 survivors are
    # too few for a size of their own
    assert set(seen) == {6}


def test_individual_runs_every_attack_on_every_correct_sample(monkeypatch):
    low = answer(lambda x, y, key: jnp.where((y == 0)[:, None, None, None],
                                             push(x, y, key), x))  # fmt: skip
    monkeypatch.setattr(
        module,
        "suite",
        lambda version, ball, **options: {
            name: functools.partial(attack, ball=ball)
            for name, attack in (("low", low), ("both", answer(push)))
        },
    )
    out = autoattack(BRIGHT, PIXELS, LABELS, key=KEY, ball=BALL, version="individual")
    np.testing.assert_array_equal(out.fooled_by, [-1, 1, 2, -1, -1, 0])
    np.testing.assert_array_equal(out.broken[1], [0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(out.broken[2], [0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(out.queries, [11, 11, 11, 11, 11, 1])


@pytest.mark.parametrize(
    "cheat",
    [
        lambda x, y, key: jnp.clip(
            x + 0.06 * jnp.where(y == 0, 1, -1)[:, None, None, None], 0, 1
        ),
        lambda x, y, key: jnp.where(y[:, None, None, None] == 0, 1.5, -0.5) + 0 * x,
        lambda x, y, key: jnp.full_like(x, jnp.nan),
    ],
    ids=["ball", "box", "nan"],
)
def test_an_image_outside_does_not_count(cheat):
    out = autoattack(
        *(BRIGHT, PIXELS, LABELS), key=KEY, ball=BALL, version="custom",
        attacks={"cheat": answer(cheat)},
    )  # fmt: skip
    np.testing.assert_array_equal(out.fooled_by, [-1, -1, -1, -1, -1, 0])
    np.testing.assert_array_equal(out.x_adv, PIXELS)


def test_draws_and_verdicts_do_not_depend_on_the_batch():
    ball, attacks = BALL, small("standard", BALL, steps=12)
    attacks = {name: attacks[name] for name in ("apgd-ce", "square")}
    run = functools.partial(autoattack, MODEL, version="custom", attacks=attacks)
    once = run(X, Y, key=KEY, ball=ball)
    assert 0 < once.success.sum() < len(Y)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(len(Y)))
    order = np.array([7, 0, 10, 3, 4])
    radii = type(ball)(jnp.full(5, ball.eps))
    apart = run(X[order], Y[order], key=keys[order], ball=radii, batch_size=2)
    for field in ("x_adv", "loss", "distance"):
        np.testing.assert_allclose(
            getattr(once, field)[order], getattr(apart, field), atol=1e-5
        )
    for field in ("success", "fooled_by", "first_success", "queries"):
        np.testing.assert_array_equal(
            getattr(once, field)[order], getattr(apart, field)
        )


def test_everything_solved_by_the_first_attack_ends_the_run():
    out = autoattack(MODEL, X, Y, key=KEY, ball=Linf(1.0))
    assert (out.fooled_by == 1).all() and out.queries.max() < 20
    assert out.attacks == ("clean", "apgd-ce", "apgd-t", "fab-t", "square")
    np.testing.assert_array_equal(np.argmax(MODEL(out.x_adv), 1) != Y, True)


def test_the_versions_are_those_of_the_paper():
    def described(version, ball):
        named = suite(version, ball)
        assert all(attack.keywords["ball"] is ball for attack in named.values())
        assert not any(a.keywords["reference_quirks"] for a in named.values())
        common = ("ball", "reference_quirks")
        return {
            name: (
                attack.func,
                {k: v for k, v in attack.keywords.items() if k not in common},
            )
            for name, attack in named.items()
        }

    standard = described("standard", BALL)
    assert list(standard) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert standard["apgd-ce"] == (apgd, {"restarts": 1, "large_reps": False})
    assert standard["apgd-t"] == (apgd_targeted, {"targets": 9, "large_reps": False})
    assert standard["fab-t"][1]["targets"] == 9
    assert standard["square"][1] == {"queries": 5000}
    sparse = described("standard", L1(1.0))
    assert sparse["apgd-ce"][1] == {"restarts": 5, "large_reps": True}
    assert sparse["apgd-t"][1] == {"targets": 5, "large_reps": True}
    plus = described("plus", BALL)
    assert list(plus) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert plus["apgd-dlr"][1] == {"loss": losses.dlr, "restarts": 5}
    assert plus["fab"][1]["restarts"] == 5 and "targets" not in plus["fab"][1]
    assert [o["eot"] for _, o in described("rand", BALL).values()] == [20, 20]


VERSIONS = ("standard", "individual", "plus", "rand")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ball", [BALL, L1(1.0)], ids=["Linf", "L1"])
def test_every_attack_has_the_quirks_of_the_reference(version, ball):
    for name, attack in suite(version, ball, reference_quirks=True).items():
        assert attack.keywords["reference_quirks"] is True, name
        # and is one that knows them
        assert "reference_quirks" in inspect.signature(attack.func).parameters


def test_the_quirks_reach_the_attacks_that_run(monkeypatch):
    asked = []

    def watched(version, ball, **options):
        asked.append(options["reference_quirks"])
        return {"apgd": functools.partial(apgd, ball=ball, steps=2, **options)}

    monkeypatch.setattr(module, "suite", watched)
    for quirks in (True, False):
        autoattack(MODEL, X, Y, key=KEY, ball=BALL, reference_quirks=quirks)
    assert asked == [True, False]


def keyed(w, x, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (5,)))(keys)
    return linear(w, x) + 0.1 * noise


@pytest.mark.parametrize("version", ["standard", "individual", "plus"])
def test_attacks_that_know_no_draws_are_not_given_any(version):
    with pytest.raises(ValueError, match=f"eot must be None for version '{version}'"):
        autoattack(Partial(keyed, W), X, Y, key=KEY, ball=BALL, version=version, eot=5)
    with pytest.raises(ValueError, match=r"attacks\['apgd'\] must have an eot bound"):
        autoattack(
            *(Partial(keyed, W), X, Y), key=KEY, ball=BALL, eot=5, version="custom",
            attacks={"apgd": apgd},
        )  # fmt: skip


def test_rand_attacks_with_as_many_draws_as_it_judges_by(monkeypatch):
    def draws_of(**options):
        return [a.keywords["eot"] for a in suite("rand", BALL, **options).values()]

    assert draws_of(eot=5) == [5, 5] and draws_of() == draws_of(eot=None) == [20, 20]

    def short(*args, **options):
        named = suite(*args, **options)
        return {k: functools.partial(a, steps=3) for k, a in named.items()}

    monkeypatch.setattr(module, "suite", short)
    out = autoattack(
        Partial(keyed, W), X, Y, key=KEY, ball=Linf(0.01), version="rand", eot=3
    )
    assert not out.success.all()
    # three draws a point: the clean image, and in each of two attacks at most that, a
    # start, three steps and the verdict
    assert (out.queries % 3 == 0).all() and out.queries.max() <= 3 * (1 + 2 * 6)


def test_two_classes():
    classes, model = 2, Partial(linear, W[:, :2])
    y = jnp.argmax(model(X), axis=1)
    eps, attacks = 0.2, small("plus", BALL, steps=10)
    out = autoattack(
        *(model, X, y), key=KEY, ball=Linf(eps), version="custom",
        attacks={name: attacks[name] for name in ("apgd-dlr", "square", "fab-t")},
    )  # fmt: skip
    gaps = np.asarray(W[:, :classes])[:, :, None] - np.asarray(W[:, :classes])[:, None]
    x = np.asarray(X).reshape(11, -1)
    worst = np.full(11, -np.inf)
    for i, label in enumerate(np.asarray(y)):
        for c in set(range(classes)) - {int(label)}:
            gap = gaps[:, c, label]
            room = np.minimum(np.where(gap > 0, 1 - x[i], x[i]), eps)
            worst[i] = max(worst[i], gap @ x[i] + np.abs(gap) @ room)
    assert np.abs(worst).min() > 1e-4 and (worst > 0).any() and (worst < 0).any()
    np.testing.assert_array_equal(out.success, worst > 0)


def test_a_randomised_model_is_judged_by_the_mean_of_its_draws():
    def model(w, x, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (5,)))(keys)
        return linear(w, x) + 0.1 * noise

    attacks = {k: functools.partial(a, steps=4, eot=5)
               for k, a in suite("rand", BALL).items()}  # fmt: skip
    run = functools.partial(
        autoattack, Partial(model, W), key=KEY, ball=Linf(0.3), version="custom", eot=5
    )
    out = run(X, Y, attacks=attacks)
    assert out.success.all() and (out.queries % 5 == 0).all()
    with pytest.raises(ValueError, match=r"logits_fn must take \(images, keys"):
        autoattack(MODEL, X, Y, key=KEY, ball=BALL, version="rand")


def test_no_retracing_when_weights_or_radius_change():
    traces = []

    def model(w, x):
        traces.append(None)
        return linear(w, x)

    attacks = {"apgd": functools.partial(apgd, steps=3)}
    run = functools.partial(autoattack, version="custom", attacks=attacks, key=KEY)
    run(Partial(model, W), X, Y, ball=Linf(1e-4))
    before = len(traces)
    run(Partial(model, 2 * W), X, Y, ball=Linf(2e-4))
    # what checks the options traces the attack, never the compiled one again
    assert len(traces) == before


def test_verdicts_are_those_of_the_reference():
    torch, _ = reference.torch_and_apgd()
    from pyautoattack import AutoAttack

    weights = np.asarray(W)

    def torch_model(v) -> Any:
        return torch.tanh(v.reshape(v.shape[0], -1) @ torch.tensor(weights)) * 3

    model = Partial(lambda w, x: jnp.tanh(linear(w, x)) * 3, W)
    y = jnp.argmax(model(X), axis=1)
    function: Any = torch_model  # any callable will do
    attack = AutoAttack(
        function, norm="Linf", eps=0.05, seed=0, version="custom",
        attacks=["apgd-ce", "apgd-t"],
    )  # fmt: skip
    attack.apgd.n_restarts, attack.apgd_targeted.n_target_classes = 1, 4
    images, labels = torch.tensor(np.asarray(X)), torch.tensor(np.asarray(y)).long()
    x_adv, _ = attack.run_standard_evaluation(images, labels)
    robust = (torch_model(x_adv).argmax(1) == labels).numpy()
    ours = autoattack(
        *(model, X, y), key=KEY, ball=BALL, version="custom",
        attacks={k: v for k, v in suite("standard", BALL).items() if "apgd" in k},
    )  # fmt: skip
    assert 0 < robust.sum() < len(robust)
    np.testing.assert_array_equal(~ours.success, robust)


BAD = {
    "version": ({"version": "quick"}, "version must be 'standard'"),
    "quirks": (
        {"version": "custom", "attacks": {"a": apgd}, "reference_quirks": True},
        "reference_quirks must be False for version 'custom'",
    ),
    "draws": ({"version": "rand", "eot": 0}, "eot must be a whole number"),
    "attacks": ({"attacks": {"a": apgd}}, "attacks must be None for version"),
    "custom": ({"version": "custom"}, "attacks must name some"),
    "not callable": ({"version": "custom", "attacks": {"a": 3}}, "must be callable"),
    "batch_size": ({"batch_size": 0}, "batch_size must be a whole number"),
    "labels": ({"y": Y + 9}, "y must hold labels"),
    "images": ({"x": X + 1}, "x must lie inside bounds"),
    "ball": ({"ball": 0.1}, "ball must be Linf"),
    "key": ({"key": 3}, "key must be one key"),
    "option": (
        {"version": "custom", "attacks": {"a": functools.partial(apgd, steps=0)}},
        "steps must be a whole number",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    changes, message = BAD[name]
    arguments = {"x": X, "y": Y, "key": KEY, "ball": BALL, **changes}
    x, y = arguments.pop("x"), arguments.pop("y")
    with pytest.raises(ValueError, match=message):
        autoattack(MODEL, x, y, **arguments)
