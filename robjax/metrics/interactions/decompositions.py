"""What a game is worth, split into single players and interactions of each order.

Ren et al., arXiv 2103.07364, section 3 and supplement. V(k), the mean worth of the sets
of k players, is exactly

    V(k) = v(∅) + (k/n) Σ_i φ^(0)(i)
         + Σ_{i≠j} Σ_{m≤k−2} (k − 1 − m) / (n (n − 1)) I_ij^(m)

where i ≠ j runs over ordered pairs. Three questions have this one answer:

    efficiency      k = n: v(N), what the whole image is worth
    dropout         k < n: what is left on average if k players are kept at random;
                    interactions of orders above k − 2 are gone
    attack utility  k = n for the game v(S | x) − v(S | x_adv): how much of what the
                    attack took away belongs to each order

The weight of the single players is k/n. The 1 − α of the paper equals it only where
(1 − α) n, of which k is the integer part, is a whole number.
"""

from typing import NamedTuple

import jax
import numpy as np

from robjax.checks import check_count
from robjax.metrics.interactions.exact import ExactInteractions, check_exact
from robjax.samples import is_concrete


class Decomposition(NamedTuple):
    """V(k) and its parts; several games at once put their axes first.

    Attributes:
      value: V(k), computed from the values alone.
      empty: v(∅).
      single: (k/n) Σ_i φ^(0)(i), what the players are worth alone.
      orders: [n − 1] what the interactions of each order add.
    """

    value: np.ndarray
    empty: np.ndarray
    single: np.ndarray
    orders: np.ndarray

    def __repr__(self) -> str:
        """Means over the games; the interactions as one number."""
        if not all(map(is_concrete, self)):
            return "Decomposition(traced)"
        value, empty, single = (np.mean(part) for part in self[:3])
        orders = np.mean(np.sum(self.orders, axis=-1))
        return (
            f"Decomposition({value:.4g} = empty {empty:.4g} + single {single:.4g} + "
            f"interactions {orders:.4g})"
        )

    @property
    def total(self) -> np.ndarray:
        """The sum of all parts, which is `value` up to rounding."""
        return self.empty + self.single + self.orders.sum(-1)


def decompose(game: ExactInteractions, *, visible: int | None = None) -> Decomposition:
    """Splits v(N), or the mean worth of sets of fewer players, by order.

    >>> from robjax.metrics.interactions import exact
    >>> both = exact(lambda masks: masks[:, 0] & masks[:, 1], 3)
    >>> decompose(both)
    Decomposition(1 = empty 0 + single 0 + interactions 1)
    >>> decompose(both, visible=2)  # one set of three has them both
    Decomposition(0.3333 = empty 0 + single 0 + interactions 0.3333)

    Args:
      game: made by `exact`.
      visible: k, 0 to n; None: n.

    Raises:
      ValueError: `game` was not made by `exact`, or `visible` is not a whole number
        from 0 to n.
    """
    check_exact(game)
    n = game.players
    k = n if visible is None else check_count("visible", visible, minimum=0)
    if k > n:
        raise ValueError(f"visible must be at most n = {n}, got {k}")
    # n (n − 1) ordered pairs of this mean cancel the denominator
    weight = np.maximum(k - 1 - np.arange(n - 1), 0)
    return Decomposition(
        value=np.asarray(game.visibility[..., k]),
        empty=np.asarray(game.values[..., 0]),
        single=np.asarray(k * game.order_shapley[..., 0, :].mean(-1)),
        orders=weight * game.mean,
    )


def attack_utility(pair: ExactInteractions) -> Decomposition:
    """Splits what an attack took away, v(N | x) − v(N | x_adv), by order.

    >>> from robjax.metrics.interactions import exact
    >>> def games(masks):  # the attack removes the joint effect
    ...     return np.stack([masks[:, 0] & masks[:, 1], 0 * masks[:, 0]])
    >>> attack_utility(exact(games, 3)).orders.tolist()
    [0.666..., 0.333...]

    Args:
      pair: made by `exact` from the games of a pair (x, x_adv), the first axis.

    Raises:
      ValueError: the first axis has no two games.
    """
    check_exact(pair, name="pair")
    games = pair.shapley.shape[:-1]
    if not games or games[0] != 2:
        raise ValueError(
            f"pair must hold two games (x, x_adv) on its first axis, got {list(games)}"
        )
    return decompose(jax.tree.map(lambda field: field[0] - field[1], pair))
