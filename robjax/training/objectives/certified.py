"""Objectives whose networks can be certified: they train on proven logits.

With m_i the lower bound of z_y − z_i over ball ∩ [0, 1]^S (`robjax.certification`), the
worst logits are −m, with 0 for the label. s is the strength of the warm-up.

    loss = κ CE(z, y) + (1 − κ) CE(−m, y),      κ = 1 − (1 − κ_end) s,      ε s

    ibp         m from intervals; Gowal et al., arXiv 1810.12715, eq. 11 and section 5
    crown_ibp   m = β m_CROWN-IBP + (1 − β) m_IBP,   β = 1 − (1 − β_end) s; Zhang et
                al., ICLR 2020, arXiv 1906.06316, eq. 13

Give `FitConfig.warmup_epochs`: from a network that was not trained, and without a
warm-up, the bounds are so loose that the loss says nothing. The bounds are those of the
network in eval mode, with the running statistics of batch norm.
"""

import jax
import jax.numpy as jnp

from robjax import losses
from robjax.balls import Ball
from robjax.certification.certificates import lower_differences
from robjax.certification.methods import Method
from robjax.checks import check_range
from robjax.model import as_logits_fn
from robjax.training.objectives.adversarial import AUTHORS_BALL
from robjax.training.objectives.network import (
    Network,
    Outcome,
    check_call,
    correct,
    scaled,
)


def ibp(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    ball: Ball = AUTHORS_BALL,
    kappa: float = 0.5,
) -> Outcome:
    """κ CE(z, y) + (1 − κ) CE(−m, y) with m from intervals.

    Gowal et al., arXiv 1810.12715. Logs "accuracy" and "proven", the share of images
    that the bounds prove at the present ε.

    >>> from robjax.balls import Linf
    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()  # logits (0.6, 0.4)
    >>> options = {"keys": keys, "strength": 1.0, "ball": Linf(0.1), "kappa": 0.0}
    >>> loss, _, _ = ibp(network, images, labels, **options)
    >>> print(round(float(loss[0]), 3))  # log 2: the worst logits are equal
    0.693

    Args:
      network, images, labels, keys: as in every objective; nothing is drawn.
      strength: scales ε, and moves κ from 1 to `kappa`.
      ball: the threat model at full strength.
      kappa: κ_end, weight of the clean images at full strength.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_range("kappa", kappa, 0, 1)
    del keys
    return _certified(network, images, labels, strength, ball, kappa, 0.0, "ibp")


def crown_ibp(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    ball: Ball = AUTHORS_BALL,
    kappa: float = 0.5,
    beta: float = 0.0,
) -> Outcome:
    """The same with m that goes from CROWN-IBP to intervals in the warm-up.

    Zhang et al., ICLR 2020, arXiv 1906.06316. Logs as `ibp`.

    >>> from robjax.balls import Linf
    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> options = {"keys": keys, "strength": 0.5, "ball": Linf(0.1)}
    >>> loss, metrics, _ = crown_ibp(network, images, labels, **options)
    >>> print(round(float(loss[0]), 3), metrics["proven"].tolist())
    0.61 [1.0]

    Args:
      network, images, labels, keys, ball, kappa: as in `ibp`.
      strength: scales ε, and moves κ and β from 1 to `kappa` and `beta`.
      beta: β_end, weight of CROWN-IBP at full strength.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_range("kappa", kappa, 0, 1)
    check_range("beta", beta, 0, 1)
    del keys
    return _certified(network, images, labels, strength, ball, kappa, beta, "crown_ibp")


def _certified(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    strength: jax.Array | float,
    ball: Ball,
    kappa: float,
    beta: float,
    method: Method,
) -> Outcome:
    radius = scaled(ball, strength, len(images)).eps
    natural, network = network.train(images)
    model = as_logits_fn(network.inference())
    radius = jnp.broadcast_to(jnp.asarray(radius, images.dtype), len(images))

    def bound(method: Method) -> jax.Array:
        return lower_differences(
            model,
            images,
            labels,
            radius,
            kind=type(ball),
            bounds=(0.0, 1.0),
            method=method,
        )

    least = bound("ibp")
    if method == "crown_ibp":
        share = jnp.asarray(1 - (1 - beta) * strength)

        @jax.checkpoint
        def mixed() -> jax.Array:
            return share * bound("crown_ibp") + (1 - share) * least

        # After the warm-up, with β_end = 0, nothing walks back. What a branch keeps for
        # its gradient the other would have to fill with zeros; `mixed` keeps nothing.
        least = jax.lax.cond(share > 0, mixed, lambda: least)
    weight = 1 - (1 - kappa) * strength
    clean = losses.cross_entropy(natural, labels)
    worst = losses.cross_entropy(-least, labels)
    metrics = {
        "accuracy": correct(natural, labels),
        "proven": correct(-least, labels),
    }
    return weight * clean + (1 - weight) * worst, metrics, network
