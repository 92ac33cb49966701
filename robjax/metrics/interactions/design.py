"""Which pairs and contexts a sampled estimate of interactions is made of.

A *block* is some pairs of players and T contexts that all of its pairs share. A context
is a random order of all n players. In it, the set S of a pair (i, j) is the first m
players other than i and j. So for every pair on its own, S is uniform among the sets of
size m without i and j, and contexts are independent.

**Few forwards.** Let B_k be the first k players of a context. Every S above, and S ∪ i,
S ∪ j and S ∪ ij, differs from one of three sets in i and j only:

    both come after the first m            S = B_m          c = 0
    one is among the first m, and the      S = B_{m+1}∖i    c = 1
      other not among the first m + 1
    both are among the first m + 1         S = B_{m+2}∖ij   c = 2

A player *changes sides* if it leaves the set that it was in, or joins it. With v_ij the
worth of B_{m+c} after both i and j have changed sides, v_i and v_j after one has,

    Δv(i, j, S) = (−1)^c [v(B_{m+c}) − v_i − v_j + v_ij]

Places count from 0. A player before place m changes sides in B_{m+1} and B_{m+2} only,
one after it in B_m and B_{m+1} only, the one at place m in B_m and B_{m+2} only. So P
pairs of u players take

    3 + 2 u + P     forwards for P differences, instead of 4 P

that is 1.41 for each difference of 12 players' 66 pairs, and 1.55 for all neighbours in
a 16×16 grid. Sharing one set S that leaves all players of the block out would be a
little cheaper. But then a pair's contexts never hold the other players of the block, so
they are not those of the definition; for neighbours that changes what is measured.
"""

import functools
import math
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from numpy.typing import ArrayLike

from robjax.arrays import as_array
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
      [E, 2], distinct and sorted: i < j, by i and then by j.

    Raises:
      ValueError: `pairs` is none of these, names no two players or a pair twice, or
        the grid does not hold n players.
    """
    n = check_count("n", n, minimum=2)
    if grid is not None:
        check_grid(grid)
    if isinstance(pairs, str) and pairs == "all":
        return np.stack(np.triu_indices(n, 1), axis=1)
    if isinstance(pairs, str) and pairs == "adjacent":
        return _near(1, n, grid)
    if isinstance(pairs, int | np.integer) and not isinstance(pairs, bool):
        return _near(check_count("pairs", pairs), n, grid)
    found = as_array(pairs)
    found = np.zeros((0, 2)) if found is None else np.asarray(found)
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


def check_grid(grid: object) -> tuple[int, int]:
    """Checks rows and columns.

    >>> check_grid((4, 4))
    (4, 4)
    """
    try:
        rows, columns = (check_count("grid", side) for side in cast(Any, grid))
    except (TypeError, ValueError):
        raise ValueError(
            f"grid must be two whole numbers (rows, columns) or an array, got {grid!r}"
        ) from None
    return rows, columns


def _near(radius: int, n: int, grid: tuple[int, int] | None) -> np.ndarray:
    side = math.isqrt(n)
    rows, columns = check_grid((side, side) if grid is None else grid)
    if rows * columns != n:
        raise ValueError(
            f"grid must hold {n} players, rows × columns, got {(rows, columns)}"
        )
    row, column = np.divmod(np.arange(n), columns)
    away = np.maximum(
        abs(row[:, None] - row[None]), abs(column[:, None] - column[None])
    )
    return np.argwhere(np.triu(away <= radius, 1))


class Blocks(NamedTuple):
    """B blocks of P pairs each, which place u players each in the same way.

    Attributes:
      players: [B, u].
      first: [P] the place in `players` of the first player of each pair.
      second: [P] that of the second.
    """

    players: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, pairs: np.ndarray) -> "Blocks":
        """One block of these pairs [P, 2].

        >>> Blocks.of(np.array([[3, 8], [3, 5]]))
        Blocks(players=array([[3, 5, 8]]), first=array([0, 0]), second=array([2, 1]))
        """
        players, places = np.unique(pairs, return_inverse=True)
        first, second = places.reshape(pairs.shape).T
        return cls(players=players[None], first=first, second=second)

    @classmethod
    def draw(cls, keys: jax.Array, pairs: np.ndarray, n: int, size: int) -> "Blocks":
        """All pairs of q random players in each block, or else the whole design.

        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> Blocks.draw(keys, design_pairs("all", 9), 9, 3).pairs.shape
        (2, 3, 2)
        >>> Blocks.draw(keys, design_pairs("adjacent", 9), 9, 3).pairs.shape
        (2, 20, 2)

        Args:
          keys: [B].
          pairs: [E, 2] of the design.
          n: players.
          size: q; only where the design is all pairs.
        """
        if len(pairs) < n * (n - 1) // 2:
            block = cls.of(pairs)
            return block._replace(players=np.repeat(block.players, len(keys), axis=0))
        first, second = np.triu_indices(size, 1)
        players = draw_ranks(keys, n=n, contexts=1)[:, 0, :size]
        return cls(players=np.sort(players, axis=1), first=first, second=second)

    def some(self, span: slice) -> "Blocks":
        """Some of the blocks.

        >>> Blocks.of(np.array([[3, 8]])).some(slice(0, 1)).pairs.tolist()
        [[[3, 8]]]
        """
        return self._replace(players=self.players[span])

    @property
    def pairs(self) -> np.ndarray:
        """[B, P, 2] players."""
        places = np.stack([self.first, self.second], axis=1)
        return self.players[:, places]

    @property
    def forwards(self) -> int:
        """The sets that a block plays in one context."""
        return 3 + 2 * self.players.shape[1] + len(self.first)


class Layout(NamedTuple):
    """The sets that B blocks play in T contexts, and what becomes of them.

    Attributes:
      masks: [B, T, rows, n] bool.
      corners: [4, B, T, P] the rows with the worth of B_{m+c}, v_i, v_j and v_ij.
      sign: [B, T, P] (−1)^c.
    """

    masks: np.ndarray
    corners: np.ndarray
    sign: np.ndarray

    @classmethod
    def of(cls, blocks: Blocks, ranks: np.ndarray, order: int) -> "Layout":
        """The sets for contexts at one order.

        >>> block = Blocks.of(np.array([[0, 2]]))
        >>> layout = Layout.of(block, np.array([[[2, 0, 1]]]), 0)
        >>> layout.masks[0, 0, layout.corners[:, 0, 0, 0]].astype(int).tolist()
        [[0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1]]

        Args:
          blocks: the pairs.
          ranks: [B, T, n] the place of each player in each context, from 0.
          order: m.
        """
        n = ranks.shape[-1]
        players, first, second = blocks
        own = np.take_along_axis(ranks, players[:, None], axis=2)
        if order == n - 2 > 0:  # S ∪ ij is everybody, whatever the places
            own = np.zeros_like(own)
        early = np.minimum(own[..., first], own[..., second])
        late = np.maximum(own[..., first], own[..., second])
        c = np.where(early >= order, 0, np.where(late > order, 1, 2))
        # the two of the three sets in which a single player changes sides
        one = np.where(own >= order, 0, 1)
        other = np.where(own > order, 1, 2)
        u = players.shape[1]
        single = np.arange(n) == players[:, None, :, None]
        both = single[:, :, first] | single[:, :, second]
        nobody = np.zeros((len(players), 1, 3, n), bool)
        flips = np.concatenate([nobody, single, single, both], axis=2)
        bases = np.broadcast_to(np.arange(3), (*ranks.shape[:2], 3))
        added = np.concatenate([bases, one, other, c], axis=2)
        masks = (ranks[:, :, None] < order + added[..., None]) ^ flips
        rows_of_pairs = 3 + 2 * u + np.arange(len(first))
        corners = [
            c,
            3 + first + np.where(c == one[..., first], 0, u),
            3 + second + np.where(c == one[..., second], 0, u),
            np.broadcast_to(rows_of_pairs, c.shape),
        ]
        return cls(masks=masks, corners=np.stack(corners), sign=1 - 2 * (c % 2))

    def pruned(self) -> "Layout":
        """Without the sets that no difference takes; for one block and context."""
        needed, corners = np.unique(self.corners, return_inverse=True)
        masks = self.masks[:, :, needed]
        return Layout(masks, corners.reshape(self.corners.shape), self.sign)

    def differences(self, values: np.ndarray) -> np.ndarray:
        """Δv(i, j, S) of each pair in each context.

        >>> block = Blocks.of(np.array([[0, 2]]))
        >>> layout = Layout.of(block, np.array([[[2, 0, 1]]]), 1)
        >>> layout.differences(layout.masks.sum(-1) ** 2).tolist()
        [[[2]]]

        Args:
          values: [..., B, T, rows].

        Returns:
          [..., B, T, P].
        """
        blocks, contexts = self.sign.shape[:2]
        block = np.arange(blocks)[:, None, None]
        context = np.arange(contexts)[:, None]
        base, first, second, both = (
            values[..., block, context, row] for row in self.corners
        )
        return self.sign * (base - first - second + both)


def draw_ranks(keys: jax.Array, *, n: int, contexts: int) -> np.ndarray:
    """Draws contexts: in each of them, the place of each player.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> draw_ranks(keys, n=5, contexts=3).sum(-1).tolist()
    [[10, 10, 10], [10, 10, 10]]

    Args:
      keys: [B].
      n: players.
      contexts: T.

    Returns:
      [B, T, n], each row the numbers 0 … n − 1.
    """
    return np.asarray(_draw_ranks(keys, n, contexts))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw_ranks(keys: jax.Array, n: int, contexts: int) -> jax.Array:
    def draw(key: jax.Array) -> jax.Array:
        return jax.random.permutation(key, n)

    split = jax.vmap(lambda key: jax.random.split(key, contexts))(keys)
    return jax.vmap(jax.vmap(draw))(split)
