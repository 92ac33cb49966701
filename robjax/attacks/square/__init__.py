"""Square: a random search that needs no gradients, for models inside and outside JAX.

attack.py      `square`, on models that JAX can trace
queries.py     `square_queries`, on any Python function; `success_rate`
search.py      the search as a value, which both run
proposals.py   starts, windows and changes: what is drawn and tried
"""

from robjax.attacks.square.attack import square
from robjax.attacks.square.queries import square_queries, success_rate

__all__ = ["square", "square_queries", "success_rate"]
