"""Minimal-norm attacks: the nearest image that the model takes for another class.

carlini_wagner.py, ddn.py, deepfool.py, fab.py, fmn.py    the walk of each attack
minimal_distance.py  the smallest distance that several of them find, from many starts
exploration.py       looks for nearer images where a walk would not have come
search.py            what they share: the record of the nearest image, the loop
refinement.py        the last steps towards x, whatever the walk was
boundary.py          a boundary between two classes, linearised at a point
corners.py           the same towards a given class, where several boundaries meet
hyperplanes.py       the nearest point of a hyperplane inside the box
"""

from robjax.attacks.minimal_norm.carlini_wagner import carlini_wagner
from robjax.attacks.minimal_norm.ddn import ddn
from robjax.attacks.minimal_norm.deepfool import deepfool
from robjax.attacks.minimal_norm.fab import fab
from robjax.attacks.minimal_norm.fmn import fmn
from robjax.attacks.minimal_norm.minimal_distance import minimal_distance

__all__ = ["carlini_wagner", "ddn", "deepfool", "fab", "fmn", "minimal_distance"]
