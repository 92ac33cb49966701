"""Settings of the documentation: `make docs` builds it without a network."""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_sphinx"))
sys.path.insert(0, str(HERE.parent))

import robjax  # noqa: E402

project = "robjax"
author = "The robjax authors"
copyright = author
smartquotes_action = "D"  # dashes; x' is no quotation
version = release = robjax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "reference",  # in _sphinx: one page for each public module
    "house_style",  # docstrings as this project writes them
    "outside",  # links to files outside docs/
]
exclude_patterns = ["_sphinx"]
myst_heading_anchors = 3

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "no-value": True,  # some constants are long
}
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # `Args` says more
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
toc_object_entries_show_parents = "hide"

highlight_language = "none"  # of listings that do not say theirs

pygments_dark_style = "github-dark"
html_theme = "furo"
html_title = "robjax"
html_copy_source = False
html_show_sphinx = False
