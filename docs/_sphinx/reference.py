"""Writes api/MODULE.rst for each public module, and api/index.rst that lists them.

A module is public if `robjax.__all__` names it, or the `__all__` of a public package.
"""

import importlib
import inspect
import pathlib
import types

from sphinx.pycode import ModuleAnalyzer

import robjax

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


def _imported_constants(name: str) -> list[str]:
    """Constants of a module that stand elsewhere, which automodule does not find."""
    module = importlib.import_module(name)
    documented = ModuleAnalyzer.for_module(name).find_attr_docs()
    return [
        constant
        for constant in getattr(module, "__all__", [])
        if ("", constant) not in documented
        and not inspect.ismodule(value := getattr(module, constant))
        and not (inspect.isclass(value) or inspect.isroutine(value))
    ]


def _page(name: str) -> str:
    constants = _imported_constants(name)
    more = [f".. autodata:: {name}.{constant}\n" for constant in constants]
    return "\n".join([name, "=" * len(name), "", f".. automodule:: {name}\n", *more])


def _write(path: pathlib.Path, text: str) -> None:
    """Leaves a file alone that is right, so that its page is not built again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _generate(app) -> None:
    folder = pathlib.Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    names = public_modules()
    for page in folder.glob("robjax.*.rst"):
        if page.stem not in names:
            page.unlink()
    for name in names:
        _write(folder / f"{name}.rst", _page(name))
    _write(folder / "index.rst", INDEX.format(names="\n   ".join(names)))


def setup(app):
    """Called by Sphinx."""
    app.connect("builder-inited", _generate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
