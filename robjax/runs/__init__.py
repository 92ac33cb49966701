"""What a run leaves on disk, and what makes two runs the same.

files         atomic writes, JSON, JSON lines, npz
checkpoints   states of a training run, with checksums
preemption    SIGTERM: a run that is told to stop saves and leaves
provenance    versions, git state, descriptions of runs and how they are compared
processes     several processes that do one thing together
identity      models, functions and options in words
anatomy       whose code something is, and what objects are made of
bytecode      what code does, and which names it reads
"""

from robjax.runs import checkpoints, files, preemption, processes, provenance

__all__ = ["checkpoints", "files", "preemption", "processes", "provenance"]
