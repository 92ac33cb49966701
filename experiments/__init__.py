"""One module for each claim of a paper; run as ``python -m experiments.<name>``."""
