"""The same attack by other libraries, on the same weights."""
