"""Several processes that do one thing together, under `jax.distributed`.

Every process runs the same program. What takes long is shared between them:

    with joined("squares") as group:
        squares = group.map(lambda n: n * n, range(10))  # the same list in all

Process p of P does the items p, p + P, p + 2P, …, and then all exchange their results.
Each process has its own devices for its items, so an item gives what it gives in one
process. A process on its own is a group of one, which exchanges nothing.

**Errors.** No process waits for one that has failed.

* Where an error leaves the block `joined` in one process, the others raise a
  RuntimeError with its message, at their next item or while they wait.
* A process that does neither within `GRACE_SECONDS`, as in a step of training that
  waits for the devices of all, prints the message and exits with code 1.
* The same holds where a process ends outside such a block, by an error or too early.
* A process that is killed says nothing. Then JAX ends the others once they have missed
  it for the `heartbeat_timeout_seconds` of `jax.distributed.initialize`, which are 100
  unless given.
* A process that has not come to the block `ENTRY_SECONDS` after another is missed, and
  that one raises a RuntimeError.

Small values go through the key-value store of `jax.distributed`, and so do errors. JAX
has no public name for it; this file is the only one that uses it. Large values go from
device to device (`jax.experimental.multihost_utils`).
"""

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

from robjax.runs.files import plain

ENTRY_SECONDS = 600
"""How much later than another a process may come to what they do together."""

GRACE_SECONDS = 10
"""How long a process has to stop by itself after another has failed."""

_POLL_SECONDS = 1
_SMALL = 2**12  # bytes that go through the key-value store, which is slow
_PIECE = 2**24  # bytes of each process that are on every device at a time
_BAD = "robjax/bad/"  # group or process -> what went wrong

Item = TypeVar("Item")
Result = TypeVar("Result")

_names = itertools.count()
_inside: list["Group"] = []
_silent = False  # whether this process exits without a word, see `leave_together`


class Group:
    """The processes that do one thing together; made by `joined`.

    >>> Group().map(str, [1, 2])
    ['1', '2']

    Attributes:
      index: the number of this process, from 0.
      count: how many processes there are.
    """

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index = index
        self.count = count
        self._name = str(next(_names)) if count > 1 else ""
        self._exchanges = 0
        self._failure: str | None = None

    def __repr__(self) -> str:
        """Which process this is."""
        return f"Group(process {self.index} of {self.count})"

    def mine(self, items: Iterable[Item]) -> list[Item]:
        """The items that this process does: every P-th, from its own number on."""
        return list(items)[self.index :: self.count]

    def turns(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """As many turns in every process; in each it does one of its items, or none.

        Raises:
          RuntimeError: another process has failed.
        """
        every = list(items)
        mine = self.mine(every)
        for turn in range(-(-len(every) // self.count)):
            self.check()
            yield mine[turn : turn + 1]

    def check(self) -> None:
        """Raises RuntimeError if another process has failed."""
        if self._failure is not None:
            raise RuntimeError(self._failure)

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        each_turn: Callable[[], None] = lambda: None,
    ) -> list[Result]:
        """Applies a function to items, each in one of the processes.

        Args:
          function: gives what can be pickled, with NumPy arrays.
          items: the same in all processes.
          each_turn: called before each turn, as often in every process.

        Returns:
          The results in the order of the items, in every process.

        Raises:
          RuntimeError: another process has failed.
        """
        every = list(items)
        done = []
        for turn in self.turns(every):
            each_turn()
            done += map(function, turn)
        results: list[Any] = [None] * len(every)
        for index, share in enumerate(self.exchange(done)):
            results[index :: self.count] = share
        return results

    def exchange(self, value: Result, *, within: float | None = None) -> list[Result]:
        """Gives every process the values of all; waits for all.

        Args:
          value: what can be pickled.
          within: seconds to wait; None: until another process has failed.

        Returns:
          The values in the order of the processes.

        Raises:
          RuntimeError: another process has failed, or is missing after `within`.
        """
        if self.count == 1:
            return [value]
        blob = pickle.dumps(value)
        whole = blob if len(blob) <= _SMALL else b""
        told = self._tell_all(pickle.dumps((len(blob), whole)), within)
        sizes, blobs = zip(*map(pickle.loads, told), strict=True)
        if max(sizes) > _SMALL:
            blobs = _gather(blob, sizes)
        return [pickle.loads(one) for one in blobs]

    def _tell_all(self, note: bytes, within: float | None) -> list[bytes]:
        """The notes of all processes, by the key-value store."""
        client = _client()
        folder = f"robjax/{self._name}"
        number = self._exchanges
        client.key_value_set_bytes(f"{folder}/{number}/{self.index}", note)
        deadline = time.monotonic() + (within or float("inf"))
        notes = []
        for process in range(self.count):
            key = f"{folder}/{number}/{process}"
            while (found := _get(client, key)) is None:
                self.check()
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"process {process} of {self.count} has not come within "
                        f"{within} s: every process must call the same functions in "
                        "the same order (robjax.runs.processes.alone is for what one "
                        "process does by itself)"
                    )
            notes.append(found)
        if number:  # all have begun this exchange, so all have read the one before
            client.key_value_delete(f"{folder}/{number - 1}/{self.index}")
        self._exchanges += 1
        return notes

    def _enter(self, what: str, about: Mapping[str, Any]) -> None:
        """Waits for all processes, and checks that they are about to do the same."""
        known = {
            name: hashlib.sha256(json.dumps(plain(value)).encode()).hexdigest()[:16]
            for name, value in about.items()
            if not isinstance(value, np.ndarray)  # computed, so rounded
        }
        first, *others = self.exchange((what, known), within=ENTRY_SECONDS)
        for process, (other, found) in enumerate(others, start=1):
            if other != first[0]:
                raise RuntimeError(
                    f"process 0 does {first[0]}, but process {process} does {other}: "
                    "every process must call the same functions in the same order"
                )
            for name in sorted(found.keys() | first[1].keys()):
                if found.get(name) != first[1].get(name):
                    raise RuntimeError(
                        f"{what} must be the same in all processes, but process "
                        f"{process} has another {name} than process 0"
                    )

    def _report(self, error: BaseException) -> None:
        """Tells the other processes of an error; the first that is told counts."""
        with contextlib.suppress(JaxRuntimeError):
            _client().key_value_set(_BAD + self._name, _words(self.index, error))

    def _watch(self, left: threading.Event) -> None:
        """Looks for errors of other processes until this one has left the group."""
        client = _client()
        while not left.wait(_POLL_SECONDS):
            try:
                bad = dict(client.key_value_dir_get(_BAD))
            except JaxRuntimeError:
                return  # process 0 is gone, and JAX is about to end this one
            ended = [name for name in bad if name.startswith(f"{_BAD}exit")]
            told = [bad[name] for name in (_BAD + self._name, *ended) if name in bad]
            if told:
                self._failure = told[0]
                if not left.wait(GRACE_SECONDS):
                    _end(told[0])
                return


@contextlib.contextmanager
def joined(
    what: str,
    about: Callable[[], Mapping[str, Any]] = dict,
    *,
    devices: Sequence[Any] | None = None,
) -> Iterator[Group]:
    """A block that all processes run together, and leave together.

    Without several processes it costs nothing.

    >>> with joined("squares") as group:
    ...     group.map(lambda n: n * n, range(4))
    [0, 1, 4, 9]

    Args:
      what: is done, in a word, for messages.
      about: returns what has to be the same in all processes; called with several only.
      devices: that are used together; None: those of all processes. Where all are of
        one process, that is a group of its own.

    Raises:
      RuntimeError: another process has failed, has not come, or does something else.
    """
    if count() == 1:
        yield Group()
        return
    if devices is not None and len({one.process_index for one in devices}) == 1:
        with alone() as group:
            yield group
        return
    _client()
    group = Group(jax.process_index(), jax.process_count())
    left = threading.Event()
    watcher = threading.Thread(target=group._watch, args=(left,), daemon=True)
    watcher.start()
    _inside.append(group)
    try:
        group._enter(what, about())
        yield group
        group.exchange(None)  # no process leaves before all are done
    except BaseException as error:
        if not isinstance(error, SystemExit):
            group._report(error)
        raise
    finally:
        _inside.pop()
        left.set()
        watcher.join()


@contextlib.contextmanager
def alone() -> Iterator[Group]:
    """A block that this process runs by itself, without the others.

    >>> with alone() as group:
    ...     group
    Group(process 0 of 1)
    """
    group = Group()
    _inside.append(group)
    try:
        yield group
    finally:
        _inside.pop()


def count() -> int:
    """How many processes work together here; 1 inside `alone`.

    >>> count()
    1
    """
    return _inside[-1].count if _inside else jax.process_count()


def leave_together() -> None:
    """Says that all processes are about to exit, so that none takes it for an error.

    >>> leave_together()
    """
    global _silent
    _silent = True


def _client() -> Any:
    client = distributed.global_state.client
    if client is None:
        raise RuntimeError(
            f"there are {jax.process_count()} processes, but they know nothing of each "
            "other: call jax.distributed.initialize() before anything else"
        )
    return client


def _get(client: Any, key: str) -> bytes | None:
    """A value, or None if it is not there within a moment."""
    try:
        return client.blocking_key_value_get_bytes(key, 1000 * _POLL_SECONDS)
    except JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return None


def _gather(blob: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The bytes of all processes, piece by piece over the devices."""
    longest = max(sizes)
    width = min(1 << (longest - 1).bit_length(), _PIECE)  # few widths, few programs
    padded = np.zeros(-(-longest // width) * width, np.uint8)
    padded[: len(blob)] = np.frombuffer(blob, np.uint8)
    pieces = [
        multihost_utils.process_allgather(padded[start : start + width])
        for start in range(0, len(padded), width)
    ]
    rows = np.concatenate(pieces, axis=1)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def _words(index: int, error: BaseException | None) -> str:
    who = f"process {index} of {distributed.global_state.num_processes}"
    if error is None:
        return f"{who} has ended, before what all processes do together was done"
    return f"{who} failed: {type(error).__name__}: {str(error)[:1000]}"


def _end(failure: str) -> None:
    """Ends this process, which waits for one that has failed."""
    print(f"robjax: {failure}; so this process ends, too", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # else the process that failed would wait for this one while it exits
    goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    goodbye.start()
    goodbye.join(GRACE_SECONDS)
    os._exit(1)


@atexit.register
def _say_goodbye() -> None:
    """Tells the others that this process exits, lest they wait for it."""
    state = distributed.global_state
    if state.client is not None and state.num_processes > 1 and not _silent:
        error = getattr(sys, "last_value", None)
        with contextlib.suppress(JaxRuntimeError):
            name = f"{_BAD}exit{state.process_id}"
            state.client.key_value_set(name, _words(state.process_id, error))
