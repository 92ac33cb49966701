"""The objective that trains for the worst group instead of the average sample."""

import jax
import jax.numpy as jnp

from robjax import losses
from robjax.checks import check_labels, check_number
from robjax.training.objectives.network import Network, Outcome, check_call, correct


def group_dro(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: jax.Array,
    strength: jax.Array | float,
    groups: jax.Array,
    rate: jax.Array | float = 0.01,
) -> Outcome:
    """Cross-entropy of the groups, weighted by how badly each of them does so far.

    L_g = mean cross-entropy of group g in the batch, 0 if it has none there;
    q_g ← q_g exp(rate · L_g) / Σ_h q_h exp(rate · L_h), held constant;
    the loss is Σ_g q_g L_g.

    Sagawa et al., "Distributionally robust neural networks for group shifts", ICLR 2020
    (arXiv 1911.08731), algorithm 1; step size .01 and absent groups as in their code. q
    is part of the state of the training. The algorithm draws groups equally often:
    train on `robjax.data.balance_groups(data)`. Else rare groups are absent from many
    batches, and their q falls behind. Logs "accuracy", and "worst_group", the largest
    q.

    The losses [B] are B/n_g · q_g · CE(x, y) with n_g samples of the group in the
    batch, so that their mean is the loss.

    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> uniform = {"groups": {"weights": jnp.array([0.5, 0.5])}}
    >>> network = network._replace(variables={**network.variables, **uniform})
    >>> options = {"keys": keys, "strength": 1.0, "groups": jnp.array([1])}
    >>> loss, _, after = group_dro(network, images, labels, rate=1.0, **options)
    >>> cross_entropy = float(losses.cross_entropy(images, labels)[0])
    >>> q = after.variables["groups"]["weights"]  # e^0 : e^CE
    >>> round(float(q[1] / q[0]), 4) == round(float(jnp.exp(cross_entropy)), 4)
    True
    >>> round(float(loss[0] / q[1]), 4) == round(cross_entropy, 4)
    True

    Args:
      network: its variables hold {"groups": {"weights": q [G]}}, as `fit` starts them.
      images, labels, keys: as in every objective.
      strength: unused.
      groups: [B] in 0..G − 1.
      rate: η, per nat; how fast q moves.
    """
    check_call(network, images, labels, keys=keys, strength=strength)
    check_number("rate", rate, minimum=0)
    del keys, strength
    q = network.variables["groups"]["weights"]
    check_labels(groups, len(images), num_classes=len(q), name="groups")
    logits, network = network.train(images)
    cross_entropy = losses.cross_entropy(logits, labels)

    members = jax.nn.one_hot(groups, len(q), dtype=cross_entropy.dtype)
    share, total = network.mean(
        (jnp.mean(members, 0), jnp.mean(members * cross_entropy[:, None], 0))
    )
    group_loss = jax.lax.stop_gradient(total / jnp.where(share > 0, share, 1))
    # q exp(rate · L), normalised, without overflow
    q = jax.nn.softmax(jnp.log(q) + rate * group_loss).astype(q.dtype)

    variables = {**network.variables, "groups": {"weights": q}}
    metrics = {
        "accuracy": correct(logits, labels),
        "worst_group": jnp.broadcast_to(jnp.max(q), labels.shape),
    }
    weight = jax.lax.stop_gradient(q[groups] / share[groups]).astype(logits.dtype)
    return weight * cross_entropy, metrics, network._replace(variables=variables)
