"""The HTTP interface: routes, status codes, their description for OpenAPI."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deformable_detr.inference.predictor import Predictor
from deformable_detr.serving.admission import AdmitRequests
from deformable_detr.serving.limits import Limits, RefusedError
from deformable_detr.serving.metrics import CountRequests
from deformable_detr.serving.responses import DetectResponse, ErrorResponse, Health, Settings
from deformable_detr.serving.service import DetectionService, drawing, milliseconds
from deformable_detr.serving.uploads import FIELD
from deformable_detr.version import __version__
from deformable_detr.visualize.pages.page import render

logger = logging.getLogger(__name__)

_DESCRIPTION = "Finds objects in images. Send one as the body of the request, or one or more in a form."
_ERRORS = {
    400: "The body is broken.",
    408: "The body came too slowly.",
    413: "Too many bytes, pixels or images.",
    415: "The body is of a type that cannot be an image.",
    422: "Not an image, a damaged one, or a wrong setting.",
    500: "The server failed; its log says why.",
    503: "The server is busy; Retry-After says when to come again.",
    504: "Not done in time.",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "type": "object",
    "properties": {FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}},
    "required": [FIELD],
    "additionalProperties": False,
}
_BODY = {
    "description": f"An image, of these or any other image type; or a form with one or more files in the field `{FIELD}`.",
    "required": True,
    "content": {"multipart/form-data": {"schema": _FORM}, "image/jpeg": _BINARY, "image/png": _BINARY},
}


def create_app(
    predictor: Predictor,
    *,
    name: str = "detector",
    limits: Limits | None = None,
    batch_size: int = 4,
    max_wait: float = 0.005,
    num_threads: int = 2,
    top_k: int | None = None,
) -> FastAPI:
    """The server as an ASGI application, for uvicorn or any other ASGI server.

    Args:
        predictor: the detector; nothing else may use it while the server runs.
        name: of the model, as the responses give it.
        limits: what clients may ask for.
        batch_size: images per forward pass, at most.
        max_wait: seconds that an image waits for company in its batch, at most.
        num_threads: threads that decode and draw.
        top_k: most detections per image where a client does not say; None: the model's own number.
    """
    service = DetectionService(
        predictor, limits=limits or Limits(), batch_size=batch_size, max_wait=max_wait, num_threads=num_threads, top_k=top_k
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield

    app = FastAPI(
        title="Deformable DETR", summary=name, description=_DESCRIPTION, version=__version__, docs_url=None, redoc_url=None,
        lifespan=lifespan,
    )  # fmt: skip
    _add_detection(app, service, name)
    _add_state(app, service, name)
    _add_errors(app)
    app.add_middleware(AdmitRequests, places=service.places, paths=frozenset(("/detect", "/draw")))
    app.add_middleware(HeadAndOptions)
    app.add_middleware(CountRequests, metrics=service.metrics, paths=frozenset(_METHODS))
    return app


_METHODS = dict.fromkeys(("/", "/health", "/metrics", "/docs", "/openapi.json"), "GET") | {"/detect": "POST", "/draw": "POST"}


def _add_detection(app: FastAPI, service: DetectionService, name: str) -> None:
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse, "description": text} for status, text in _ERRORS.items()
    }
    body = {"requestBody": _BODY}

    found = {"description": "What was found."}

    @app.post("/detect", response_model=DetectResponse, responses={200: found, **errors}, openapi_extra=body)
    async def detect(request: Request, settings: Annotated[Settings, Query()]) -> Response:
        """Find the objects in one image or in several, as JSON."""
        began = time.perf_counter()
        served = await service.detect(request, settings)

        def to_json() -> str:
            images = [one.response() for one in served]
            seconds = time.perf_counter() - began
            return DetectResponse(model=name, images=images, total_ms=milliseconds(seconds)).model_dump_json()

        return Response(await service.in_thread(to_json), media_type="application/json")

    drawn = {"description": "The image with boxes and labels.", "content": {"image/jpeg": _BINARY, "image/png": _BINARY}}
    unacceptable = {"model": ErrorResponse, "description": "The Accept header allows neither JPEG nor PNG."}

    @app.post("/draw", response_class=Response, responses={200: drawn, 406: unacceptable, **errors}, openapi_extra=body)
    async def draw(request: Request, settings: Annotated[Settings, Query()]) -> Response:
        """Find the objects in one image and draw them on it: as JPEG, or as PNG where the Accept header prefers that.

        One image per request. If its longer side is below 480 pixels, it is enlarged by a whole factor, so that its labels can
        be read.
        """
        kind = drawing_format(request.headers.get("accept", "*/*"))
        if kind is None:
            raise RefusedError(406, "drawings are image/jpeg or image/png; the Accept header allows neither")
        (served,) = await service.detect(request, settings, most=1)
        return Response(await service.in_thread(drawing, served, kind), media_type=f"image/{kind}")


def _add_state(app: FastAPI, service: DetectionService, name: str) -> None:
    states: dict[int | str, dict[str, Any]] = {200: {"description": "Ready."}, 503: {"model": Health, "description": "Not ready."}}

    @app.get("/health", response_model=Health, responses=states)
    async def show_health() -> Response:
        """Whether the server is ready, and what it serves."""
        state = Health(
            ready=service.ready,
            model=name,
            device=str(service.predictor.device),
            precision=service.predictor.precision,
            classes=list(service.predictor.categories.names),
            batch_size=service.batch_size,
            version=__version__,
        )
        return Response(state.model_dump_json(), 200 if service.ready else 503, media_type="application/json")

    text = {"description": "The numbers.", "content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get("/metrics", response_class=Response, responses={200: text})
    async def metrics() -> Response:
        """Requests, errors, batch sizes, latencies and queue, in Prometheus' text format."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(render("server.html", title=name))

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")


def _add_errors(app: FastAPI) -> None:
    """Every error is `{"error": reason}`; internal errors are described in the log alone."""

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return _error(error.status, error.reason, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        reasons = [f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}" for item in error.errors()]
        return _error(422, "; ".join(reasons))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, f"{error.detail} ({request.method} {request.url.path})", dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return _error(500, "the server failed on this request; its log says why")  # the ASGI server logs the error


def _error(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": reason.encode("utf-8", "replace").decode()}, status, headers)


def drawing_format(accept: str) -> Any:
    """`jpeg` or `png`, whichever an Accept header prefers, JPEG where it does not care; None where it allows neither."""
    quality: dict[str, float] = {}
    for entry in (accept.strip() or "*/*").lower().split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            quality[kind] = float(weight)
        except ValueError:
            quality[kind] = 0.0
    wanted = {kind: quality.get(f"image/{kind}", quality.get("image/*", quality.get("*/*", 0.0))) for kind in ("jpeg", "png")}
    best = max(wanted, key=lambda kind: wanted[kind])
    return best if wanted[best] > 0 else None


class HeadAndOptions:
    """ASGI middleware for the methods that every path has: HEAD is GET without a body, OPTIONS names the methods."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        method = _METHODS.get(scope.get("path", ""))
        if method is not None and scope.get("method") == "OPTIONS":
            allow = "GET, HEAD, OPTIONS" if method == "GET" else "POST, OPTIONS"
            await Response(status_code=204, headers={"Allow": allow})(scope, receive, send)
        elif method == "GET" and scope.get("method") == "HEAD":
            await self.app({**scope, "method": "GET"}, receive, _without_body(send))
        else:
            await self.app(scope, receive, send)


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head
