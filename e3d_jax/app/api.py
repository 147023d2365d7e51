"""The HTTP interface: jobs as JSON, and what every request must pass."""

import asyncio
import hmac
from collections.abc import AsyncIterator
from typing import Any

import fastapi
import fastapi.exceptions
import fastapi.responses
from fastapi import sse

from e3d_jax import __version__
from e3d_jax.app import jobs, pictures, schema

COOKIE = "e3d_token"
MAX_BODY = schema.MAX_PICTURES * schema.MAX_BYTES * 4 // 3 + 100_000  # base64 has 4 characters for 3 bytes
TOO_LARGE = f"the request has more than {MAX_BODY // 10**6} MB; send fewer or smaller pictures"
# Addresses at which Gradio would fetch others.
FETCHING = ("/gradio_api/file=http", "/gradio_api/proxy=")
HEARTBEAT = 10.0  # seconds between repetitions of the same progress, so that proxies keep the connection


def make_app(queue: jobs.Jobs, token: str | None = None) -> fastapi.FastAPI:
    """Return the application that serves a queue.

    Args:
      queue: of jobs.
      token: what requests must have as a bearer token, as a cookie, or in the address as ``?token=``; None lets all in.
    """
    # Its pages of documentation would load scripts from elsewhere.
    app = fastapi.FastAPI(
        title="e3d_jax", version=__version__, openapi_url="/api/openapi.json", docs_url=None, redoc_url=None
    )
    refusals: dict[int | str, dict[str, Any]] = {
        code: {"model": schema.Refusal} for code in (401, 404, 413, 422, 429, 507)
    }
    routes = fastapi.APIRouter(prefix="/api", responses=refusals)

    @routes.post("/jobs", status_code=202)
    def submit(request: schema.Request) -> schema.Job:
        """Put a job into the queue."""
        return queue.get(queue.submit(request))

    @routes.get("/jobs/{job}")
    def get(job: str) -> schema.Job:
        """Return where a job is, and the names of its files."""
        return queue.get(job)

    @routes.get("/jobs/{job}/events", response_class=sse.EventSourceResponse)
    async def events(job: str) -> AsyncIterator[schema.Progress]:
        """Send where a job is, whenever that changes, until it ends (server-sent events)."""
        version = -1
        while True:
            progress, version = await asyncio.to_thread(queue.wait, job, version, HEARTBEAT)
            yield progress
            if progress.state in ("done", "failed", "cancelled"):
                return

    @routes.delete("/jobs/{job}", status_code=204)
    def cancel(job: str) -> None:
        """Stop a job, or remove its result."""
        queue.cancel(job)

    @routes.get("/jobs/{job}/files/{name:path}", response_class=fastapi.responses.FileResponse)
    def file(job: str, name: str) -> fastapi.responses.FileResponse:
        """Return a file of a job."""
        return fastapi.responses.FileResponse(queue.file(job, name), headers={"Cache-Control": "no-cache"})

    @app.exception_handler(pictures.Refused)
    def refuse(request: fastapi.Request, error: pictures.Refused) -> fastapi.responses.JSONResponse:
        return fastapi.responses.JSONResponse({"detail": str(error)}, error.status)

    @app.exception_handler(fastapi.exceptions.RequestValidationError)
    def refuse_form(request: fastapi.Request, error: fastapi.exceptions.RequestValidationError):
        first = error.errors()[0]
        said = schema.sentence(first | {"loc": first["loc"][1:]})
        return fastapi.responses.JSONResponse({"detail": f"{said}; see /api/openapi.json"}, 422)

    app.include_router(routes)
    app.add_middleware(Gate, token=token)
    return app


class Gate:
    """Lets a request pass to an application if it has the token and its body is not too large.

    Args:
      app: the application.
      token: see :func:`make_app`.
    """

    def __init__(self, app: Any, token: str | None):
        self._app, self._token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request."""
        if scope["type"] == "http":
            request = fastapi.Request(scope)
            if (answer := self._answer(request)) is not None:
                return await answer(scope, receive, send)
            receive = _limited(receive)
        await self._app(scope, receive, send)

    def _answer(self, request: fastapi.Request) -> fastapi.Response | None:
        """Return what a request gets that does not pass."""
        if int(request.headers.get("content-length", 0)) > MAX_BODY:
            return fastapi.responses.JSONResponse({"detail": TOO_LARGE}, 413)
        if request.url.path.startswith(FETCHING):
            return fastapi.responses.JSONResponse({"detail": "this server fetches nothing for others"}, 403)
        if self._token is None:
            return None
        asked = request.query_params.get("token", "")
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        given = (bearer, request.cookies.get(COOKIE, ""), asked)
        if not any(hmac.compare_digest(each.encode(), self._token.encode()) for each in given):
            return fastapi.responses.JSONResponse(
                {"detail": "this server needs its token: as Authorization: Bearer TOKEN, or open /?token=TOKEN"}, 401
            )
        if not asked or request.method != "GET":
            return None
        # The token moves from the address, which ends up in histories, to a cookie.
        rest = request.url.remove_query_params("token")
        answer = fastapi.responses.RedirectResponse(f"{rest.path}?{rest.query}".rstrip("?"), 303)
        answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", secure=rest.scheme == "https")
        return answer


def _limited(receive: Any) -> Any:
    """Return a function that receives a body, and refuses one that is too large as soon as it is."""
    received = 0

    async def limited() -> Any:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY:
            raise fastapi.HTTPException(413, TOO_LARGE)
        return message

    return limited
