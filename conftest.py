"""Compiled programs are forgotten after each file of tests or examples.

Every program keeps memory mappings; the thousands of a whole run would take gigabytes
and more mappings than a process may have, which ends in a segmentation fault. With them
goes the count after which robjax drops programs itself, so that tests which count
traces do not depend on the files that ran before.
"""

import gc

import jax
import pytest

from robjax import traced


def pytest_collection_finish() -> None:
    """What is there before the first test need not be searched after each file."""
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Pytest calls this after each test; the last one of a file clears."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()
        traced._known.clear()
        gc.collect()
