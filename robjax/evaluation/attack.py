"""What an evaluation knows of an attack: how it is called and what it gives back.

    attack(logits_fn, x, y, *, key, ball, bounds, …) -> result

* `logits_fn`: images [b, *S] -> logits [b, K]; x: [b, *S] images; y: [b] labels.
* `key`: an array of b keys, one for each sample. The sample with index i in the data
  set gets ``fold_in(key, i)`` of the evaluation's key. An attack that draws from the
  key of a sample alone, by ``jax.vmap`` over keys, gives the same images in any batch,
  in any order and on any number of devices. (Users may pass one key; attacks call
  `robjax.samples.sample_keys`, which takes both.)
* `ball`, if it was bound to the attack: with ε of this batch. `bounds`: (low, high).
* result: the images x_adv [b, *S] alone, or an object with `x_adv` and any of the
  other fields of `AttackResult`. What is missing is filled in by the verdict.

The attack is called inside `jax.jit`; arrays bound to it are traced, other options are
static.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from robjax.balls import Ball
from robjax.checks import Bounds
from robjax.traced import TracedCallable, traced

Attack = Callable[..., Any]
"""(logits_fn, x, y, *, key, ball, bounds, …) -> x_adv, or a result that has it."""

_Attack = TypeVar("_Attack", bound=Attack)


def gradient_free(attack: _Attack) -> _Attack:
    """Marks an attack that uses no gradients, as a decorator.

    Where such an attack fools a model that attacks with gradients do not, an evaluation
    warns that gradients may be masked.

    >>> @gradient_free
    ... def noise(logits_fn, x, y, *, key, ball, bounds):
    ...     return x
    >>> uses_gradients(noise)
    False
    """
    vars(attack)["gradient_free"] = True
    return attack


def uses_gradients(attack: Attack) -> bool:
    """Whether an attack, options bound or not, is not marked as `gradient_free`.

    >>> uses_gradients(lambda logits_fn, x, y, *, key, bounds: x)
    True
    """
    return not getattr(functools.partial(attack).func, "gradient_free", False)


class BoundAttack:
    """An attack cut for compilation: its options, traced or static, and its ball.

    Attributes:
      call: (logits_fn, x, y, *, key[, ball]) -> result; see `robjax.traced`.
      ball: the threat model of all N samples; None if none was bound.
    """

    def __init__(self, attack: Attack, bounds: Bounds):
        bound = functools.partial(attack)
        options = dict(bound.keywords)
        self.ball: Ball | None = options.pop("ball", None)
        call = functools.partial(bound.func, *bound.args, **options, bounds=bounds)
        self.call: TracedCallable = traced(call, name="attack")

    def ball_of(self, index: np.ndarray, dtype: jax.typing.DTypeLike) -> Ball | None:
        """The ball with ε of the samples in `index`, as an array of this dtype."""

        def radius(eps):
            eps = np.asarray(eps)
            return jnp.asarray(eps[index] if eps.ndim else eps, dtype)

        return jax.tree.map(radius, self.ball)
