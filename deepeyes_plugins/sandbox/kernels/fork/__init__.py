"""Sessions forked from a warm Python process, each jailed before it runs a line of code."""
