"""PyTorch modules inside compiled attacks, against PyTorch alone."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import attacks, evaluation, metrics
from robjax.balls import Linf
from robjax.models.bridges import from_torch

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch import nn  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.uniform(0.2, 0.8, size=(6, 8, 8, 3)).astype(np.float32)
Y = np.arange(6) % 4


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(64, 4),
    ]
    net = nn.Sequential(*layers).to(dtype)
    net[1].running_mean += 0.3
    return net.eval()


def first(x):
    """The same images with the channels first, as a tensor."""
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())


def gradient(net, x, y=Y):
    images = first(x).requires_grad_()
    loss = nn.functional.cross_entropy(net(images), torch.tensor(y), reduction="sum")
    return np.moveaxis(torch.autograd.grad(loss, images)[0].numpy(), 1, -1)


def change(net, x, dx):
    """The directional derivative of the logits, by one gradient for each class."""
    images = first(x).requires_grad_()
    sums = net(images).sum(0)
    rows = [torch.autograd.grad(s, images, retain_graph=True)[0] for s in sums]
    return np.stack([(row * first(dx)).sum((1, 2, 3)).numpy() for row in rows], 1)


def loss(f, x):
    return -jax.nn.log_softmax(f(x))[np.arange(len(Y)), Y].sum()


def test_logits_and_derivatives_are_those_of_pytorch():
    net = network()
    f = from_torch(net, X[:1])
    logits = net(first(X)).detach().numpy()
    np.testing.assert_allclose(jax.jit(f)(X), logits, atol=1e-6)
    found = jax.jit(jax.grad(functools.partial(loss, f)))(X)
    np.testing.assert_allclose(found, gradient(net, X), atol=1e-6)
    dx = RNG.normal(size=X.shape).astype(np.float32)
    found = jax.jit(functools.partial(jax.jvp, f))((X,), (dx,))[1]
    np.testing.assert_allclose(found, change(net, X, dx), atol=1e-5)
    one = jax.jit(jax.vmap(lambda x: f(x[None])[0]))(X)
    np.testing.assert_allclose(one, logits, atol=1e-6)
    planes = from_torch(net, first(X).numpy(), layout="NCHW")
    np.testing.assert_allclose(planes(first(X).numpy()), logits, atol=1e-6)


def test_an_attack_takes_the_steps_that_pytorch_takes():
    net = network()
    f = from_torch(net, X[:1])
    ball, step = Linf(0.03), 0.01
    pgd = functools.partial(attacks.pgd, steps=4, step_size=step, random_start=False)
    for _ in range(2):  # the second time with other weights
        x = X
        for _ in range(4):
            x = np.clip(x + step * np.sign(gradient(net, x)), X - 0.03, X + 0.03)
        ours = pgd(f, X, Y, key=jax.random.key(0), ball=ball).x_adv
        # pgd returns the first image that fools; the others took all steps
        fooled = np.abs(np.asarray(ours) - x).max((1, 2, 3)) > 1e-6
        predicted = net(first(ours)).argmax(1).numpy()
        assert (predicted[fooled] != Y[fooled]).all() and not fooled.all()
        with torch.no_grad():
            net[-1].weight.mul_(-1)


def test_an_evaluation_on_several_devices_and_the_kl_metrics():
    f = from_torch(network(), X[:1])
    key = jax.random.key(0)
    pgd = {"pgd": functools.partial(attacks.pgd, ball=Linf(0.03), steps=2)}
    table = evaluation.evaluate(f, (X, Y), pgd, key=key)
    assert table.accuracy.mean == np.mean(np.asarray(f(X)).argmax(1) == Y)
    parts = metrics.kl_components(f, X, X[::-1])
    log_p, log_q = (jax.nn.log_softmax(f(jnp.asarray(v))) for v in (X, X[::-1]))
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)
    np.testing.assert_allclose(parts.total, kl, rtol=1e-4, atol=1e-7)


class Attention(nn.Module):
    def forward(self, x):
        x = x.flatten(2)
        return nn.functional.scaled_dot_product_attention(x, x, x).mean(2)


def test_modules_without_weights_with_attention_and_in_float64():
    f = from_torch(Attention().eval(), X[:1])
    dx = np.ones_like(X)
    found = jax.jvp(f, (X,), (dx,))[1]
    np.testing.assert_allclose(found, change(Attention(), X, dx), atol=1e-5)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Threshold(1e9, 0.0))
    f = from_torch(constant.eval(), X[:1])
    assert not jax.jvp(f, (X,), (dx,))[1].any()
    with jax.enable_x64(True):
        x = X.astype(np.float64)
        f = from_torch(network(torch.float64), x[:1])
        assert jax.grad(lambda x: f(x).sum())(x).dtype == np.float64


class Pair(nn.Module):
    def forward(self, x):
        return x, x


MISTAKES = {
    "no module": (lambda: from_torch(lambda x: x, X), "must be a torch.nn.Module"),
    "train mode": (
        lambda: from_torch(network().train(), X),
        r"call module.eval\(\) first \(train mode at Sequential\)",
    ),
    "one layer in train mode": (
        lambda: from_torch(nn.Sequential(*network()[:-1], nn.Dropout()), X),
        "train mode at ",
    ),
    "layout": (lambda: from_torch(network(), X, layout="HWC"), "layout must be one of"),
    "another layout": (
        lambda: from_torch(network(), X, layout="NCHW"),
        r"cannot be run on example \[6, 8, 8, 3\] in the layout NCHW: .*channels",
    ),
    "integers": (lambda: from_torch(network(), X.astype(np.uint8)), "floating point"),
    "half precision": (
        lambda: from_torch(network(torch.bfloat16), X),
        r"got bfloat16: give module.float\(\)",
    ),
    "double precision": (
        lambda: from_torch(network(torch.float64), X),
        r"example must be float64 .*got float32.*module.float\(\)",
    ),
    "nowhere": (lambda: from_torch(network().to("meta"), X), "one device, got meta"),
    "a pair": (lambda: from_torch(Pair().eval(), X), "one tensor .*got tuple: wrap it"),
    "features": (
        lambda: from_torch(network()[:3].eval(), X),
        r"one tensor of logits \[6, K\].*shape \(6, 4, 8, 8\)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    make, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_module_that_is_trained_later_is_noticed():
    net = network()
    f = from_torch(net, X[:1])
    compiled = jax.jit(f)
    jax.block_until_ready(compiled(X))
    net.train()
    with pytest.raises(Exception, match=r"call module.eval\(\) first"):
        jax.block_until_ready(compiled(X))
    with pytest.raises(ValueError, match=r"call module.eval\(\) first"):
        f(X)
    with pytest.raises(ValueError, match="images must be float32"):
        from_torch(network(), X[:1])(X.astype(np.float16))


def test_robjax_says_what_to_do_with_a_module():
    assert "torch" in sys.modules
    with pytest.raises(ValueError, match=r"robjax\.models\.bridges\.from_torch"):
        attacks.fgsm(network(), X, Y, ball=Linf(0.1))
