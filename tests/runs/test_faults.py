"""Runs that are killed, and whose files are damaged; by hand with more of both."""

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("what", ["kill", "damage"])
def test_nothing_is_lost_or_taken_for_what_it_is_not(what):
    command = [sys.executable, "-W", "ignore", "-m", "tests.runs.faults", what, "5"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("training", "evaluation", "interactions"):
        assert re.search(rf"^{kind}.*'equal", done.stdout, re.MULTILINE)
