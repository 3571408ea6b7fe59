"""The only rooms that import an upstream framework, one folder per framework."""
