"""Images that stay on the disk and are decoded when they are wanted.

    train = data.folders("photos/train").stream(size=(64, 64), workers=4)
    train.images[:8]                        # uint8 [8, 64, 64, 3], decoded here
    with train.images.batches(rows) as batches:      # decoded ahead, by four processes
        for images in batches: ...

Which images make a batch is given, so the batches are the same whatever decodes them,
and wherever one begins. grain keeps them in order and runs ahead.
"""

import contextlib
import functools
import hashlib
import pickle
import queue
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from robjax.checks import check_count, check_number
from robjax.data import decoder
from robjax.data.decoder import Form

_CHUNK = 256  # images that are decoded at a time where nothing else says how many

Item = str | bytes
"""A file's path, or an example that holds the image."""


def make_form(
    like: Sequence[int | None],
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    crop: float | None = None,
    feature: str | None = None,
) -> Form:
    """The form of decoded images, from what is wanted and what the images are like.

    >>> form = make_form((48, 40, 3), size=(32, 32))
    >>> form.height, form.channels, form.resize, form.convert
    (32, 3, True, False)

    Args:
      like: height, width and channels of the images; None where they are not known, or
        not equal.
      size: height and width to resize to; None: those of `like`.
      channels: to convert to; None: those of `like`.
      crop: see `decoder.Form`.
      feature: likewise.

    Raises:
      ValueError: an argument is out of range.
    """
    if crop is not None:
        if size is None:
            raise ValueError(f"crop must come with size, got crop={crop} alone")
        if not 0 < check_number("crop", crop) <= 1:
            raise ValueError(f"crop must be a share above 0 and at most 1, got {crop}")
    if size is not None and not (isinstance(size, tuple | list) and len(size) == 2):
        raise ValueError(f"size must be (height, width), got {size!r}")
    height, width = (check_count("size", side) for side in size or like[:2])
    deep = like[2] if channels is None else channels
    if deep not in decoder.MODES:
        raise ValueError(f"channels must be one of {[*decoder.MODES]}, got {deep}")
    return Form(
        height,
        width,
        deep,
        resize=size is not None,
        convert=channels is not None,
        crop=crop,
        feature=feature,
    )


class StoredImages:
    """N images on the disk that are read like an array uint8 [N, H, W, C].

    Made by `robjax.data.load` and `robjax.data.listing.Listing.stream`. Indexing
    decodes in this process; `numpy.asarray` decodes all.

    >>> form = make_form((32, 32, 3))
    >>> images = StoredImages(
    ...     lambda rows: [f"{row}.png" for row in rows], form, rows=np.arange(9),
    ...     source="nine", workers=0,
    ... )
    >>> images.select(np.array([8, 0]))
    StoredImages([2, 32, 32, 3], 0 workers)

    Args:
      read: rows -> what is to be decoded, called by several threads.
      form: of the decoded images.
      rows: which of the images, in which order.
      source: what tells these images from others, for resumed runs: names and sizes.
      workers: how many processes decode batches; 0: none but this one.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        read: Callable[[np.ndarray], Sequence[Item]],
        form: Form,
        *,
        rows: np.ndarray,
        source: str,
        workers: int,
    ) -> None:
        self._read = read
        self._form = form
        self._rows = rows
        self._source = source
        self.workers = check_count("workers", workers, minimum=0)

    @property
    def shape(self) -> tuple[int, ...]:
        form = self._form
        return (len(self._rows), form.height, form.width, form.channels)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        """The sizes; nothing is decoded."""
        return f"StoredImages({list(self.shape)}, {self.workers} workers)"

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The images of some rows, or of one, decoded in this process.

        Raises:
          IndexError: `rows` index more than the first axis.
        """
        if isinstance(rows, tuple):  # NumPy would take images[..., 0] for a row
            raise IndexError(
                f"images on the disk are indexed by rows alone, got {rows}: index what "
                "comes out, as in images[:8][..., 0]"
            )
        return self._decoded(rows, None)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All images in memory."""
        images = np.empty(self.shape, np.uint8)
        for rows in self._chunks():
            images[rows] = self[rows]
        return images if dtype is None else images.astype(dtype)

    def min(self, initial: int = 255) -> int:
        """The lowest pixel; decodes all images, once."""
        return min(initial, self._all_read[0])

    def max(self, initial: int = 0) -> int:
        """The highest pixel; decodes all images, once."""
        return max(initial, self._all_read[1])

    @property
    def contents(self) -> str:
        """A checksum of all pixels; decodes all images, once."""
        return self._all_read[2]

    @functools.cached_property
    def _all_read(self) -> tuple[int, int, str]:
        """The lowest and the highest pixel, and a checksum of all."""
        low, high, seen = 255, 0, hashlib.sha256()
        for rows in self._chunks():
            part = self[rows]
            low, high = min(low, int(part.min())), max(high, int(part.max()))
            seen.update(part.tobytes())
        return low, high, seen.hexdigest()

    @property
    def fingerprint(self) -> np.ndarray:
        """What stands for the images in a checksum, uint8 [32]; nothing is decoded."""
        known = f"{self._source} {self._form}".encode() + self._rows.tobytes()
        return np.frombuffer(hashlib.sha256(known).digest(), np.uint8)

    def select(self, rows: np.ndarray) -> "StoredImages":
        """The images of some rows, still on the disk."""
        return StoredImages(
            self._read,
            self._form,
            rows=self._rows[rows],
            source=self._source,
            workers=self.workers,
        )

    def batches(self, rows: Sequence[np.ndarray], *, start: int = 0) -> "Batches":
        """The batches of images with these rows, decoded by `workers` processes.

        Args:
          rows: of each batch, int [B] or of any other shape, such as
            `robjax.data.batch_indices` gives them. They may be computed when they are
            asked for, by several threads.
          start: the first batch.
        """
        return Batches(self._decoded, rows, start=start, workers=self.workers)

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, len(self), _CHUNK):
            yield slice(start, min(start + _CHUNK, len(self)))

    def _decoded(self, rows: Any, processes: "Processes | None") -> np.ndarray:
        chosen = self._rows[rows]
        images = np.empty((*np.shape(chosen), *self.shape[1:]), np.uint8)
        items = self._read(np.ravel(chosen))
        if processes is not None:
            processes.decode(items, self._form, images)
            return images
        size = self.shape[1:]
        for image, item in zip(images.reshape(-1, *size), items, strict=True):
            image[...] = np.frombuffer(
                decoder.decode(item, self._form), np.uint8
            ).reshape(size)
        return images


Images: TypeAlias = np.ndarray | StoredImages
"""Images in memory or on the disk."""


class Batches(Iterator[np.ndarray]):
    """Iterates over batches that are decoded ahead; made by `StoredImages.batches`.

    It is to be closed, or used in a ``with`` statement. Its state is a small
    dictionary, so that it may be part of a checkpoint. An image that cannot be decoded
    is a ValueError that names its file, raised when its batch is due.
    """

    def __init__(
        self,
        decode: Callable[[np.ndarray, "Processes | None"], np.ndarray],
        rows: Sequence[np.ndarray],
        *,
        start: int,
        workers: int,
    ) -> None:
        import grain  # which takes half a second

        processes = Processes(workers) if workers else None
        batches = grain.MapDataset.source(_Source(decode, rows, processes))
        ahead = grain.ReadOptions(
            num_threads=workers, prefetch_buffer_size=_AHEAD * workers
        )
        self._iterator: Any = iter(batches.to_iter_dataset(ahead))
        self._finish = weakref.finalize(self, _close, self._iterator, processes)
        if start:
            self.set_state({"next_index": start})

    def __next__(self) -> np.ndarray:
        return next(self._iterator)

    def get_state(self) -> dict[str, int]:
        """What `set_state` takes to go on from here, in this process or another."""
        return self._iterator.get_state()

    def set_state(self, state: Mapping[str, int]) -> None:
        self._iterator.set_state(state)

    def close(self) -> None:
        """Ends the processes."""
        self._finish()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_AHEAD = 2  # batches for each worker: one in the making, one waiting


class _Source(Sequence[np.ndarray]):
    """What grain iterates over: batches by their numbers."""

    def __init__(self, decode: Any, rows: Any, processes: "Processes | None") -> None:
        self._decode = decode
        self._rows = rows
        self._processes = processes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._decode(self._rows[index], self._processes)


def _close(iterator: Any, processes: "Processes | None") -> None:
    iterator.close()
    if processes is not None:
        processes.close()


class Processes:
    """Processes that decode, see `robjax.data.decoder`; a batch is the task of one."""

    def __init__(self, count: int) -> None:
        command = [sys.executable, "-P", decoder.__file__]
        pipe = subprocess.PIPE
        self._all: list[Any] = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(count)
        ]
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for process in self._all:
            self._free.put(process)

    def decode(self, items: Sequence[Item], form: Form, images: np.ndarray) -> None:
        """Decodes `items` into `images`, by the next process that is free.

        Raises:
          ValueError: an item cannot be decoded.
          RuntimeError: the process has ended.
        """
        process = self._free.get()
        try:
            # as a tuple, for the process knows no class of robjax
            process.stdin.write(pickle.dumps((list(items), tuple(form))))
            process.stdin.flush()
            header = process.stdout.read(decoder.HEADER.size)
            (size,) = decoder.HEADER.unpack(header)
            if size < 0:
                raise ValueError(process.stdout.read(-size).decode())
            left = images.data.cast("B")
            while left and (count := process.stdout.readinto(left)):
                left = left[count:]
            if left:
                raise EOFError
        except (OSError, EOFError, struct.error):
            raise RuntimeError(
                "a process that decodes images has ended, with exit code "
                f"{process.wait()}"
            ) from None
        finally:
            self._free.put(process)

    def close(self) -> None:
        """Ends the processes, whatever they are at."""
        for process in self._all:
            process.kill()
        for process in self._all:
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # of an unfinished request
                process.stdin.close()
