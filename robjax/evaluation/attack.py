"""What an evaluation knows of an attack: how it is called and what it returns.

    attack(logits_fn, x, y, *, key, ball, bounds, …) -> result

* `logits_fn`: images [b, *S] -> logits [b, K]; x: [b, *S] images; y: [b] labels.
* `key`: an array of b keys, one for each sample. The sample with index i in the data
  set gets ``fold_in(key, i)`` of the evaluation's key. An attack should draw for each
  sample from the key of that sample alone, by ``jax.vmap`` over keys. Then it gives the
  same images in any batch, in any order and on any number of devices.
* `ball`: only if one was bound to the attack; its ε is that of the batch, [] or [b].
* `bounds`: (low, high), two numbers or, where each pixel has a box, two arrays
  [b, *S].
* result: the images x_adv [b, *S] alone, or an object with `x_adv` and any of the
  other fields of `AttackResult`. The verdict fills in what is missing.

The attack is called inside `jax.jit`. Arrays bound to it are traced, other options are
static. Where users call an attack themselves, `key` may also be one key: attacks call
`robjax.samples.sample_keys`, which takes both.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from robjax.balls import Ball
from robjax.boxes import has_arrays
from robjax.checks import Bounds
from robjax.traced import TracedCallable, traced

Attack = Callable[..., Any]
"""(logits_fn, x, y, *, key, ball, bounds, …) -> x_adv, or a result that has it."""

_Attack = TypeVar("_Attack", bound=Attack)


def gradient_free(attack: _Attack) -> _Attack:
    """Decorates an attack that uses no gradients.

    An evaluation warns that gradients may be masked, where such an attack fools the
    model and attacks with gradients do not.

    >>> @gradient_free
    ... def noise(logits_fn, x, y, *, key, ball, bounds):
    ...     return x
    >>> uses_gradients(noise)
    False

    Raises:
      ValueError: `attack` is no function.
    """
    if not callable(attack) or not hasattr(attack, "__dict__"):
        raise ValueError(f"attack must be a function, got {attack!r}")
    vars(attack)["gradient_free"] = True
    return attack


def uses_gradients(attack: Attack) -> bool:
    """Tells whether an attack uses gradients: all do that are not `gradient_free`.

    >>> uses_gradients(lambda logits_fn, x, y, *, key, bounds: x)
    True
    """
    return not getattr(functools.partial(attack).func, "gradient_free", False)


class BoundAttack:
    """An attack cut for compilation: into its options, traced or static, and its ball.

    >>> from robjax.balls import Linf
    >>> def brighten(logits_fn, x, y, *, key, ball, bounds):
    ...     return ball.project(x + 1, x, bounds)
    >>> attack = functools.partial(brighten, ball=Linf(np.array([0.25, 0.5])))
    >>> bound = BoundAttack(attack, (0.0, 1.0))
    >>> bound.ball_of(np.array([1]), np.float32).eps.tolist()
    [0.5]

    Args:
      attack: with its options bound.
      bounds: lowest and highest pixel value. Arrays are not bound: `call` is given
        those of its batch.

    Attributes:
      call: (logits_fn, x, y, *, key[, ball, bounds]) -> result; see `robjax.traced`.
      ball: the threat model of all N samples; None if none was bound.
    """

    def __init__(self, attack: Attack, bounds: Bounds):
        bound = functools.partial(attack)
        options = dict(bound.keywords)
        self.ball: Ball | None = options.pop("ball", None)
        fixed = {} if has_arrays(bounds) else {"bounds": bounds}
        call = functools.partial(bound.func, *bound.args, **options, **fixed)
        self.call: TracedCallable = traced(call, name="attack")

    def ball_of(self, index: np.ndarray, dtype: DTypeLike) -> Ball | None:
        """Returns the ball of the samples in `index`, its ε an array of this dtype."""

        def radius(eps: ArrayLike) -> jax.Array:
            radii = np.asarray(eps)
            return jnp.asarray(radii[index] if radii.ndim else radii, dtype)

        return jax.tree.map(radius, self.ball)
