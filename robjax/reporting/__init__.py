"""Figures and tables made from plain arrays; nothing here runs a model.

figures.py   what the experiments draw, and `save`
pairs.py     interactions of pairs, drawn over an image
tables.py    means with standard errors, Markdown tables
"""

from robjax.reporting import figures, pairs, tables

__all__ = ["figures", "pairs", "tables"]
