"""SIGTERM, which schedulers send before they take a machine: a run saves and leaves.

    with preemption.watch(folder) as notice:
        for batch in batches:
            notice.leave()  # raises Preempted, which ends the process, if told to
            ...             # and keeps what the batch gave in the folder

A run that keeps nothing is not watched: SIGTERM ends it at once, as it always does.
A second SIGTERM ends any run at once.
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from robjax.runs import processes
from robjax.runs.files import PathLike

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again. Python exits with it."""


class Preempted(SystemExit):
    """The process was told to stop, and what its run has finished is on the disk.

    As any SystemExit it ends the process unless it is caught, here with the exit code
    `EXIT_CODE`.

    >>> error = Preempted("runs/a")
    >>> error.code, str(error)
    (75, 'stopped by SIGTERM; what is done is in runs/a: go on with resume=True')

    Args:
      folder: where the run keeps what it has finished.
    """

    def __init__(self, folder: PathLike) -> None:
        super().__init__(EXIT_CODE)
        self.folder = folder

    def __str__(self) -> str:
        return (
            f"stopped by SIGTERM; what is done is in {os.fspath(self.folder)}: go on "
            "with resume=True"
        )


class Notice:
    """Whether this process was told to stop; made by `watch`.

    Args:
      folder: where the run keeps what it has finished; None: it keeps nothing, and is
        never told.
    """

    _steps = itertools.count(1)  # of all runs, alike in all processes

    def __init__(self, folder: PathLike | None) -> None:
        self.folder = folder
        self.came = False
        self.before: Any = None  # what SIGTERM did, once it is a notice

    def asked(self) -> bool:
        """Whether to save and `leave` now.

        With several processes all ask at the same steps and get the same answer, though
        one of them may have been told: that of JAX, which has its own handler then.

        >>> Notice(None).asked()
        False
        """
        if self.folder is not None and _several_processes() and _has_service():
            step = next(self._steps)
            self.came |= multihost_utils.reached_preemption_sync_point(step)
        return self.came

    def leave(self) -> None:
        """Raises `Preempted` if this run is to stop; asks, as `asked` does.

        >>> Notice(None).leave()
        """
        if self.asked():
            assert self.folder is not None
            error = Preempted(self.folder)
            print(f"robjax: {error}", file=sys.stderr, flush=True)
            if _several_processes():
                processes.leave_together()
            raise error


_current: Notice | None = None


@contextlib.contextmanager
def watch(folder: PathLike | None) -> Iterator[Notice]:
    """Inside the block, SIGTERM is a notice; a run may save what it has, then leave.

    * A handler that was there is called, too, and is back after the block.
    * Inside the block of another run, it is the notice of that run.
    * Only the main thread is told. Where SIGTERM is ignored, it stays so.
    * An error of the disk or a device gets a note that says how to go on.

    >>> with watch(None) as notice:
    ...     notice.asked()
    False

    Args:
      folder: where the run keeps what it has finished; None: it keeps nothing, and
        SIGTERM ends it at once.

    Raises:
      Preempted: the process was told to stop while the block ended.
    """
    global _current
    if folder is None or threading.current_thread() is not threading.main_thread():
        yield Notice(None)
        return
    if _current is not None:
        yield _current
        return
    _current = notice = Notice(folder)
    try:
        with contextlib.nullcontext() if _several_processes() else _handler(notice):
            yield notice
        notice.leave()  # told in the last batch
    except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        error.add_note(
            f"robjax: what was done before this is in {os.fspath(folder)}: mend the "
            "cause, then go on with resume=True"
        )
        raise
    finally:
        _current = None


@contextlib.contextmanager
def _handler(notice: Notice) -> Iterator[None]:
    """SIGTERM sets `notice.came` and calls the handler before; the second one exits."""
    before = signal.getsignal(signal.SIGTERM)
    if before in (signal.SIG_IGN, None):  # None: not of Python, which cannot restore it
        yield
        return

    owner = os.getpid()
    notice.before = before

    def told(number, frame):
        if os.getpid() != owner:  # told while it was forked
            _forget()
            os.kill(os.getpid(), number)
            return
        notice.came = True
        if callable(before):
            before(number, frame)

    # Handlers wait until a compiled function returns. A thread does not.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, told)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_exit_at_second, args=(reader, wakeup))
    thread.daemon = True
    thread.start()
    try:
        yield
    finally:
        if os.getpid() == owner:  # see _forget
            signal.set_wakeup_fd(wakeup)
            signal.signal(signal.SIGTERM, before)
            os.write(writer, b"\0")
            thread.join()
        os.close(reader)
        os.close(writer)


def _exit_at_second(reader: int, wakeup: int) -> None:
    """Reads the numbers of signals until 0 comes, and hands them on to `wakeup`."""
    told = 0
    while (number := os.read(reader, 1)) != b"\0":
        if wakeup >= 0:
            os.write(wakeup, number)
        told += number[0] == signal.SIGTERM
        if told == 2:
            os._exit(128 + signal.SIGTERM)


def _forget() -> None:
    """In a forked process SIGTERM does what it always does: the run is its parent's."""
    global _current
    if _current is not None and _current.before is not None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, _current.before)
    _current = None


os.register_at_fork(after_in_child=_forget)


def _several_processes() -> bool:
    return processes.count() > 1


def _has_service() -> bool:
    """Whether JAX, which tells type checkers nothing of it, passes notices on."""
    return getattr(jax.config, "jax_enable_preemption_service", False)
