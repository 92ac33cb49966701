"""The documentation builds without a warning, and every public name is in it."""

import importlib
import inspect
import os
import pathlib
import re
import subprocess
import sys

import pytest

import robjax

ROOT = pathlib.Path(__file__).resolve().parents[1]


def public(module):
    """Full names of what `__all__` lists, and of what the modules among it list."""
    for name in module.__all__:
        value = getattr(module, name)
        yield f"{module.__name__}.{name}"
        if inspect.ismodule(value) and hasattr(value, "__all__"):
            yield from public(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("sphinx", "myst_parser", "furo", "latex2mathml"):
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
    from sphinx.util.inventory import InventoryFile

    listed = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    known = {item.name for item in listed}
    assert {f"robjax.{name}" for name in robjax.__all__} <= known
    assert not set(public(robjax)) - known


def test_pages_need_no_network(site):
    loads = r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?:https?:)?//[^\"']*"
    for page in site.rglob("*.html"):
        assert not re.findall(loads, page.read_text()), page
