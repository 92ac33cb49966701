"""Lower bounds of robust accuracy, beside the attacks' upper bounds.

    certify           margins that no attack in a ball can break, for any network
    branch_and_bound  the same by halves of the ball, until proven or broken
    smoothing         the same with high probability, for the answers of any model under
                      noise

A certificate goes through these files:

    certificates.py  arguments, methods in turn, the certificate
    methods.py       the four methods
    branching.py     branch and bound, on the host
    domains.py       halves of a region, their bounds and where to halve them
    linear.py        bounds of every node; the walk back from the logits to the image
    relaxations.py   two affine functions around what is not linear
    intervals.py     intervals, and how far rounding moves them
    rules.py         one rule for each primitive, and how to add one
    graph.py         a network as a list of equations
    regions.py       ball ∩ box, and the minimum of a linear function over it
"""

from robjax.certification import smoothing
from robjax.certification.branching import Branched, branch_and_bound
from robjax.certification.certificates import Certificate, certify
from robjax.certification.methods import METHODS, Method
from robjax.certification.rules import RULES, Rule

__all__ = [
    "METHODS",
    "RULES",
    "Branched",
    "Certificate",
    "Method",
    "Rule",
    "branch_and_bound",
    "certify",
    "smoothing",
]
