"""Equations as MathML, which browsers draw themselves."""

import latex2mathml.converter
from docutils import nodes


def _inline(writer, node):
    writer.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def _block(writer, node):
    formula = latex2mathml.converter.convert(node.astext(), display="block")
    style = "margin: 1em 0; overflow-x: auto; overflow-y: hidden"
    writer.body.append(f'<div style="{style}">{formula}</div>')
    raise nodes.SkipNode


def setup(app):
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
