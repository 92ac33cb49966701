"""Which pairs and contexts a sampled estimate of interactions is made of.

A *block* is a set F of q players, the design's pairs inside F, and contexts that all of
these pairs share. From one context S outside F come the interactions of P pairs at

    1 + q + P     forwards, v(S), v(S ∪ i) and v(S ∪ ij), instead of 4 P

**The draw.** A pair of the design is drawn, then q − 2 further players from all others,
then S from the players outside F. Among the pairs inside F all count alike.

* F is drawn with a probability in proportion to the number of its pairs, and the mean
  inside F divides by that number. So the mean of a block has as its expectation the
  mean over all pairs of the design (Midzuno's scheme: a ratio without bias).
* Given a pair in F, every set S of size m without the two is equally likely. A block of
  neighbours, say a 3×3 window, would not do: its contexts leave out the whole window,
  so they are not those of the definition.

**High orders.** Where fewer than m players are outside F, S ∪ ij is drawn as a set that
holds all of F, and v(S ∪ ij), v(S ∪ j), v(S ∪ i), v(S) leave players of F out. Both
ways are one: take a base and flip one player or two. Every order can be drawn in one of
these ways if q ≤ (n + 3) / 2.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from robjax.checks import check_count


def design_pairs(
    pairs: str | int | ArrayLike, n: int, grid: tuple[int, int] | None = None
) -> np.ndarray:
    """The pairs i < j that a mean interaction is taken over.

    >>> design_pairs("all", 3).tolist()
    [[0, 1], [0, 2], [1, 2]]
    >>> len(design_pairs("adjacent", 9))  # in a 3×3 grid
    20

    Args:
      pairs: "all"; "adjacent", the 8 neighbours on the grid, as the paper's code has
        it; a radius r, cells that are at most r rows and r columns apart; or pairs of
        players [E, 2].
      n: players.
      grid: rows and columns of the players; None: a square.

    Returns:
      [E, 2], distinct.

    Raises:
      ValueError: `pairs` is none of these, names no two players or a pair twice, or
        the grid does not hold n players.
    """
    if isinstance(pairs, str) and pairs == "all":
        return np.stack(np.triu_indices(n, 1), axis=1)
    if isinstance(pairs, str) and pairs == "adjacent":
        return _near(1, n, grid)
    if isinstance(pairs, int | np.integer):
        return _near(check_count("pairs", pairs), n, grid)
    found = np.asarray(pairs)
    if found.dtype.kind not in "iu" or found.ndim != 2 or found.shape[1] != 2:
        raise ValueError(
            "pairs must be 'all', 'adjacent', a radius or integers [E, 2], got "
            f"{pairs!r}"
        )
    found = np.sort(found, axis=1)
    if not found.size or found.min() < 0 or found.max() >= n:
        raise ValueError(f"pairs must name players from 0 to {n - 1}, got {pairs!r}")
    distinct = np.unique(found, axis=0)
    if len(distinct) < len(found) or (found[:, 0] == found[:, 1]).any():
        raise ValueError("pairs must be distinct, each of two different players")
    return distinct


def _near(radius: int, n: int, grid: tuple[int, int] | None) -> np.ndarray:
    side = math.isqrt(n)
    rows, columns = (side, side) if grid is None else grid
    if rows * columns != n:
        raise ValueError(
            f"grid must hold {n} players, rows × columns, got {(rows, columns)}"
        )
    row, column = np.divmod(np.arange(n), columns)
    away = np.maximum(
        abs(row[:, None] - row[None]), abs(column[:, None] - column[None])
    )
    return np.argwhere(np.triu(away <= radius, 1))


class Block(NamedTuple):
    """The pairs of a block, and what has to be played for each of its contexts.

    Attributes:
      pairs: [P, 2] players.
      flips: [1 + u + P, n] bool, the players of a base that change: none, each of the u
        players that occur in a pair, both of each pair.
      first: [P] row of `flips` that changes the first of a pair.
      second: [P] row of the second.
    """

    pairs: np.ndarray
    flips: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, pairs: np.ndarray, n: int) -> "Block":
        """The block of some pairs [P, 2].

        >>> Block.of(np.array([[0, 2]]), 3).flips.astype(int).tolist()
        [[0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1]]
        """
        players, where = np.unique(pairs, return_inverse=True)
        where = where.reshape(pairs.shape)
        single = np.arange(n)[None] == players[:, None]
        both = single[where[:, 0]] | single[where[:, 1]]
        flips = np.concatenate([np.zeros((1, n), bool), single, both])
        return cls(pairs, flips, first=1 + where[:, 0], second=1 + where[:, 1])

    def differences(self, values: np.ndarray) -> np.ndarray:
        """Δv(i, j, S) of each pair, [..., P], from the values [..., 1 + u + P].

        >>> Block.of(np.array([[0, 2]]), 3).differences(np.array([1.0, 3, 4, 10]))
        array([4.])
        """
        both = values[..., -len(self.pairs) :]
        return (
            values[..., :1] + both - values[..., self.first] - values[..., self.second]
        )


def draw_blocks(
    keys: jax.Array, pairs: np.ndarray, n: int, size: int
) -> tuple[np.ndarray, list[Block]]:
    """Draws the players of each block, and collects their pairs.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> players, blocks = draw_blocks(keys, design_pairs("all", 9), 9, 3)
    >>> players.shape, [len(block.pairs) for block in blocks]
    ((2, 3), [3, 3])

    Args:
      keys: [B].
      pairs: [E, 2] of the design.
      n: players.
      size: q.

    Returns:
      [B, q] players, and the blocks.
    """
    players = np.asarray(_draw_players(keys, jnp.asarray(pairs), n, size))
    belongs = np.zeros((n, n), bool)
    belongs[pairs[:, 0], pairs[:, 1]] = True
    blocks = []
    for chosen in np.sort(players, axis=1):
        inside = np.argwhere(belongs[chosen[:, None], chosen[None]])
        blocks.append(Block.of(chosen[inside], n))
    return players, blocks


@functools.partial(jax.jit, static_argnames=("n", "size"))
def _draw_players(keys: jax.Array, pairs: jax.Array, n: int, size: int) -> jax.Array:
    def draw(key: jax.Array) -> jax.Array:
        pair_key, key = jax.random.split(key)
        pair = pairs[jax.random.randint(pair_key, (), 0, len(pairs))]
        return jnp.argsort(_lottery(key, pair, n))[:size]

    return jax.vmap(draw)(keys)


def _lottery(key: jax.Array, first: jax.Array, n: int) -> jax.Array:
    """A random number for each player, 0 for those who are to come first."""
    return jax.random.bits(key, (n,)).at[first].set(0)


@functools.partial(jax.jit, static_argnames=("n", "contexts"))
def draw_bases(
    keys: jax.Array, players: ArrayLike, order: ArrayLike, *, n: int, contexts: int
) -> jax.Array:
    """Draws the sets from which the players of each block are flipped.

    One program serves every order: players have random ranks, those of the block first,
    and a base is a range of ranks.

    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> draw_bases(keys, jnp.array([[4, 7]]), 3, n=9, contexts=2).sum(-1).tolist()
    [[3, 3]]

    Args:
      keys: [B].
      players: [B, q] of each block.
      order: m, the size of S.
      n: players.
      contexts: how many for each block.

    Returns:
      [B, contexts, n] bool: S without a player of the block, or S ∪ ij with all of
      them.
    """
    size = jnp.shape(players)[1]

    def draw(key: jax.Array, block: jax.Array) -> jax.Array:
        rank = jnp.argsort(jnp.argsort(_lottery(key, block, n)))
        outside = (rank >= size) & (rank < size + order)
        return jnp.where(order <= n - size, outside, rank < order + 2)

    def draw_all(key: jax.Array, block: jax.Array) -> jax.Array:
        split = jax.random.split(jax.random.fold_in(key, order), contexts)
        return jax.vmap(draw, in_axes=(0, None))(split, block)

    return jax.vmap(draw_all)(keys, players)
