"""Data sets: schemas, checks and formatters."""
