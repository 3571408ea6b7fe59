"""Answers and images as JSON: in the cache, in recordings, and between service and client."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.search.contracts import (
    MAXIMUM_RESULTS,
    ImageQuery,
    ImageResult,
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
    Text,
)

_BLANKS = re.compile(r"\s+")


def _decoded(value: object) -> EncodedImage:
    if isinstance(value, EncodedImage):
        return value
    if not isinstance(value, str):
        raise ValueError("an image is base64 text")
    try:
        return EncodedImage(base64.b64decode(value, validate=True))
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error


Base64Image = Annotated[
    EncodedImage,
    PlainValidator(_decoded),
    PlainSerializer(lambda image: base64.b64encode(image.data).decode("ascii"), return_type=str),
]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class ImageQueryMessage(_Message):
    """A search by image."""

    image: Base64Image = Field(description="The image file, base64.")
    data_id: str = Field("", description="Stable name of the question in its data set.")
    count: int = Field(10, ge=1, le=MAXIMUM_RESULTS, description="Results at most.")

    def query(self) -> ImageQuery:
        """As the contract's type."""
        return ImageQuery(self.image, self.data_id, self.count)


class ImageResultMessage(_Message):
    """One page that shows the image."""

    title: Text = ""
    link: Text = ""
    thumbnail: Base64Image | None = None


class ImageResultsMessage(_Message):
    """The answer to a search by image."""

    results: tuple[ImageResultMessage, ...] = ()
    partial: str = ""
    kept: bool = False

    @classmethod
    def of(cls, found: ImageResults) -> ImageResultsMessage:
        """Of the contract's type."""
        return cls(
            results=tuple(
                ImageResultMessage(title=one.title, link=one.link, thumbnail=one.thumbnail)
                for one in found.results
            ),
            partial=found.partial,
            kept=found.kept,
        )

    def answer(self) -> ImageResults:
        """As the contract's type."""
        return ImageResults(
            tuple(ImageResult(one.title, one.thumbnail, one.link) for one in self.results),
            self.partial,
            self.kept,
        )


def tidy(query: SearchQuery) -> SearchQuery:
    """The query as it is asked: equal for what no engine tells apart (blanks, Unicode forms)."""
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
"""The kinds of errors by their names between service and client; the first that fits is named."""

STATUSES = {
    "query_refused": 422,
    "not_recorded": 404,
    "key_missing": 424,
    "key_refused": 424,
    "not_configured": 424,
    "quota_exhausted": 424,
    "unavailable": 424,
}
"""HTTP statuses of the service. 424: its provider failed. It has tried again already, so that this
is none of the statuses after which clients try again."""


class ErrorMessage(_Message):
    """Why there is no answer."""

    kind: str = Field(description="query_refused, not_recorded, key_missing, …")
    message: str = Field(description="For people.")
    variable: str = Field("", description="The environment variable with the key, if it is one.")
    retry_after: float = Field(0.0, description="Seconds until another attempt is worth it.")

    @classmethod
    def of(cls, error: SearchError) -> ErrorMessage:
        """Of an error of the contract."""
        kind = next((name for name, one in ERRORS.items() if isinstance(error, one)), "unavailable")
        return cls(
            kind=kind,
            message=str(error),
            variable=getattr(error, "variable", ""),
            retry_after=getattr(error, "retry_after", 0.0),
        )

    def error(self) -> SearchError:
        """As an error of the contract."""
        kind = ERRORS.get(self.kind, SearchUnavailableError)
        if issubclass(kind, SearchNotConfiguredError):
            return kind(self.message, variable=self.variable)
        if issubclass(kind, QuotaExhaustedError):
            return kind(self.message, variable=self.variable, retry_after=self.retry_after)
        return kind(self.message)
