"""LLaMA-Factory as a host: dataset formatters, templates, and what a sample is made into."""

# Importing it registers what is in this package; that must not meet a module of it half-way.
import llamafactory.data  # noqa: F401
