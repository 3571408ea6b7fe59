"""Patch for transformers' validator cache; it halves an agent loop worker's own CPU time.

transformers 5.5 creates a new ``TypedDict`` class for every processor call and validates its
arguments against it; the validator caches by class, so it builds a dataclass each time. Passing the
first of equal classes keeps the validation and makes the cache effective.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any


def reuse_equal_schemas(module: Any) -> None:
    """Pass the same object for equal schemas.

    Args:
        module: ``transformers.processing_utils``.
    """
    original = module.validate_typed_dict
    known: dict[tuple[Any, ...], Any] = {}

    @wraps(original)
    def validate(schema: Any, data: Mapping[str, Any]) -> None:
        # The annotations belong to the schema's sources, which outlive it, so ids are stable.
        annotations = schema.__annotations__.items()
        key = (schema.__name__, *((name, id(kind)) for name, kind in annotations))
        original(known.setdefault(key, schema), data)

    module.validate_typed_dict = validate
