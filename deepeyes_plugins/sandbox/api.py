"""HTTP API of the sandbox server: endpoints, request and response models, OpenAPI document.

Results are msgpack with raw PNG bytes for clients that accept ``application/x-msgpack``, else JSON
with base64. Errors are ``{"error": message}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.json_schema import models_json_schema

MSGPACK: Final = "application/x-msgpack"
MAX_IMAGES_PER_SESSION: Final = 100


def _source(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


Source = Annotated[
    # Models write lone surrogates, which pydantic's ``str`` rejects as invalid Unicode.
    str, PlainValidator(_source), WithJsonSchema({"type": "string"})
]


def _whole(value: Any) -> Any:
    # JSON has one number type: 2.0 is an integer too.
    return int(value) if isinstance(value, float) and value.is_integer() else value


_DIGEST = r"^[0-9a-f]{64}$"
Digest = Annotated[str, StringConstraints(pattern=_DIGEST)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
CellNumber = Annotated[int, Field(strict=True, ge=0, lt=1 << 31), BeforeValidator(_whole)]
LegacyId = str | Annotated[int, Field(strict=True), BeforeValidator(_whole)]


class Message(BaseModel):
    """Base class of all messages; unknown keys are ignored for the sake of newer clients."""

    model_config = ConfigDict(extra="ignore")


class SessionRequest(Message):
    """Request to create a session."""

    images: list[Digest] = Field(
        default_factory=list,
        max_length=MAX_IMAGES_PER_SESSION,
        description="SHA-256 hashes of uploaded images: image_1, image_2, and so on.",
    )
    wait: Seconds | None = Field(
        None,
        description="Seconds to wait for a free slot while all sessions are busy; the server has "
        "an upper limit.",
    )


class SessionCreated(Message):
    """Response to the creation of a session."""

    id: str


class CellRequest(Message):
    """Request to run a cell."""

    code: Source = Field("", description="Python source, as in a Jupyter cell.")
    timeout: Seconds | None = Field(
        None,
        description="Seconds after which the cell is interrupted; the server has an upper limit.",
    )
    cell: CellNumber | None = Field(
        None,
        description="Number of cells of this session whose results the client has received. "
        "Prevents a cell from running twice after a failover.",
    )


class CellResult(Message):
    """Result of a cell."""

    outcome: Literal["ok", "error", "timeout", "killed", "lost"]
    stdout: str
    stderr: str
    result: str = Field(description="Text of the last expression's value.")
    images: list[str] = Field(description="PNG files, in base64 (raw bytes in msgpack).")
    duration: float = Field(description="Wall time in seconds.")
    error_name: str | None = Field(description="Class of the exception that ended the cell.")
    lost_names: dict[str, str] = Field(
        description="Variables and files that the session lost, each with the reason."
    )


class HealthReport(Message):
    """Health of the server; clients without its token get the status only."""

    status: Literal["ok", "starting"]
    sessions: int | None = Field(None, description="Sessions that have a process.")
    stored: int | None = Field(None, description="Evicted sessions.")
    max_sessions: int | None = None
    workers: int | None = None
    isolation: dict[str, str] | None = Field(
        None, description='Layer name to "active…" or to the reason why it is missing.'
    )
    notes: dict[str, str] | None = Field(None, description="Network access, fonts and the like.")
    versions: dict[str, str] | None = None


class Problem(Message):
    """Error response."""

    error: str
    missing: list[str] | None = Field(None, description="Images that must be uploaded first.")


class LegacySession(Message):
    """Request of the reference server's API to end a session."""

    session_id: LegacyId = "JupyterSandboxDefault"


class LegacyCell(LegacySession):
    """Request of the DeepEyes reference server's API to run a cell."""

    code: Source = ""
    timeout: Seconds = 5.0


class LegacyOutput(Message):
    """Output of a cell in the reference server's API."""

    result: str
    stdout: str
    stderr: str
    images: list[str] = Field(description="PNG files in base64.")


class LegacyAnswer(Message):
    """Response to a cell in the reference server's API."""

    output: LegacyOutput
    status: Literal["success", "error"]
    execution_time: float


class LegacyCleared(Message):
    """Response to the end of a session in the reference server's API."""

    status: Literal["success"]


@dataclass(frozen=True)
class Endpoint:
    """One endpoint of the API.

    Attributes:
        method: HTTP method.
        path: Path with its parameters in braces.
        summary: What it does.
        responses: Status code to the type of the body: a model, bytes for a file, str for text,
            dict for any JSON object, None for an empty body.
        body: Type of the request body, likewise.
        public: Whether it needs no token.
    """

    method: str
    path: str
    summary: str
    responses: Mapping[int, type | None]
    body: type | None = None
    public: bool = False


def _problems(*statuses: int) -> dict[int, type | None]:
    return dict.fromkeys(statuses, Problem)


ENDPOINTS: Final = {
    "health": Endpoint(
        "GET", "/health", "Isolation layers, load and versions.", {200: HealthReport}, public=True
    ),
    "metrics": Endpoint(
        "GET", "/metrics", "Metrics for Prometheus.", {200: str, 401: Problem}, public=True
    ),
    "document": Endpoint("GET", "/openapi.json", "This document.", {200: dict}, public=True),
    "put_image": Endpoint(
        "PUT",
        "/v1/images/{digest}",
        "Upload an image under its SHA-256.",
        {204: None} | _problems(413, 422),
        bytes,
    ),
    "get_image": Endpoint(
        "GET",
        "/v1/images/{digest}",
        "Download an uploaded image.",
        {200: bytes} | _problems(404),
    ),
    "create": Endpoint(
        "POST",
        "/v1/sessions",
        "Open a session on uploaded images.",
        {201: SessionCreated} | _problems(404, 413, 422, 503),
        SessionRequest,
    ),
    "execute": Endpoint(
        "POST",
        "/v1/sessions/{id}/execute",
        "Run a cell; the cells of a session run in the order of their requests.",
        {200: CellResult} | _problems(404, 409, 413, 422, 503),
        CellRequest,
    ),
    "interrupt": Endpoint(
        "POST",
        "/v1/sessions/{id}/interrupt",
        "Interrupt the running cell, if there is one.",
        {204: None} | _problems(404),
    ),
    "evict": Endpoint(
        "POST",
        "/v1/sessions/{id}/evict",
        "Evict a session: save its state and end its process until its next cell.",
        {204: None} | _problems(404, 503),
    ),
    "close": Endpoint(
        "DELETE",
        "/v1/sessions/{id}",
        "End a session; succeeds also if there is none.",
        {204: None},
    ),
    "legacy_execute": Endpoint(
        "POST",
        "/jupyter_sandbox",
        "Run a cell with the reference server's API; the first cell creates the session.",
        {200: LegacyAnswer} | _problems(413, 422, 503),
        LegacyCell,
    ),
    "legacy_clear": Endpoint(
        "POST",
        "/clear_session",
        "End a session with the reference server's API.",
        {200: LegacyCleared} | _problems(413, 422),
        LegacySession,
    ),
}
"""Name of the handler to its endpoint."""

_PARAMETERS = {
    "digest": {"type": "string", "pattern": _DIGEST},
    "id": {"type": "string", "minLength": 1},
}
_DESCRIPTIONS = {
    200: "Success.",
    201: "Created.",
    204: "Success; the response has no body.",
    401: "The bearer token is missing or wrong.",
    404: "Not found, or ended.",
    409: "The cell has run already.",
    413: "The request body is too large.",
    415: "The request has another content type.",
    422: "The request is invalid.",
    503: "The server cannot serve the request now.",
}
_BODIES: Final[dict[type, dict[str, Any]]] = {
    bytes: {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    str: {"text/plain": {"schema": {"type": "string"}}},
    dict: {"application/json": {"schema": {"type": "object"}}},
}


def document(version: str) -> dict[str, Any]:
    """Return the OpenAPI document of the API."""
    bodies = [body for one in ENDPOINTS.values() for body in (one.body, *one.responses.values())]
    models = {body for body in bodies if body is not None and issubclass(body, Message)}
    _, schemas = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for handler, endpoint in ENDPOINTS.items():
        responses = dict(endpoint.responses)
        operation: dict[str, Any] = {"operationId": handler, "summary": endpoint.summary}
        if endpoint.body is not None:
            responses |= _problems(415)
        if not endpoint.public:
            operation["security"] = [{"token": []}]
            responses |= _problems(401)
        operation["responses"] = {
            str(status): {"description": _DESCRIPTIONS[status]} | _content(body)
            for status, body in responses.items()
        }
        if endpoint.body is not None:
            operation["requestBody"] = {"required": True} | _content(endpoint.body)
        if names := re.findall(r"{(\w+)}", endpoint.path):
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": _PARAMETERS[name]}
                for name in names
            ]
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "DeepEyes code sandbox", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _content(body: type | None) -> dict[str, Any]:
    """Return the ``content`` of a request or response; nothing for an empty body."""
    if body is None:
        return {}
    reference = {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}
    content = _BODIES.get(body, {"application/json": reference})
    return {"content": content | ({MSGPACK: {}} if body is CellResult else {})}
