"""What a run leaves on disk, and what makes two runs the same.

files         atomic writes, JSON, JSON lines, npz
checkpoints   states of a training run, with checksums
provenance    versions, git state, descriptions of models, data and options
"""

from robjax.runs import checkpoints, files, provenance

__all__ = ["checkpoints", "files", "provenance"]
