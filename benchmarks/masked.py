"""Defences that hide the gradient, and how often `robjax.masking` notices.

    python -m benchmarks.masked            # networks on digits
    python -m benchmarks.masked mnist-madry

Each defence wraps a network; KINDS says which checks ought to notice it. Prints, for
each network, what the battery raises on it as it is and behind each defence.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from benchmarks import trained
from robjax import data, masking
from robjax.balls import Linf

Images = Callable[[jax.Array], jax.Array]


class Kind(NamedTuple):
    """A defence: what it does to images and to logits, and who should notice."""

    caught_by: tuple[str, ...]
    before: Images = lambda x: x
    after: Images = lambda z: z


def _levels(count: int) -> Images:
    return lambda x: jnp.round(x * count) / count


def _host_noise(x):
    def draw(v):
        return np.random.default_rng().normal(scale=0.1, size=v.shape).astype(v.dtype)

    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return x + jax.pure_callback(draw, shape, lax.stop_gradient(x))


def _noise_from_bits(x):
    flat = lax.stop_gradient(x).astype(jnp.float32).reshape(x.shape[0], -1)
    bits = lax.bitcast_convert_type(flat, jnp.uint32)
    odd = 2 * jnp.arange(bits.shape[1], dtype=jnp.uint32)[None] + 1
    seeds = jnp.sum(bits * odd, axis=1, dtype=jnp.uint32, keepdims=True)
    # a congruential generator, far quicker to compile than jax.random
    mixed = (seeds ^ (odd * jnp.uint32(747796405))) * jnp.uint32(2891336453)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(277803737)
    uniform = (mixed >> 8).astype(x.dtype) / 2**24
    return x + 0.3 * (uniform - 0.5).reshape(x.shape)


def _constant_noise(x):
    """What a key that is written into the model gives: the same for every batch."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=x.shape)
    return x + jnp.asarray(noise, x.dtype)


def _signs(x):
    """A hash of each pixel decides whether 0.02 is added or taken away."""
    hashed = jnp.sin(lax.stop_gradient(x) * 12345.678) * 43758.5453
    return x + 0.02 * jnp.sign(hashed - jnp.round(hashed))


def _code_book(x):
    book = jnp.asarray(np.random.default_rng(0).permutation(8) / 7, x.dtype)
    order = jnp.argsort(book)
    return book[order[jnp.clip(jnp.round(x * 7), 0, 7).astype(jnp.int32)]]


def _stop_half(x):
    half = (jnp.arange(x[0].size).reshape(1, *x.shape[1:]) % 2).astype(x.dtype)
    return half * x + (1 - half) * lax.stop_gradient(x)


def _rivals_tie(z):
    """Every class but the first gets the second logit, so that DLR is always −1."""
    top = lax.top_k(z, 2)[0]
    return jnp.where(z == top[:, :1], z, top[:, 1:])


def _third_falls(z):
    """DLR divides by e^{2 z_(1)}: the more confident the model, the larger its loss."""
    first, second, _ = jnp.split(lax.top_k(z, 3)[0], 3, axis=1)
    return jnp.where(z >= second, z, second - jnp.exp(jnp.minimum(2 * first, 40)))


def _train_mode(x):
    centred = x - jnp.mean(x, 0, keepdims=True)
    variance = jnp.mean(centred**2, 0, keepdims=True)
    return 0.5 + 0.3 * centred / jnp.sqrt(variance + 0.01)


KINDS = {
    "quantised input": Kind(("zero_gradient",), before=_levels(4)),
    "binary input": Kind(
        ("zero_gradient",), before=lambda x: 0.5 + jnp.sign(x - 0.5) / 2
    ),
    "saturated logits": Kind(("saturated",), after=lambda z: 1e4 * z),
    "rounded logits": Kind(("zero_gradient",), after=jnp.round),
    "arg max": Kind(
        ("zero_gradient",), after=lambda z: jax.nn.one_hot(z.argmax(1), z.shape[1])
    ),
    "noise from the host": Kind(("random",), before=_host_noise),
    "noise from the image": Kind(("shattered",), before=_noise_from_bits),
    "noise from one key": Kind(("batch",), before=_constant_noise),
    "softmax": Kind(("probabilities",), after=jax.nn.softmax),
    "stopped gradient": Kind(("zero_gradient",), before=lax.stop_gradient),
    "half stopped": Kind(("gradient",), before=_stop_half),
    "temperature 1e-6": Kind(("saturated",), after=lambda z: 1e6 * z),
    "temperature 1e6": Kind(("flat",), after=lambda z: 1e-6 * z),
    "rivals tie": Kind(("losses",), after=_rivals_tie),
    "third falls": Kind(("losses",), after=_third_falls),
    "batch statistics": Kind(("batch",), before=_train_mode),
    "hashed signs": Kind(("shattered", "gradient"), before=_signs),
    "code book": Kind(("zero_gradient",), before=_code_book),
}
_BRANCHES = [Kind(()), *KINDS.values()]


def _apply(network, number, x):
    x = lax.switch(number, [kind.before for kind in _BRANCHES], x)
    return lax.switch(number, [kind.after for kind in _BRANCHES], network(x))


def mask(network: Any, name: str | None) -> Partial:
    """The network behind a defence; all of them share what is compiled."""
    number = 0 if name is None else 1 + list(KINDS).index(name)
    return Partial(_apply, network, jnp.asarray(number))


def main(names: list[str], size: int = 128) -> None:
    """Prints what is raised on each network and behind each defence."""
    for name in names:
        network, test, eps = trained.load(name)
        x = data.to_float(test.images[:size], test.scale)
        y = jnp.asarray(test.labels[:size])
        for kind in [None, *KINDS]:
            report = masking.check(
                mask(network, kind), x, y, key=jax.random.key(0), ball=Linf(eps)
            )
            right = report.masked
            if kind is not None:
                right = bool(set(KINDS[kind].caught_by) & set(report.raised))
            elif right:
                print(report)
            shares = {k: f"{report.flags[k].mean():.0%}" for k in report.raised}
            word = "as it is" if kind is None else "caught" if right else "MISSED"
            print(f"{name:<16} {kind or '-':<22} {word:<9} {shares}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["digits-madry", "digits-standard", "digits-trades"])
