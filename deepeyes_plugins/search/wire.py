"""JSON format of searches: in the response cache, in recordings, and between service and client.

``SearchQuery`` and ``SearchResults`` are models that serialise themselves; their counterparts for
images are dataclasses and need the adapters below.
"""

from __future__ import annotations

import re
import unicodedata

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from deepeyes_plugins.search.contracts import (
    ImageQuery,
    ImageResults,
    KeyMissingError,
    KeyRefusedError,
    NotRecordedError,
    QueryRefusedError,
    QuotaExhaustedError,
    SearchError,
    SearchNotConfiguredError,
    SearchQuery,
    SearchUnavailableError,
)

IMAGE_QUERY = TypeAdapter(ImageQuery)
IMAGE_RESULTS = TypeAdapter(ImageResults)

_BLANKS = re.compile(r"\s+")


def normalized(query: SearchQuery) -> SearchQuery:
    """Return the query with single blanks and in Unicode form NFC, which no engine tells apart."""
    text = _BLANKS.sub(" ", unicodedata.normalize("NFC", query.text)).strip()
    return query.model_copy(update={"text": text})


ERRORS: dict[str, type[SearchError]] = {
    "query_refused": QueryRefusedError,
    "not_recorded": NotRecordedError,
    "key_missing": KeyMissingError,
    "key_refused": KeyRefusedError,
    "not_configured": SearchNotConfiguredError,
    "quota_exhausted": QuotaExhaustedError,
    "unavailable": SearchUnavailableError,
}
"""Errors by their ``kind`` in a response; of an error, the first kind that matches is sent."""

STATUSES = {
    "query_refused": 422,
    "not_recorded": 404,
    "key_missing": 424,
    "key_refused": 424,
    "not_configured": 424,
    "quota_exhausted": 424,
    "unavailable": 424,
}
"""HTTP statuses of the service. 424: its provider failed, retries included, so the status is none
that clients retry."""


class ErrorMessage(BaseModel):
    """Body of an error response."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(description="query_refused, not_recorded, key_missing, …")
    message: str = Field(description="Reason and what to do.")
    variable: str = Field(
        "", description="Environment variable of the API key, if the error is about a key."
    )
    retry_after: float = Field(0.0, description="Seconds to wait before a retry.")

    @classmethod
    def of(cls, error: SearchError) -> ErrorMessage:
        """Make the message of an error."""
        kind = next((name for name, one in ERRORS.items() if isinstance(error, one)), "unavailable")
        return cls(
            kind=kind,
            message=str(error),
            variable=getattr(error, "variable", ""),
            retry_after=getattr(error, "retry_after", 0.0),
        )

    def error(self) -> SearchError:
        """Return the error that the message stands for."""
        kind = ERRORS.get(self.kind, SearchUnavailableError)
        if issubclass(kind, SearchNotConfiguredError):
            return kind(self.message, variable=self.variable)
        if issubclass(kind, QuotaExhaustedError):
            return kind(self.message, variable=self.variable, retry_after=self.retry_after)
        return kind(self.message)
