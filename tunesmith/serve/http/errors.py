"""What goes wrong in a request, in the shape that OpenAI's clients read:

{"error": {"message": "...", "type": "invalid_request_error", "param": "temperature", "code": null}}
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tunesmith.data.sample import RowError
from tunesmith.errors import UserError
from tunesmith.serve.ask import Full
from tunesmith.serve.customers import Refused

log = logging.getLogger("tunesmith.serve")
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}  # other 4xx: invalid_request_error
RETRY_SECONDS = 1  # when a place in the queue is free is not known
LEFT = 499  # nobody reads it: the client left


class Problem(Exception):
    """A request that fails with a status. `param` names the field of the body."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None):
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after
        super().__init__(message)


def bad(message: str, param: str | None = None, code: str | None = None) -> Problem:
    """A 400."""
    return Problem(400, message, param=param, code=code)


def problem_of(error: Exception) -> Problem:
    """Whatever was raised, as what the client is told; of a mistake of ours no more than that there was one."""
    match error:
        case Problem():
            return error
        case Refused():
            return Problem(error.status, error.message, code=error.code, retry_after=error.retry_after)
        case Full():
            return Problem(429, "The server is busy: its queue is full.", code="rate_limit_exceeded", retry_after=RETRY_SECONDS)
        case ValidationError():
            return _misfits(error)
        case ClientDisconnect():
            return Problem(LEFT, "The client left.")
        case RowError() | UserError():
            return bad(str(error))
        case HTTPException():
            return Problem(error.status_code, str(error.detail))
    log.error("a request failed", exc_info=error)
    return Problem(500, "The server made a mistake; its log says which. The request may be sent again.", code="internal_error")


def _misfits(error: ValidationError) -> Problem:
    """All of them in one message; `param` is the first's."""
    found = []
    for each in error.errors(include_url=False, include_input=False):
        reason = each["msg"].removeprefix("Value error, ")
        found.append((_path(each["loc"]), reason))
    return bad("; ".join(dict.fromkeys(f"{path}: {reason}" if path else reason for path, reason in found)), found[0][0] or None)


def _path(parts: tuple[int | str, ...]) -> str:
    """`messages[2].content`; the names that a union gives its members are left out."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool", "list", "dict", "constrained"):
            path += f".{part}" if path else part
    return path


def body(problem: Problem) -> dict[str, Any]:
    kind = KINDS.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}}


def response(problem: Problem) -> Response:
    headers = {}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(problem), problem.status, headers)


Endpoint = Callable[[Request], Awaitable[Any]]


def guarded(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose errors are answered in OpenAI's shape; the server goes on."""

    async def answer(request: Request) -> Any:
        try:
            return await endpoint(request)
        except Exception as error:
            return response(problem_of(error))

    return answer


async def http_error(request: Request, error: Exception) -> Response:
    """For Starlette: no such route, or no such method on it."""
    assert isinstance(error, HTTPException)
    said = {404: f"There is no {request.url.path} here.", 405: f"{request.method} is not for {request.url.path}."}
    return response(Problem(error.status_code, said.get(error.status_code, str(error.detail))))
