"""LLaMA-Factory host: dataset converters, templates and sample processors."""

# The import registers this package's modules, so it must come before any of them is imported.
import llamafactory.data  # noqa: F401
