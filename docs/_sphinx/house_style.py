"""Docstrings as this project writes them, made reStructuredText.

* `code` in single backticks is code, as in Markdown.
* A paragraph that is indented by four spaces or has columns is a formula or a listing.
* *, | and _ mean themselves: [B, *S], |δ|, x_{i+1}.

Code that names something of the library becomes a link to it, in Markdown, too.
"""

import re
import sys
import textwrap

from docutils import nodes
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
_LISTING = re.compile(r"    |\||\S+ {2,}\S")
_CODE = re.compile(r"(`{1,2})([^`]+)\1")
_STRESSED = r"\*{1,2}[A-Za-z][^*]*[\w.?:]\*{1,2}"
_MARKUP = re.compile(rf"({_STRESSED})|^( *\* )|[*|]|_(?=\W|$)", re.M)
_NAMES = re.compile(r"^ *(?:\w+, )+\w+:", re.M)
_LIST = re.compile(r"^( *[^* ].*\n)(?= *\* )", re.M)


def _escape(match: re.Match) -> str:
    return match[0] if match[1] or match[2] else f"\\{match[0]}"


def _text(paragraph: str) -> str:
    """Escapes what is markup outside of code, and doubles the backticks of code."""
    done, end = [], 0
    for code in _CODE.finditer(paragraph):
        done.append(_MARKUP.sub(_escape, paragraph[end : code.start()]))
        done.append(rf"\ ``{code[2]}``\ ")
        end = code.end()
    done.append(_MARKUP.sub(_escape, paragraph[end:]))
    return _LIST.sub(r"\1\n", "".join(done))


def _joined(names: re.Match) -> str:
    """Of "low, high: …" Sphinx would take the first name for a type."""
    return names[0].replace(", ", ",")


def _restructured(docstring: str) -> str:
    found, in_section = [], False
    for paragraph in re.split(r"\n{2,}", docstring.strip("\n")):
        in_section = in_section or bool(_SECTION.match(paragraph.partition("\n")[0]))
        in_section = in_section and not re.match(r"\w+ ", paragraph)
        if paragraph.lstrip().startswith(">>>"):
            found.append(paragraph)
        elif _LISTING.match(paragraph) and not in_section:
            found.append("::\n\n" + textwrap.indent(textwrap.dedent(paragraph), "    "))
        else:
            named = _NAMES.sub(_joined, paragraph) if in_section else paragraph
            found.append(_text(named))
    return "\n\n".join(found)


def _comment(name: str, value: object) -> list[str]:
    """What is written below a constant, in the module that makes it."""
    for module in [m for key, m in sys.modules.items() if key.startswith("robjax.")]:
        if vars(module).get(name) is value:
            comments = ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
            if ("", name) in comments:
                return comments["", name]
    return []


def _docstring(app, what, name, obj, options, lines) -> None:
    if what == "data":
        lines[:] = _comment(name.rpartition(".")[2], obj)
    lines[:] = [*_restructured("\n".join(lines)).split("\n"), ""]


def _skip(app, what, name, obj, skip, options) -> bool | None:
    """Leaves out the fields of a NamedTuple, which `Attributes` describes."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


class Links(SphinxPostTransform):
    """Links from code to what it names: `attacks.pgd`, `robjax.balls.Linf(0.1)`."""

    default_priority = 5

    def run(self, **options) -> None:
        """Called by Sphinx for each page."""
        objects = self.env.domains.python_domain.objects
        for code in list(self.document.findall(nodes.literal)):
            name = re.match(r"[\w.]*", code.astext())[0]
            full = name if name.startswith("robjax.") else f"robjax.{name}"
            found = objects.get(full)
            if "." not in name or not found or isinstance(code.parent, nodes.reference):
                continue
            link = make_refnode(
                self.app.builder, self.env.docname, found.docname, found.node_id,
                code.deepcopy(), full,
            )  # fmt: skip
            code.replace_self(link)


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-skip-member", _skip)
    app.add_post_transform(Links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
