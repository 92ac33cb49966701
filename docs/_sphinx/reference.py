"""Writes api/MODULE.rst for each public module, and api/index.rst that lists them.

A module is public if `robjax.__all__` names it, or the `__all__` of a public package.
"""

import importlib
import inspect
import pathlib
import types

import robjax

PAGE = """\
{title}
{line}

.. automodule:: {name}
"""
INDEX = """\
API reference
=============

Every public name, by module. What a formula means and where it comes from stands with
the function that computes it.

.. autosummary::

   {names}

.. toctree::
   :hidden:

   {names}
"""


def public_modules(package: types.ModuleType = robjax) -> list[str]:
    """Full names of the public modules below a package, in order."""
    found = []
    for name in sorted(package.__all__):
        value = getattr(package, name)
        if inspect.ismodule(value):
            found.append(value.__name__)
            if hasattr(value, "__all__"):
                found += public_modules(value)
    return found


def public_names(module: types.ModuleType) -> list[str]:
    """Names that a public module offers, without modules."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__
            and not name.startswith("_")
        ]
    return [name for name in names if not inspect.ismodule(getattr(module, name))]


def _write(path: pathlib.Path, text: str) -> None:
    """Leaves a file alone that is right, so that its page is not built again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _generate(app) -> None:
    folder = pathlib.Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    names = public_modules()
    for name in names:
        page = PAGE.format(title=name, line="=" * len(name), name=name)
        _write(folder / f"{name}.rst", page)
    _write(folder / "index.rst", INDEX.format(names="\n   ".join(names)))


def setup(app):
    """Called by Sphinx."""
    app.connect("builder-inited", _generate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
