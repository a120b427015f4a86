"""The OpenAI API over any engine, as an ASGI application.

POST /v1/chat/completions, /v1/completions    GET /v1/models, /v1/models/NAME
POST /tokenize, /detokenize (as vLLM)         GET /health, /version, /metrics
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

import tunesmith
from tunesmith.serve.ask import Engine
from tunesmith.serve.catalog import Catalog, Model
from tunesmith.serve.customers import Customers, no_such_model
from tunesmith.serve.http import chat, completions, tokens
from tunesmith.serve.http.errors import Problem, guarded, http_error
from tunesmith.serve.http.service import DRAIN_SECONDS, Service
from tunesmith.serve.metrics import Metrics


def make_app(
    engine: Engine,
    catalog: Catalog,
    customers: Customers,
    metrics: Metrics,
    admin: Sequence[BaseRoute] = (),
    *,
    origins: Sequence[str] = (),
) -> Starlette:
    """`admin`: routes that stand beside these. `origins`: web pages whose scripts may ask (CORS); none unless said.

    `app.state.service.draining = True` lets no request in any more; those that are in go on.
    """
    service = Service(engine, catalog, customers, metrics)
    table: list[tuple[str, str, Callable[[Request], Any]]] = [
        ("POST", "/v1/chat/completions", chat.endpoint(service)),
        ("POST", "/v1/completions", completions.endpoint(service)),
        ("GET", "/v1/models", functools.partial(_models, service)),
        ("GET", "/v1/models/{name:path}", functools.partial(_model, service)),
        ("POST", "/tokenize", functools.partial(tokens.tokenize, service)),
        ("POST", "/detokenize", functools.partial(tokens.detokenize, service)),
        ("GET", "/health", functools.partial(_health, service)),
        ("GET", "/version", _version),
        ("GET", "/metrics", functools.partial(_metrics, service)),
    ]
    routes = [Route(path, guarded(work), methods=[method]) for method, path, work in table]
    cors = [Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"])] if origins else []
    app = Starlette(routes=[*routes, *admin], middleware=cors, exception_handlers={HTTPException: http_error})
    app.state.service = service
    return app


async def _models(service: Service, request: Request) -> Response:
    sees = service.customers.sees(request.headers.get("authorization"))
    found = [_told(service, model) for model in service.catalog.every() if sees(model.name)]
    return JSONResponse({"object": "list", "data": found})


async def _model(service: Service, request: Request) -> Response:
    sees, name = service.customers.sees(request.headers.get("authorization")), request.path_params["name"]
    model = service.catalog.find(name)
    if model is None or not sees(name):
        raise no_such_model(name)
    return JSONResponse(_told(service, model))


def _told(service: Service, model: Model) -> dict[str, Any]:
    try:
        context = service.engine.context(model.name)
    except LookupError:  # it is just leaving
        context = None
    about = {"id": model.name, "object": "model", "created": model.created, "owned_by": "tunesmith"}
    parent = model.base if model.base != model.name else ""
    return about | {"parent": parent or None, "max_model_len": context} | {key: model.facts[key] for key in model.facts if key not in about}


async def _health(service: Service, request: Request) -> Response:
    """For whoever spreads requests over servers: 503 from the moment on at which this one ends."""
    if service.draining:
        raise Problem(503, "The server is ending.", code="draining", retry_after=DRAIN_SECONDS)
    return JSONResponse({"status": "ok"})


async def _version(request: Request) -> Response:
    return JSONResponse({"version": tunesmith.__version__})


async def _metrics(service: Service, request: Request) -> Response:
    if not service.customers.is_open:  # who else is served, and how much, is no customer's business
        service.customers.administers(request.headers.get("authorization"))
    return PlainTextResponse(service.metrics.text(), media_type=service.metrics.content_type)
