"""The HTTP interface: facts, probes, metrics, files. The walk itself goes over the WebSocket."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Header, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Match

from worldline.schema import WorldlineError
from worldline.serve import shapes
from worldline.serve.lobby import Lobby, Visit
from worldline.serve.metrics import exposition, registry_of
from worldline.serve.pictures import picture_of
from worldline.serve.protocol import FILE_ID
from worldline.serve.spool import TYPES
from worldline.serve.walk import UPLOADS

CLIENT = Path(__file__).parent / "client"
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": shapes.Refusal} for code in (400, 401, 403, 404, 411, 413, 421, 422, 429, 503)
}
Secret = Annotated[str, Header(alias="worldline-session", max_length=64, description="the resume secret of a session")]


class Refused(HTTPException):
    """A refusal with a body of `shapes.Refusal`."""

    def __init__(self, status: int, code: str, message: str, retry: str = "fix", after: float | None = None) -> None:
        headers = {"Retry-After": str(int(after))} if after else None
        super().__init__(status, message, headers)
        self.body = {"error": {"code": code, "message": message, "retry": retry, "retry_after_s": after}}


async def refused(request: Request, error: Exception) -> Response:
    """How every refusal is sent."""
    if isinstance(error, Refused):
        return JSONResponse(error.body, error.status_code, error.headers)
    if isinstance(error, StarletteHTTPException):
        fault = shapes.Fault(code="request", message=str(error.detail), retry="fix")
        headers = dict(error.headers or {})
        if error.status_code == 405:  # starlette names the methods of one route; a path may have several
            headers["Allow"] = ", ".join(sorted(_methods(request)))
        return JSONResponse({"error": fault.model_dump()}, error.status_code, headers)
    first = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": "not valid"}
    said = f"{'.'.join(str(x) for x in first['loc'])}: {first['msg']}"
    return JSONResponse({"error": shapes.Fault(code="request", message=said, retry="fix").model_dump()}, 422)


def _methods(request: Request) -> set[str]:
    """What may be asked of a path."""
    found = (r for r in request.app.routes if r.matches(request.scope)[0] is not Match.NONE)
    return {method for route in found for method in getattr(route, "methods", None) or ()}


def routes(lobby: Lobby, codec: Executor) -> APIRouter:
    """All of them. codec: where pictures are decoded."""
    api = APIRouter(responses=REFUSALS)
    registry = registry_of(lobby)

    def world() -> Any:
        if lobby.facts is None:
            failed = lobby.failed
            if failed is not None:
                raise Refused(503, "loading", f"the world could not be loaded: {failed.message}", "never")
            raise Refused(503, "loading", "the world is loading", "later", 2.0)
        return lobby.facts

    def visit_of(secret: str) -> Visit:
        visit = lobby.visits.get(secret)
        if visit is None:
            raise Refused(404, "session", "no such session; it has ended, or the secret is wrong", "never")
        return visit

    @api.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(CLIENT / "index.html", headers={"Cache-Control": "no-cache"})

    @api.get("/healthz", response_model=shapes.Health, tags=["probes"])
    async def health() -> dict[str, Any]:
        """The process answers."""
        return {"status": "ok"}

    @api.get("/readyz", response_model=shapes.Readiness, responses={503: {"model": shapes.Readiness}}, tags=["probes"])
    async def ready(response: Response) -> dict[str, Any]:
        """Whether walks can begin: 503 while the world loads, where it failed to, and while the server goes down."""
        if not lobby.ready:
            response.status_code = 503
        seats = [
            {"stage": p.seat.state.stage, "message": p.seat.state.message, "taken": p.visit is not None}
            for p in lobby.places
        ]
        return {"ready": lobby.ready, "seats": seats}

    @api.get("/metrics", tags=["probes"], response_class=Response)
    async def metrics() -> Response:
        """Prometheus text format."""
        return Response(exposition(registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    @api.get("/api/status", response_model=shapes.Status, tags=["world"])
    async def status() -> dict[str, Any]:
        """Seats and queue."""
        taken = len(lobby.live)
        eta = lobby.eta()
        waiting = sum(v.connection is not None for v in lobby.queue)
        return {
            "seats": len(lobby.places), "free": len(lobby.places) - taken, "waiting": waiting,
            "eta_s": None if eta is None else eta * (waiting + 1) if taken == len(lobby.places) else 0.0,
        }  # fmt: skip

    @api.get("/api/world", response_model=shapes.World, tags=["world"])
    async def facts() -> dict[str, Any]:
        """The world's facts."""
        return dict(world().spec)

    @api.get("/api/starts", response_model=list[shapes.Start], tags=["world"])
    async def starts() -> list[dict[str, Any]]:
        """Places to begin from."""
        return list(world().hello["starts"])

    @api.get("/api/starts/{name}.jpg", tags=["world"], response_class=Response,
             responses={200: {"content": {"image/jpeg": {}}}})  # fmt: skip
    async def thumbnail(name: str) -> Response:
        """A start's picture."""
        thumbnails = world().thumbnails
        if name not in thumbnails:
            raise Refused(404, "request", f"no start {name[:40]!r}")
        return Response(thumbnails[name], media_type="image/jpeg", headers={"Cache-Control": "no-cache"})

    @api.get("/api/session", response_model=shapes.SessionState, tags=["session"])
    async def session(secret: Secret) -> dict[str, Any]:
        """The own session."""
        visit = visit_of(secret)
        position = 1 + list(lobby.queue).index(visit) if visit in lobby.queue else None
        return {"session": visit.session, "state": visit.state, "connected": visit.connection is not None,
                "position": position}  # fmt: skip

    @api.delete("/api/session", status_code=204, tags=["session"])
    async def leave(secret: Secret) -> Response:
        """Give up the seat, or the place in the queue."""
        lobby.end(visit_of(secret), "left", "you have left", 1000)
        return Response(status_code=204)

    @api.post(
        "/api/uploads", status_code=201, response_model=shapes.Uploaded, tags=["session"],
        openapi_extra={"requestBody": {"required": True, "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}}}},
    )  # fmt: skip
    async def upload(
        request: Request, kind: Annotated[Literal["image", "session"], Query()], secret: Secret
    ) -> dict[str, Any]:
        """A start picture (JPEG, PNG, WebP), or a saved walk, as the raw body."""
        visit = visit_of(secret)
        body = await _body(request, UPLOADS[kind])
        hello = world().hello
        loop = asyncio.get_running_loop()
        try:
            path = lobby.folder(visit).new({"image": "png", "session": "safetensors"}[kind])
            if kind == "image":
                image = await loop.run_in_executor(codec, picture_of, body, hello["height"], hello["width"])
                await loop.run_in_executor(codec, _write_png, image, path)
            else:
                await loop.run_in_executor(codec, path.write_bytes, body)
        except WorldlineError as error:
            raise Refused(400, "request", str(error)) from error
        lobby.counters["uploads"] += 1
        return {"id": path.stem, "kind": kind, "bytes": path.stat().st_size}

    @api.get("/api/files/{file}", tags=["session"], response_class=FileResponse,
             responses={200: {"content": {t: {} for t in TYPES.values()}}})  # fmt: skip
    async def file(file: str) -> FileResponse:
        """A recording or a saved walk. The id is the right to it."""
        path = lobby.spool.find(file) if FILE_ID.fullmatch(file) else None
        if path is None:
            raise Refused(404, "request", "no such file; files are gone some minutes after their session", "never")
        name = f"worldline-{file[:8]}{path.suffix}"
        headers = {"Cache-Control": "private, no-store"}
        return FileResponse(path, media_type=TYPES[path.suffix[1:]], filename=name, headers=headers)

    return api


async def _body(request: Request, limit: int) -> bytes:
    """The request's body, read no further than its limit."""
    body, read = bytearray(), 0
    async for part in request.stream():
        read += len(part)
        if read <= limit:
            body += part
        elif read > 2 * limit:
            break  # a body a little too long is read to its end, so that its sender reads the answer
    if read > limit:
        raise Refused(413, "request", f"more than {limit} bytes; send a smaller file")
    if not body:
        raise Refused(400, "request", "an empty body; expected the file itself")
    return bytes(body)


def _write_png(image: np.ndarray, path: Path) -> None:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    path.write_bytes(out.getvalue())
