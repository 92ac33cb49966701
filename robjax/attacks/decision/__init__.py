"""Attacks on models that give labels only: they use no logits and no gradients.

hop_skip_jump.py   `hop_skip_jump`, a gradient estimated from labels; L2 and Linf
boundary.py        `boundary_attack`, a random walk along the boundary; L2
start.py           the misclassified image that both begin with

The logits say which class is largest, and nothing more. For a Python function from
images to labels `robjax.model.from_labels` makes such a model.
"""

from robjax.attacks.decision.boundary import boundary_attack
from robjax.attacks.decision.hop_skip_jump import hop_skip_jump

__all__ = ["boundary_attack", "hop_skip_jump"]
