"""The code sandbox on a Ray cluster: one server per node."""
