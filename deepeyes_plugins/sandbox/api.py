"""The HTTP interface in one table: what is accepted, what is answered, and its OpenAPI document.

Results are msgpack with raw PNG bytes for those who accept ``application/x-msgpack``, else JSON with
base64. Errors are ``{"error": sentence}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from openapi_pydantic import OpenAPI
from openapi_pydantic.util import PydanticSchema, construct_open_api_with_schema_class
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)

MSGPACK: Final = "application/x-msgpack"
MAX_IMAGES_PER_SESSION: Final = 100


def _source(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


Source = Annotated[
    # Lone surrogates are no valid Unicode, but models write them; pydantic's own strings refuse.
    str, PlainValidator(_source), WithJsonSchema({"type": "string"})
]


def _whole(value: Any) -> Any:
    # JSON knows one kind of number: 2.0 is as whole as 2.
    return int(value) if isinstance(value, float) and value.is_integer() else value


_DIGEST = r"^[0-9a-f]{64}$"
Digest = Annotated[str, StringConstraints(pattern=_DIGEST)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
CellNumber = Annotated[int, Field(strict=True, ge=0, lt=1 << 31), BeforeValidator(_whole)]
LegacyId = str | Annotated[int, Field(strict=True), BeforeValidator(_whole)]


class Message(BaseModel):
    """Base of all messages; unknown keys are ignored, so that newer clients are understood."""

    model_config = ConfigDict(extra="ignore")


class SessionRequest(Message):
    """What a session begins with."""

    images: list[Digest] = Field(
        default_factory=list,
        max_length=MAX_IMAGES_PER_SESSION,
        description="SHA-256 hashes of uploaded images: image_1, image_2, and so on.",
    )
    wait: Seconds | None = Field(
        None,
        description="Seconds to wait for a process where all sessions are busy; the server has a "
        "limit.",
    )


class SessionCreated(Message):
    """A new session."""

    id: str


class CellRequest(Message):
    """One cell."""

    code: Source = Field("", description="Python source, as in a Jupyter cell.")
    timeout: Seconds | None = Field(
        None, description="Seconds after which the cell is interrupted; the server has a limit."
    )
    cell: CellNumber | None = Field(
        None,
        description="Number of this session's cells whose results the client has. With it, a cell "
        "that ran on a server which then failed is not run twice.",
    )


class CellResult(Message):
    """What one cell did."""

    outcome: Literal["ok", "error", "timeout", "killed", "lost"]
    stdout: str
    stderr: str
    result: str = Field(description="Text of the last expression's value.")
    images: list[str] = Field(description="PNG files, in base64 (raw bytes in msgpack).")
    duration: float = Field(description="Wall time in seconds.")
    error_name: str | None = Field(description="Class of the exception that ended the cell.")
    lost_names: dict[str, str] = Field(
        description="Variables and files that the session had and has no more, with the reasons."
    )


class HealthReport(Message):
    """How the server is."""

    status: Literal["ok", "starting"]
    sessions: int = Field(description="Sessions that have a process.")
    stored: int = Field(description="Sessions that were put away.")
    max_sessions: int
    workers: int
    isolation: dict[str, str] = Field(description='Layer to "active…" or why it is missing.')
    notes: dict[str, str] = Field(description="Network access, fonts and the like.")
    versions: dict[str, str]


class Problem(Message):
    """Why a request was not served."""

    error: str
    missing: list[str] | None = Field(None, description="Images that must be uploaded first.")


class LegacyCell(Message):
    """A cell in the manner of the DeepEyes reference server."""

    session_id: LegacyId = "JupyterSandboxDefault"
    code: Source = ""
    timeout: Seconds = 5.0


class LegacySession(Message):
    """A session in the manner of the reference server."""

    session_id: LegacyId = "JupyterSandboxDefault"


class LegacyOutput(Message):
    """What a cell did, in the manner of the reference server."""

    result: str
    stdout: str
    stderr: str
    images: list[str] = Field(description="PNG files in base64.")


class LegacyAnswer(Message):
    """The reference server's answer to a cell."""

    output: LegacyOutput
    status: Literal["success", "error"]
    execution_time: float


class LegacyCleared(Message):
    """The reference server's answer to the end of a session."""

    status: Literal["success"]


@dataclass(frozen=True)
class Endpoint:
    """One line of the interface.

    Attributes:
        method: HTTP method.
        path: Path with its parameters in braces.
        summary: What it does.
        answers: Status to the message in the body; None for an empty one, bytes for a file.
        body: The message of the request, bytes for a file, None for nothing.
        open: Whether it is answered without the token.
    """

    method: str
    path: str
    summary: str
    answers: Mapping[int, type[BaseModel] | type[bytes] | type[str] | None]
    body: type[BaseModel] | type[bytes] | None = None
    open: bool = False
    parameters: tuple[str, ...] = field(default=())


ENDPOINTS: Final = {
    "health": Endpoint(
        "GET", "/health", "Isolation layers, load and versions.", {200: HealthReport}, open=True
    ),
    "metrics": Endpoint("GET", "/metrics", "Metrics for Prometheus.", {200: str}, open=True),
    "document": Endpoint("GET", "/openapi.json", "This document.", {200: BaseModel}, open=True),
    "put_image": Endpoint(
        "PUT",
        "/v1/images/{digest}",
        "Hold an image under its SHA-256.",
        {204: None, 413: Problem, 422: Problem},
        body=bytes,
        parameters=("digest",),
    ),
    "get_image": Endpoint(
        "GET",
        "/v1/images/{digest}",
        "An image that is held.",
        {200: bytes, 404: Problem},
        parameters=("digest",),
    ),
    "create": Endpoint(
        "POST",
        "/v1/sessions",
        "Open a session on uploaded images.",
        {201: SessionCreated, 404: Problem, 413: Problem, 422: Problem, 503: Problem},
        body=SessionRequest,
    ),
    "execute": Endpoint(
        "POST",
        "/v1/sessions/{id}/execute",
        "Run a cell after those that the session was given before.",
        {
            200: CellResult,
            404: Problem,
            409: Problem,
            413: Problem,
            422: Problem,
            503: Problem,
        },
        body=CellRequest,
        parameters=("id",),
    ),
    "interrupt": Endpoint(
        "POST",
        "/v1/sessions/{id}/interrupt",
        "Interrupt the running cell, if there is one.",
        {204: None, 404: Problem},
        parameters=("id",),
    ),
    "evict": Endpoint(
        "POST",
        "/v1/sessions/{id}/evict",
        "Put a session away until its next cell.",
        {204: None, 404: Problem, 503: Problem},
        parameters=("id",),
    ),
    "close": Endpoint(
        "DELETE",
        "/v1/sessions/{id}",
        "End a session, whether it exists or not.",
        {204: None},
        parameters=("id",),
    ),
    "legacy_execute": Endpoint(
        "POST",
        "/jupyter_sandbox",
        "The reference server's way: a session begins with its first cell.",
        {200: LegacyAnswer, 413: Problem, 422: Problem, 503: Problem},
        body=LegacyCell,
    ),
    "legacy_clear": Endpoint(
        "POST",
        "/clear_session",
        "The reference server's way to end a session.",
        {200: LegacyCleared, 413: Problem, 422: Problem},
        body=LegacySession,
    ),
}
"""Name of the handler to what it serves."""


def document(version: str) -> dict[str, Any]:
    """The OpenAPI document of the interface."""
    paths: dict[str, dict[str, Any]] = {}
    for name, endpoint in ENDPOINTS.items():
        operation: dict[str, Any] = {
            "operationId": name,
            "summary": endpoint.summary,
            "responses": {
                str(status): _answer(status, message)
                for status, message in endpoint.answers.items()
            },
        }
        if not endpoint.open:
            operation["security"] = [{"token": []}]
            operation["responses"]["401"] = _answer(401, Problem)
        if endpoint.body is not None:
            operation["requestBody"] = {"required": True, "content": _content(endpoint.body)}
        if endpoint.parameters:
            operation["parameters"] = [
                {"name": one, "in": "path", "required": True, "schema": _PARAMETERS[one]}
                for one in endpoint.parameters
            ]
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    described = OpenAPI.model_validate(
        {
            "openapi": "3.1.0",
            "info": {"title": "DeepEyes code sandbox", "version": version},
            "paths": paths,
            "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        }
    )
    whole = construct_open_api_with_schema_class(described)
    return whole.model_dump(mode="json", by_alias=True, exclude_none=True)


_PARAMETERS = {
    "digest": {"type": "string", "pattern": _DIGEST},
    "id": {"type": "string", "minLength": 1},
}
_DESCRIPTIONS = {
    200: "Done.",
    201: "Made.",
    204: "Done; nothing to say.",
    401: "The bearer token is missing or wrong.",
    404: "There is no such thing (any more).",
    409: "The cell has run already.",
    413: "The body is too large.",
    422: "The request is wrong.",
    503: "The server cannot do it now.",
}


def _answer(status: int, message: Any) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": _DESCRIPTIONS[status]}
    if message is not None:
        answer["content"] = _content(message)
        if message is CellResult:
            answer["content"][MSGPACK] = {}
    return answer


def _content(message: Any) -> dict[str, Any]:
    if message is bytes:
        binary = {"type": "string", "format": "binary"}
        return {"application/octet-stream": {"schema": binary}}
    if message is str:
        return {"text/plain": {"schema": {"type": "string"}}}
    if message is BaseModel:
        return {"application/json": {"schema": {"type": "object"}}}
    return {"application/json": {"schema": PydanticSchema(schema_class=message)}}
