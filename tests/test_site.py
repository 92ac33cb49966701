"""The documentation builds without a warning, and every public name is in it."""

import inspect
import os
import pathlib
import re
import subprocess
import sys
import zlib

import pytest

import robjax

ROOT = pathlib.Path(__file__).resolve().parents[1]


def offered(module):
    """`__all__`, or else the functions and classes that a module makes."""
    return getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
        and (inspect.isclass(value) or inspect.isroutine(value))
        and not name.startswith("_")
    ]


def public(module):
    """Full names of what a public module offers, and of what its modules do."""
    for name in offered(module):
        yield f"{module.__name__}.{name}"
        value = getattr(module, name)
        if inspect.ismodule(value):
            yield from public(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", folder],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site):
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]  # after the header
    known = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}
    named = set(public(robjax))
    assert len(named) > 200
    assert not named - known


def test_pages_need_no_network(site):
    loads = r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?:https?:)?//[^\"']*"
    for page in site.rglob("*.html"):
        assert not re.findall(loads, page.read_text()), page
