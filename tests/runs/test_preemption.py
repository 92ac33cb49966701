"""SIGTERM is a notice inside a run, and what it was before outside."""

import os
import signal
import subprocess
import sys
import threading

import jax
import pytest

from robjax.runs import preemption


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def mine():
    """A handler of the user's own, and what it was told."""
    told = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    yield told
    signal.signal(signal.SIGTERM, before)


def test_a_notice_ends_the_run_and_the_handler_is_back(mine, capsys, tmp_path):
    handler, wakeup = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    done = []
    watched = preemption.watch(tmp_path)
    with pytest.raises(preemption.Preempted) as caught, watched as notice:
        for batch in range(9):
            notice.leave()
            done.append(batch)
            if batch == 2:
                terminate()
    assert done == [0, 1, 2] and caught.value.code == preemption.EXIT_CODE == 75
    assert f"is in {tmp_path}: go on with resume=True" in capsys.readouterr().err
    assert mine == [signal.SIGTERM]  # it was called, too
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.set_wakeup_fd(wakeup) == wakeup
    terminate()
    assert len(mine) == 2
    # the notice of one run is no notice of the next
    with preemption.watch(tmp_path) as notice:
        assert not notice.asked()


def test_a_notice_in_the_last_batch_is_not_lost(mine, tmp_path):
    with pytest.raises(preemption.Preempted), preemption.watch(tmp_path):
        terminate()
    assert len(mine) == 1


def test_a_run_inside_a_run_shares_its_notice(mine, tmp_path):
    with (
        pytest.raises(preemption.Preempted),
        preemption.watch(tmp_path) as outer,
        preemption.watch("b") as inner,
        preemption.watch(None) as keeps_nothing,
    ):
        terminate()
        keeps_nothing.leave()
        assert outer.asked() and inner.asked()
        inner.leave()
    assert len(mine) == 1


def test_what_is_not_watched_keeps_its_handler(mine, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    seen = []

    def look(folder):
        with preemption.watch(folder) as notice:
            seen.append(signal.getsignal(signal.SIGTERM))
            terminate()
            notice.leave()

    look(None)
    thread = threading.Thread(target=look, args=(tmp_path,))
    thread.start()
    thread.join()
    assert seen == [handler, handler] and len(mine) == 2
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    look(tmp_path)
    assert seen[2] == signal.SIG_IGN


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), jax.errors.JaxRuntimeError("device lost")]
)
def test_an_error_of_disk_or_device_says_how_to_go_on(error, tmp_path):
    with pytest.raises(type(error)) as caught, preemption.watch(tmp_path):
        raise error
    (note,) = caught.value.__notes__
    assert str(tmp_path) in note and "resume=True" in note


BUSY = """
import os, signal
import jax
from robjax.runs import preemption

with preemption.watch("run"):
    # a process that is forked inside is not of the run: SIGTERM ends it
    reader, writer = os.pipe()
    worker = os.fork()
    if not worker:
        os.write(writer, b"!")
        signal.pause()
        os._exit(0)
    os.read(reader, 1)
    os.kill(worker, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), flush=True)
    minutes = jax.jit(
        lambda x: jax.lax.fori_loop(0, 2**31 - 1, lambda i, x: jax.numpy.sin(x), x)
    )
    minutes(1.0).block_until_ready()
"""


def test_the_second_sigterm_ends_a_process_that_computes():
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"-15\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    process.stdout.close()
