"""Figures and tables made from plain arrays; nothing here runs a model.

figures.py   what the experiments draw, and `save`
tables.py    means with standard errors, Markdown tables
"""

from robjax.reporting import figures, tables

__all__ = ["figures", "tables"]
