"""What a callable holds: new weights compile nothing, and no old weights are used."""

import functools
import sys

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, traced
from robjax.balls import Linf
from robjax.closures import Held, opened
from robjax.model import as_logits_fn, count_classes, rounded_to
from tests.callables import Nnx, Runner, X, weights


def plain(w):
    return lambda x: x @ w


def with_default(w):
    return lambda x, w=w: x @ w


def with_keyword_default(w):
    def model(x, *, w=w):
        return x @ w

    return model


def in_dict(w):
    params = {"layer": [w]}
    return lambda x: x @ params["layer"][0]


def nested(w):
    inner = plain(w)
    return lambda x: inner(x) + 0


def in_partial(w):
    inner = functools.partial(lambda w, x: x @ w, w)
    return lambda x: inner(x)


def in_numpy(w):
    return plain(np.asarray(w))


def in_float64(w):
    return plain(np.asarray(w, np.float64))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, use_bias=False)(x)


def in_linen(w):
    model = Linen()
    variables = {"params": {"Dense_0": {"kernel": w}}}
    return lambda x: model.apply(variables, x)


def in_bound_method(w):
    return Partial(Linen().apply, {"params": {"Dense_0": {"kernel": w}}})


def in_equinox(w):
    layer = eqx.nn.Linear(6, 3, use_bias=False, key=jax.random.key(0))
    return jax.vmap(eqx.tree_at(lambda layer: layer.weight, layer, w.T))


def in_nnx(w):
    module = Nnx(w)
    return lambda x: module(x)


def in_partial_of_partial(w):
    inner = functools.partial(Linen().apply, mutable=False)
    return Partial(inner, {"params": {"Dense_0": {"kernel": w}}})


def in_checkpoint(w):
    return jax.checkpoint(plain(w))


HOLDERS = [
    plain,
    with_default,
    with_keyword_default,
    in_dict,
    nested,
    in_partial,
    in_numpy,
    in_float64,
    in_linen,
    in_bound_method,
    in_equinox,
    in_nnx,
    in_partial_of_partial,
    in_checkpoint,
]


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: holder.__name__)
def test_new_weights_in_a_closure_are_used_and_compile_nothing(holder):
    run = Runner()
    for seed in range(3):
        w = weights(seed)
        np.testing.assert_allclose(run(holder(w)), X @ w, rtol=1e-6)
    assert run.traces == 1


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: holder.__name__)
def test_a_rounded_model_rounds_the_weights_in_its_closure(holder):
    w = weights(0)
    half = rounded_to(jnp.bfloat16, holder(w))
    leaves = [leaf for leaf in jax.tree.leaves(half) if leaf.shape]
    assert {leaf.dtype for leaf in leaves} == {jnp.bfloat16.dtype}
    np.testing.assert_allclose(half(X), X @ w, rtol=0.1, atol=0.1)


def test_new_closures_take_no_memory():
    """Thirty models take one program; each kept 5.6 MiB and took 2 s before."""
    y = jnp.zeros(4, int)
    before = sys.modules["robjax.attacks.pgd"].run_pgd._cache_size()
    for seed in range(30):
        attacks.pgd(
            plain(weights(seed)),
            X,
            y,
            ball=Linf(0.1),
            bounds=(0.0, 1.0),
            key=jax.random.key(0),
            steps=2,
        )
    assert sys.modules["robjax.attacks.pgd"].run_pgd._cache_size() <= before + 1


@pytest.mark.parametrize(
    ("limit", "most", "kept"), [("_MOST_PROGRAMS", 4, 4), ("_MOST_MAPPINGS", 0, 1)]
)
def test_programs_of_callables_that_cannot_be_compared_are_dropped(
    monkeypatch, limit, most, kept
):
    if limit == "_MOST_MAPPINGS" and not traced._mappings():
        pytest.skip("this system does not tell its mappings")

    class Opaque:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, x):
            return self.factor * x

    monkeypatch.setattr(traced, limit, most)
    monkeypatch.setattr(traced, "_known", set())
    monkeypatch.setattr(traced, "_left", [0])
    run_pgd = sys.modules["robjax.attacks.pgd"].run_pgd
    y = jnp.zeros(4, int)
    sizes = []
    for factor in range(1, 9):
        found = attacks.pgd(
            Opaque(float(factor)), X, y, ball=Linf(0.1), steps=1, random_start=False
        )
        assert found.x_adv.shape == X.shape
        sizes.append(run_pgd._cache_size())
    assert max(sizes[3:]) <= kept


def test_mappings_that_no_program_made_drop_no_program(monkeypatch):
    """Such as those of a GPU's driver, of which there may be any number."""
    monkeypatch.setattr(traced, "_known", set())
    monkeypatch.setattr(traced, "_left", [0])
    monkeypatch.setattr(traced, "_mappings", lambda: 2 * traced._MOST_MAPPINGS)
    run_pgd, y = sys.modules["robjax.attacks.pgd"].run_pgd, jnp.zeros(4, int)
    for factor in (1.0, 2.0, 3.0):  # three programs, of which none is dropped
        attacks.pgd(
            lambda x, factor=factor: factor * x, X, y, ball=Linf(0.1), steps=1,
            random_start=False,
        )  # fmt: skip
    assert run_pgd._cache_size() == 3


def uses_norm(w):
    return lambda x: x @ w / np.linalg.norm(w)


def uses_float(w):
    scale = w[:1, 0]
    return lambda x: float(np.asarray(scale)[0]) * (x @ w)


def uses_branch(w):
    def model(x):
        return x @ w if (np.asarray(w)[0] > 0).all() else -x @ w

    return model


def uses_list(w):
    return lambda x: x @ jnp.asarray(w.tolist())


def uses_mask(w):
    mask = w[:, 0] > -0.2
    return lambda x: x[:, mask] @ w[mask]


def uses_order(w):
    order = np.argsort(np.asarray(w[:, 0]))
    return lambda x: x[:, order] @ w


def uses_shape(w):
    shape = np.asarray([-1, 6])
    return lambda x: x.reshape(shape) @ w


def uses_number(w):
    steps = jnp.int32(2)
    return lambda x: x @ w * sum(1.0 for _ in range(int(steps)))


@pytest.mark.parametrize(
    "make",
    [
        uses_norm,
        uses_float,
        uses_branch,
        uses_list,
        uses_mask,
        uses_order,
        uses_shape,
        uses_number,
    ],
    ids=lambda make: make.__name__,
)
def test_functions_that_read_the_values_of_their_arrays_still_work(make):
    run = Runner()
    for seed in range(3):
        model = make(weights(seed))
        np.testing.assert_allclose(run(model), model(X), rtol=1e-5)
    attacked = attacks.fgsm(make(weights(0)), X, jnp.zeros(4, int), ball=Linf(0.1))
    assert attacked.x_adv.shape == X.shape


def test_what_was_put_around_a_model_before_follows_it():
    """`masking.check` wraps the model before it asks how many classes it has."""
    model = as_logits_fn(uses_norm(weights(0)))
    around = as_logits_fn(Partial(lambda inner, x: 2 * inner(x), model))
    assert count_classes(model, X) == 3
    wanted = 2 * uses_norm(weights(0))(X)
    np.testing.assert_allclose(Runner().run(around, X), wanted, rtol=1e-5)


def test_what_a_function_appends_to_and_counts_stays_the_same_object():
    calls = []
    count = 0
    w = weights(0)

    def model(x):
        nonlocal count
        count += 1
        calls.append(x.shape)
        return x @ w

    run = Runner()
    run(model)
    seen = count
    assert seen == len(calls) > 0
    run(model)  # its counters are no reason to trace it again
    assert count == len(calls) == seen


def test_recursive_functions_are_kept_whole():
    def make(w):
        def model(x, depth=2):
            return x @ w if depth == 0 else model(x, depth - 1)

        return model

    run = Runner()
    for seed in (0, 1):
        np.testing.assert_allclose(run(make(weights(seed))), X @ weights(seed))


def test_functions_that_call_each_other_are_kept_whole():
    def make(w):
        def even(x, depth):
            return x @ w if depth == 0 else odd(x, depth - 1)

        def odd(x, depth):
            return even(x, depth - 1)

        return lambda x: even(x, 2)

    run = Runner()
    for seed in (0, 1):
        np.testing.assert_allclose(run(make(weights(seed))), X @ weights(seed))


def test_equal_cells_of_different_types_are_different_models():
    def make(flag):
        w = weights(0)
        return lambda x: x @ w if flag is True else -x @ w

    run = Runner()
    np.testing.assert_array_equal(run(make(True)), -run(make(1)))
    np.testing.assert_array_equal(run(make(True)), -run(make(1.0)))


def test_other_code_on_the_same_weights_is_another_model():
    w = weights(0)
    run = Runner()
    one, other = (lambda x: x @ w), (lambda x: -x @ w)
    np.testing.assert_array_equal(run(one), -run(other))


def test_functions_without_weights_stay_the_objects_that_they_were():
    """Attacks ask whether a loss *is* the cross-entropy."""

    def loss(logits, labels):
        return logits[:, 0]

    wrapped = traced.traced(functools.partial(attacks.pgd, loss=loss), name="attack")
    assert wrapped.unwrap().keywords["loss"] is loss


def test_a_tracer_in_a_closure_is_traced_on():
    def logit_sum(w):
        wrapped = as_logits_fn(plain(w))
        assert count_classes(wrapped, X) == 3
        return Runner()(plain(w)).sum() + wrapped(X).sum()

    slope = jax.jit(jax.grad(logit_sum))(weights(0))
    np.testing.assert_allclose(slope, 2 * X.sum(0)[:, None] * jnp.ones((1, 3)))


def test_keys_in_a_closure_are_compared_by_content():
    def make(seed):
        key = jax.random.key(seed)
        return lambda x: x[:, :3] + jax.random.normal(key, (3,))[None]

    run = Runner()
    np.testing.assert_array_equal(run(make(0)), run(make(0)))
    assert run.traces == 1
    assert (run(make(0)) != run(make(1))).any()


def test_the_callable_is_put_together_again():
    for holder in HOLDERS:
        leaves, structure = jax.tree.flatten(opened(holder(weights(0))))
        values = [leaf.value if isinstance(leaf, Held) else leaf for leaf in leaves]
        rebuilt = jax.tree.unflatten(structure, values)
        np.testing.assert_allclose(rebuilt(X), X @ weights(0), rtol=1e-6)
