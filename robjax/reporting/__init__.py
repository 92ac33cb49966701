"""Figures and tables made from plain arrays; nothing here runs a model.

figures.py   what the experiments draw, and `save`
pairs.py     interactions of pairs, drawn over an image
brackets.py  what is proven and what is attacked, over the radius
tables.py    means with standard errors, Markdown tables
"""

from robjax.reporting import brackets, figures, pairs, tables

__all__ = ["brackets", "figures", "pairs", "tables"]
