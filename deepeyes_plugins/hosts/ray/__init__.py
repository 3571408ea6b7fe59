"""Code sandbox on a Ray cluster: one server per node."""
