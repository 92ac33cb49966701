"""Figures and tables made from plain arrays; nothing here runs a model."""

from robjax.reporting import figures, tables

__all__ = ["figures", "tables"]
