"""Models outside JAX: one of NumPy against the same one in JAX."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import attacks
from robjax.balls import Linf
from robjax.evaluation import sharding
from robjax.models import callbacks

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 3)).astype(np.float32)
X = RNG.uniform(0.3, 0.7, size=(4, 2, 3)).astype(np.float32)
DX = RNG.normal(size=X.shape).astype(np.float32)
Y = np.array([0, 1, 2, 0])


def in_jax(x):
    return jnp.tanh(x.reshape(len(x), -1) @ W)


def log_likelihood(sign, x):
    return jax.nn.log_softmax(sign * in_jax(x))[np.arange(4), Y].sum()


@dataclasses.dataclass(eq=False)
class Host:
    """tanh(x W), with its derivatives by hand; counts its calls."""

    w: np.ndarray
    dtype: np.dtype = dataclasses.field(default_factory=lambda: np.dtype("float32"))
    calls: list = dataclasses.field(default_factory=list)
    classes: int = 3

    def __eq__(self, other):
        return self is other

    def __hash__(self):
        return id(self)

    def __call__(self, x):
        return callbacks.call(self, x)

    def logits(self, x):
        self.calls.append("logits")
        return np.tanh(x.reshape(len(x), -1) @ self.w)

    def slope(self, x):
        return 1 - np.tanh(x.reshape(len(x), -1) @ self.w) ** 2

    def push(self, x, tangent):
        self.calls.append("push")
        return self.slope(x) * (tangent.reshape(len(x), -1) @ self.w)

    def pull(self, x, cotangent):
        self.calls.append("pull")
        return ((self.slope(x) * cotangent) @ self.w.T).reshape(x.shape)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_derivatives_of_every_mode_are_those_of_jax():
    host = Host(W)
    weights = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)

    def everything(f):
        loss = lambda x: jnp.sum(weights * f(x) ** 2)  # noqa: E731
        logits, push = jax.linearize(f, X)
        _, pull = jax.vjp(f, X)
        basis = jnp.broadcast_to(jnp.eye(3)[:, None], (3, 4, 3))
        one = lambda x: f(x[None])[0]  # noqa: E731
        return (
            logits,
            jax.grad(loss)(X),
            jax.jvp(f, (X,), (DX,)),
            push(DX),
            jax.vmap(pull)(basis),
            jax.vmap(jax.jacrev(one))(X),
            jax.vmap(jax.jacfwd(one))(X),
            jax.linear_transpose(push, X)(weights),
        )

    jax.tree.map(
        close, *(jax.jit(everything, static_argnums=0)(f) for f in (host, in_jax))
    )
    close(
        jax.grad(lambda x: jnp.sum(host(x)))(X),
        jax.grad(lambda x: jnp.sum(in_jax(x)))(X),
    )


def test_a_gradient_costs_one_logits_and_one_pull():
    host = Host(W)
    jax.block_until_ready(jax.jit(jax.grad(lambda x: jnp.sum(host(x) ** 2)))(X))
    assert sorted(host.calls) == ["logits", "pull"]


def test_second_derivatives_are_refused():
    gradient = jax.grad(lambda x: jnp.sum(Host(W)(x) ** 2))
    with pytest.raises(ValueError, match="Host.*first derivatives only"):
        jax.grad(lambda x: jnp.sum(gradient(x) ** 2))(X)


def test_attacks_compile_once_and_read_the_weights_anew(monkeypatch):
    host = Host(W)
    traces = []
    bind = callbacks.call
    monkeypatch.setattr(
        callbacks, "call", lambda *args: traces.append(None) or bind(*args)
    )
    for sign in (1, -1):  # other weights in the same place
        host.w = sign * W
        before = len(traces)
        x_adv = attacks.fgsm(host, X, Y, ball=Linf(0.05)).x_adv
        loss = functools.partial(log_likelihood, sign)
        close(x_adv, X - 0.05 * np.sign(jax.grad(loss)(X)))
    assert before == len(traces) > 0


def test_devices_take_turns():
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices (jax_num_cpu_devices)")
    mesh = sharding.make_mesh(jax.devices()[:4])
    gradient = jax.grad(lambda x: jnp.sum(Host(W)(x) ** 2))
    each = jax.jit(sharding.over_devices(gradient, mesh, (sharding.SPLIT,)))
    ours = each(sharding.place(X, mesh, sharding.SPLIT))
    close(ours, jax.grad(lambda x: jnp.sum(in_jax(x) ** 2))(X))
