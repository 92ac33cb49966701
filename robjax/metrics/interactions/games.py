"""Games on images: the players are parts of the image, and masked parts are absent.

A *value function* takes sets of players as masks, bool [M, n], True for the players
that are present, and returns what each set is worth. `image_game` makes one of a model
and an image x: for a set S it keeps the pixels of the players in S, puts a baseline in
the place of all others, and pays a number made of the logits, v(S) = log p(y | x_S).
Any other function on masks is a game as well.

Several games can be played with the same masks, such as those of an image and its
adversarial version. Then a value function returns [G, M], and every result has a
leading axis of G games, too.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from robjax import lowering
from robjax.checks import check_count, check_images, check_labels, check_range
from robjax.evaluation import sharding
from robjax.metrics.interactions.design import check_grid
from robjax.metrics.interactions.values import log_softmax
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.traced import TracedCallable, traced

ValueFn = Callable[[np.ndarray], ArrayLike]
"""Masks, bool [M, n] -> what each set is worth, [M], or [*G, M] for several games."""

Image: TypeAlias = jax.Array | np.ndarray
"""One image [*S], or images [B, *S]."""

# One program serves any number of masks up to this many batches.
_BATCHES = 64


@dataclasses.dataclass(frozen=True, eq=False)
class ImageGame:
    """A value function of a model and images, made by `image_game`.

    It is a pytree. Model, images, labels, baselines and partition are traced: other
    weights, or another image of the same shape, do not compile anew.

    Attributes:
      model: images [B, *S] -> logits [B, K].
      images: [G, *S], one for each game.
      baselines: [G, *S], what absent players show.
      labels: [G].
      partition: the player of each pixel; its shape is a beginning of S.
      value: (logits [M, K], y) -> [M].
      players: n.
      games: the leading axes of what the game returns; their product is G.
      batch_size: masked images in one forward pass of a device.
      mesh: the devices, which share the masks.
    """

    model: TracedCallable
    images: jax.Array
    baselines: jax.Array
    labels: jax.Array
    partition: jax.Array
    value: TracedCallable
    players: int
    games: tuple[int, ...]
    batch_size: int
    mesh: Mesh

    def __repr__(self) -> str:
        """What is played; not the arrays."""
        return f"ImageGame({self.players} players, games {list(self.games)})"

    def __call__(self, masks: np.ndarray | jax.Array) -> jax.Array:
        """What each set of players is worth.

        Args:
          masks: [M, n] bool, True for the players that are present.

        Returns:
          [*games, M].

        Raises:
          ValueError: the masks have another shape or are not bool.
        """
        if not isinstance(masks, jax.core.Tracer):
            masks = np.asarray(masks)
        shape = masks.shape
        if len(shape) != 2 or shape[1] != self.players or masks.dtype != bool:
            raise ValueError(
                f"masks must be bool [M, {self.players}], got {masks.dtype} "
                f"{list(shape)}"
            )
        if not len(masks):
            raise ValueError("masks must hold at least one set of players, got none")
        room = _BATCHES * self.batch_size * self.mesh.size
        starts = range(0, len(masks), room)
        # on the host, where another number of masks compiles nothing
        xp = jnp if isinstance(masks, jax.core.Tracer) else np
        pieces = [self._play(xp, masks[start : start + room]) for start in starts]
        values = xp.concatenate(pieces).T.reshape(*self.games, len(masks))
        return jnp.asarray(values)

    def _play(self, xp: Any, masks: Any) -> Any:
        """The values [m, G] of so few masks that one call of the program will do."""
        devices = self.mesh.size
        room = _BATCHES * self.batch_size
        each = -(-len(masks) // devices)
        dealt = xp.pad(masks, ((0, each * devices - len(masks)), (0, 0)))
        dealt = dealt.reshape(devices, each, self.players)
        dealt = xp.pad(dealt, ((0, 0), (0, room - each), (0, 0)))
        dealt = dealt.reshape(devices * room, self.players)
        if xp is np:
            dealt = sharding.place(dealt, self.mesh, sharding.SPLIT)
        values = _values(self, dealt, jnp.int32(-(-each // self.batch_size)))
        values = xp.asarray(values).reshape(devices, room, -1)[:, :each]
        return values.reshape(devices * each, -1)[: len(masks)]


def _flatten(game: ImageGame) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    values = [getattr(game, field.name) for field in dataclasses.fields(game)]
    return tuple(values[:6]), tuple(values[6:])


jax.tree_util.register_pytree_node(
    ImageGame, _flatten, lambda static, leaves: ImageGame(*leaves, *static)
)


@jax.jit
def _values(game: ImageGame, masks: jax.Array, batches: jax.Array) -> jax.Array:
    """The values [C, G] of masks [C, n]; each device computes its first `batches`."""
    each_device = sharding.over_devices(
        _values_on_device,
        game.mesh,
        (sharding.SHARED, sharding.SPLIT, sharding.SHARED),
    )
    return each_device(game, masks, batches)


def _values_on_device(
    game: ImageGame, masks: jax.Array, batches: jax.Array
) -> jax.Array:
    # float32 on accelerators, too: interactions are small differences of values
    forward = lowering.exact(game.model)
    size = game.batch_size

    def play(images: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        image, baseline, label = images

        def batch(present: jax.Array) -> jax.Array:
            present = present[:, game.partition]
            channels = image.ndim - game.partition.ndim
            present = present.reshape(*present.shape, *(1,) * channels)
            logits = forward(jnp.where(present, image[None], baseline[None]))
            return game.value(logits.astype(dtype), label).astype(dtype)

        def step(i: jax.Array, values: jax.Array) -> jax.Array:
            rows = lax.dynamic_slice_in_dim(masks, i * size, size)
            return lax.dynamic_update_slice_in_dim(values, batch(rows), i * size, 0)

        return lax.fori_loop(0, batches, step, jnp.zeros(len(masks), dtype))

    some = jax.ShapeDtypeStruct((size, *game.images.shape[1:]), game.images.dtype)
    logits = jax.eval_shape(game.model, some)
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return lax.map(play, (game.images, game.baselines, game.labels)).T


def image_game(
    logits_fn: LogitsFn,
    x: Image | tuple[Image, Image],
    y: ArrayLike,
    *,
    grid: tuple[int, int] | np.ndarray | jax.Array = (4, 4),
    baseline: str | ArrayLike = "mean",
    value: Callable[[jax.Array, jax.Array], jax.Array] = log_softmax,
    batch_size: int = 128,
    devices: Sequence[sharding.Device] | None = None,
) -> ImageGame:
    """Makes a game whose players are the parts of an image.

    Source: arXiv 2103.07364, section 3, where the players are the cells of a 16×16 grid
    and the baseline is the mean of the data set.

    The masks become images inside the compiled forward pass, and only the values leave
    it. The devices share the masks. The game is made and played outside `jax.jit` and
    `jax.grad`. The rows of the model must not depend on one another, as with batch norm
    in train mode; `evaluation.doubts` tells.

    >>> x = jnp.arange(16.0).reshape(4, 4)
    >>> game = image_game(lambda x: x[:, 0, :2], x, 1, grid=(2, 2), baseline="zero")
    >>> game
    ImageGame(4 players, games [])
    >>> bool(game(np.array([[True, False, False, False]]))[0] > -jnp.log(2))
    True

    Args:
      logits_fn: images [B, *S] -> logits [B, K].
      x: one image [*S], or images [B, *S] with as many labels. A pair (x, x_adv) of
        either makes games with the same masks and the same baselines.
      y: a label, or labels [B].
      grid: rows and columns of cells; player r·columns + c is the cell (r, c). Or the
        number of each pixel's player, integers of shape S or of a beginning of S (such
        as [H, W]); the numbers 0 … n − 1 have to occur.
      baseline: what absent players show. "zero"; "mean": in each channel the mean of
        the image, of a pair that of x (without channels where the players' numbers have
        the shape of the image); or an array that broadcasts to the images, such
        as the mean of the data set in each channel [C].
      value: (logits [M, K], y) -> [M]; see `robjax.metrics.interactions.values`.
      batch_size: masked images in one forward pass of a device; bounds the memory.
      devices: None: all local ones.

    Returns:
      A value function on masks [M, n]. Its values are [M], [2, M] for a pair, [B, M]
      for B labels, [2, B, M] for a pair and B labels.

    Raises:
      ValueError: the images are malformed or the two of a pair differ in shape; the
        grid does not divide the images; the partition leaves a number out or fits no
        image; a label is not one of the classes; the baseline does not broadcast to
        the images.
    """
    labels = np.asarray(y)
    if labels.ndim > 1:
        raise ValueError(f"y must be a label or labels [B], got {list(labels.shape)}")
    batch = labels.ndim > 0
    if isinstance(x, list):
        raise ValueError(
            "x must be an array, or a pair as a tuple (x, x_adv), got a list"
        )
    versions = x if isinstance(x, tuple) else (x,)
    if len(versions) not in (1, 2):
        raise ValueError(f"x must be one array or a pair, got {len(versions)}")
    images = [
        _check_stack(image, batch, name)
        for image, name in zip(versions, ("x", "x_adv"), strict=False)
    ]
    first = images[0]
    if images[-1].shape != first.shape:
        raise ValueError(
            "x must be one array or a pair (x, x_adv) of the same shape, got "
            f"{[np.shape(image) for image in versions]}"
        )
    labels = check_labels(labels.reshape(-1), len(first))
    if not batch and first.ndim == 5 and first.shape[1] == 1:
        raise ValueError(
            "x must be one image [*S] for one label, got "
            f"{list(first.shape[1:])}: give x[0], or the label in a list"
        )
    partition = _check_partition(grid, first.shape[1:])
    baselines = _baselines(baseline, first, partition.ndim, batch)
    model = as_logits_fn(logits_fn)
    classes = count_classes(model, first[:1])
    check_labels(labels, len(first), num_classes=classes)
    mesh = sharding.make_mesh(devices)
    game = ImageGame(
        model=model,
        images=jnp.concatenate(images),
        baselines=jnp.concatenate([baselines] * len(images)),
        labels=jnp.concatenate([labels] * len(images)),
        partition=jnp.asarray(partition, jnp.int32),
        value=_check_value(value, classes),
        players=int(partition.max()) + 1,
        games=(2,) * (len(images) == 2) + (len(first),) * batch,
        batch_size=check_count("batch_size", batch_size),
        mesh=mesh,
    )
    return sharding.place(game, mesh, sharding.SHARED)


def _check_value(value: Any, classes: int) -> TracedCallable:
    """Checks that a function pays a real number for each row of logits."""
    if not callable(value):
        raise ValueError(
            "value must be a function (logits [M, K], y) -> [M], as log_softmax, got "
            f"{value!r}"
        )
    logits = jax.ShapeDtypeStruct((2, classes), jnp.float32)
    try:
        paid = jax.eval_shape(value, logits, jnp.int32(0))
    except Exception as error:
        raise ValueError(
            "value must be called as value(logits [M, K], y), got "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error
    if not isinstance(paid, jax.ShapeDtypeStruct):
        raise ValueError(f"value must return an array [M], got {type(paid).__name__}")
    if paid.shape != (2,) or jnp.issubdtype(paid.dtype, jnp.complexfloating):
        raise ValueError(
            "value must return real numbers [M], here [2], got "
            f"{paid.dtype} {list(paid.shape)}"
        )
    return traced(value, name="value")


def _check_stack(x: Image, batch: bool, name: str) -> jax.Array:
    """Images as [B, *S], also a single one."""
    if batch or not isinstance(x, jax.Array | np.ndarray):
        return check_images(x, name=name)
    return check_images(x[None], name=name)


def _check_partition(grid: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The player of each pixel, from rows and columns or as it is given."""
    if not isinstance(grid, np.ndarray | jax.Array):
        return _cells(grid, shape)
    partition = np.asarray(grid)
    if (
        not np.issubdtype(partition.dtype, np.integer)
        or partition.ndim == 0
        or partition.shape != shape[: partition.ndim]
    ):
        raise ValueError(
            f"grid as an array must hold integers, one for each pixel of images "
            f"{list(shape)}, got {partition.dtype} {list(partition.shape)}"
        )
    found = np.unique(partition)
    if not np.array_equal(found, np.arange(len(found))):
        raise ValueError(
            f"grid as an array must hold the numbers 0 … n − 1 and leave none out, got "
            f"{found.tolist()}"
        )
    return partition


def _cells(grid: Any, shape: tuple[int, ...]) -> np.ndarray:
    rows, columns = check_grid(grid)
    if len(shape) < 2 or shape[0] % rows or shape[1] % columns:
        raise ValueError(
            f"grid must divide the images, got {rows}×{columns} cells for images "
            f"{list(shape)}"
        )
    cells = np.arange(rows * columns).reshape(rows, columns)
    return cells.repeat(shape[0] // rows, 0).repeat(shape[1] // columns, 1)


def _baselines(
    baseline: Any, images: jax.Array, pixel_axes: int, batch: bool
) -> jax.Array:
    """What absent players show, for each image [B, *S]."""
    if isinstance(baseline, str):
        if baseline not in ("mean", "zero"):
            raise ValueError(
                f"baseline must be 'mean', 'zero' or an array, got {baseline!r}"
            )
        if baseline == "zero":
            return jnp.zeros_like(images)
        pixels = tuple(range(1, 1 + pixel_axes))
        return jnp.broadcast_to(images.mean(pixels, keepdims=True), images.shape)
    shape = images.shape if batch else images.shape[1:]
    found = np.asarray(baseline)
    try:
        spread = np.broadcast_to(found, shape)
    except ValueError:
        raise ValueError(
            f"baseline must broadcast to images {list(shape)}, got {list(found.shape)}"
        ) from None
    check_range("baseline", found)
    return jnp.asarray(spread, images.dtype).reshape(images.shape)
