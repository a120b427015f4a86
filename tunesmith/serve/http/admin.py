"""Adapters come and go while the server runs, and names in the registry are pointed to versions.

    GET    /v1/adapters                      what is loaded
    POST   /v1/adapters                      {"name", "path"} or {"name", "version"} (of the registry); a name that is taken is exchanged
    DELETE /v1/adapters/NAME
    POST   /v1/load_lora_adapter             {"lora_name", "lora_path"[, "load_inplace"]}, /v1/unload_lora_adapter {"lora_name"}: as vLLM
    GET    /v1/registry, /v1/registry/NAME   names; versions and history of one
    POST   /v1/registry/NAME/versions        {"path"}: register
    POST   /v1/registry/NAME/point           {"version"} or {"shares": {"3": 0.9, "4": 0.1}}, {"note"}; what NAME answers with from now on
    POST   /v1/registry/NAME/roll_back       what NAME meant before

For keys with `admin: true`. Without keys: for this machine itself, and not for web pages open on it (they send `Origin`) nor through a
proxy. Paths lie in the folders that the operator allowed, whatever links they are written with: a key is no way to this machine's files.
"""

import ipaddress
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tunesmith.serve.ask import Engine
from tunesmith.serve.catalog import Catalog, Model
from tunesmith.serve.customers import Customers
from tunesmith.serve.http.errors import Endpoint, Problem, bad, guarded
from tunesmith.serve.loading import Loading, answer_with, forget, serve, serve_version
from tunesmith.serve.registry import Registry, Version

LONGEST = 65536  # bytes of a request
PROXIED = ("origin", "forwarded", "x-forwarded-for", "x-real-ip")  # headers of a request that does not come straight from this machine


@dataclass(frozen=True, slots=True)
class Desk:
    """What managing works on."""

    loading: Loading
    customers: Customers
    registry: Registry | None
    folders: tuple[Path, ...]


Work = Callable[[Desk, dict[str, str], dict[str, Any]], Any]  # (desk, parts of the path, body) -> what is answered


def routes(
    engine: Engine,
    catalog: Catalog,
    customers: Customers,
    registry: Registry | None,
    opened: Callable[[str, Path], Model],
    folders: Sequence[Path] = (),
) -> list[Route]:
    """`opened` as `Loading` has it. `folders` are those from which adapters may be loaded; none: only versions of the registry."""
    desk = Desk(Loading(engine, catalog, opened), customers, registry, tuple(folder.expanduser().resolve() for folder in folders))
    table: list[tuple[str, str, Work]] = [
        ("GET", "/v1/adapters", _listed),
        ("POST", "/v1/adapters", _load),
        ("DELETE", "/v1/adapters/{name:path}", _unload),
        ("POST", "/v1/load_lora_adapter", _load_as_vllm),
        ("POST", "/v1/unload_lora_adapter", _unload_as_vllm),
        ("GET", "/v1/registry", _names),
        ("GET", "/v1/registry/{name}", _told),
        ("POST", "/v1/registry/{name}/versions", _register),
        ("POST", "/v1/registry/{name}/point", _point),
        ("POST", "/v1/registry/{name}/roll_back", _roll_back),
    ]
    return [Route(path, _endpoint(desk, work), methods=[method]) for method, path, work in table]


def _endpoint(desk: Desk, work: Work) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        _check(request, desk.customers)
        try:
            body = await _body(request) if request.method == "POST" else {}
            result = await run_in_threadpool(work, desk, request.path_params, body)
        except (KeyError, IndexError):  # mistakes of ours, and LookupErrors too
            raise
        except LookupError as error:
            raise Problem(404, str(error), code="not_found") from None
        except ValueError as error:
            raise bad(str(error)) from None
        return PlainTextResponse(result) if isinstance(result, str) else JSONResponse(result)

    return guarded(endpoint)


def _check(request: Request, customers: Customers) -> None:
    """Raises Refused or Problem for whoever may not manage this server."""
    if not customers.is_open:
        customers.administers(request.headers.get("authorization"))
    elif not _is_local(request) or any(header in request.headers for header in PROXIED):
        why = "Without keys the server is managed from its own machine only; --api-key or --customers let others manage it."
        raise Problem(403, why, code="not_allowed")


def _is_local(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


async def _body(request: Request) -> dict[str, Any]:
    """Raises Problem (413), ValueError."""
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > LONGEST:
            raise Problem(413, f"The request is longer than {LONGEST} bytes.", code="request_too_large")
    try:
        body = json.loads(read or b"{}")
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise ValueError("the request is a JSON object")
    return body


def _listed(desk: Desk, parts: dict[str, str], body: dict[str, Any]) -> Any:
    return {"object": "list", "data": [_shown(model) for model in desk.loading.catalog.every() if model.folder is not None]}


def _load(desk: Desk, parts: dict[str, str], body: dict[str, Any]) -> Any:
    name = _text(body, "name")
    if "version" in body:
        if "path" in body:
            raise ValueError("path and version exclude each other")
        registry = _registry(desk)
        version = registry.resolve(f"{name}@{_number(body['version'], 'version')}")
        return _shown(serve_version(desk.loading, registry, name, version))
    return _shown(serve(desk.loading, name, _allowed(desk, _text(body, "path"))))


def _load_as_vllm(desk: Desk, parts: dict[str, str], body: dict[str, Any]) -> str:
    name, folder = _text(body, "lora_name"), _allowed(desk, _text(body, "lora_path"))
    if desk.loading.catalog.find(name) is not None and body.get("load_inplace") is not True:
        raise ValueError(f"the adapter {name!r} is loaded already; unload it first, or send load_inplace: true")
    serve(desk.loading, name, folder)
    return f"Success: LoRA adapter '{name}' added successfully."


def _unload(desk: Desk, parts: dict[str, str], body: dict[str, Any]) -> Any:
    forget(desk.loading, parts["name"])
    return {"id": parts["name"], "object": "model", "deleted": True}


def _unload_as_vllm(desk: Desk, parts: dict[str, str], body: dict[str, Any]) -> str:
    name = _text(body, "lora_name")
    forget(desk.loading, name)
    return f"Success: LoRA adapter '{name}' removed successfully."


def _names(desk: Desk, parts: dict[str, str], body: dict[str, Any]) -> Any:
    registry = _registry(desk)
    return {"object": "list", "data": [{"name": name, "shares": _shares(registry, name)} for name in registry.names()]}


def _told(desk: Desk, parts: dict[str, str], body: dict[str, Any]) -> Any:
    registry, name = _registry(desk), parts["name"]
    versions = registry.versions(name)
    if not versions:
        raise LookupError(f"{name} is not in the registry")
    history = [{"time": each.time, "shares": each.shares, "note": each.note} for each in registry.history(name)]
    return {"name": name, "shares": _shares(registry, name), "versions": [_version(each) for each in versions], "history": history}


def _register(desk: Desk, parts: dict[str, str], body: dict[str, Any]) -> Any:
    return _version(_registry(desk).register(parts["name"], _allowed(desk, _text(body, "path"))))


def _point(desk: Desk, parts: dict[str, str], body: dict[str, Any]) -> Any:
    registry, name, note = _registry(desk), parts["name"], str(body.get("note", ""))
    if ("version" in body) == ("shares" in body):
        raise ValueError("give either version or shares")
    to: Any = body.get("shares")
    if "version" in body:
        to = _number(body["version"], "version")
    elif not isinstance(to, dict) or not all(str(key).isdecimal() and isinstance(share, int | float) for key, share in to.items()):
        raise ValueError('shares: {"version": share, ...}, as {"3": 0.9, "4": 0.1}')
    shares: dict[int, float] = {to: 1.0} if isinstance(to, int) else {int(version): float(share) for version, share in to.items()}
    answer_with(desk.loading, registry, name, shares)  # first: what cannot be served is not pointed to
    return {"name": name, "shares": registry.point(name, shares, note).shares}


def _roll_back(desk: Desk, parts: dict[str, str], body: dict[str, Any]) -> Any:
    registry, name = _registry(desk), parts["name"]
    answer_with(desk.loading, registry, name, registry.before(name).shares)
    return {"name": name, "shares": registry.roll_back(name, str(body.get("note", ""))).shares}


def _allowed(desk: Desk, path: str) -> Path:
    """The folder that a request names. Raises ValueError, in the same words whether there is something at that place or not."""
    try:
        folder = Path(path).resolve()
    except (OSError, ValueError, RuntimeError):  # a zero byte, a loop of links
        raise ValueError("path: not a path") from None
    if not any(folder == allowed or allowed in folder.parents for allowed in desk.folders):
        places = ", ".join(map(str, desk.folders)) or "none"
        raise ValueError(f"path: not below a folder that adapters may come from ({places}); the server's --adapters-from names them")
    if not folder.is_dir():
        raise ValueError(f"path: there is no folder {folder}")
    return folder


def _registry(desk: Desk) -> Registry:
    if desk.registry is None:
        raise LookupError("this server has no registry; start it with --registry FILE")
    return desk.registry


def _shown(model: Model) -> dict[str, Any]:
    """As /v1/models shows it."""
    root = str(model.folder) if model.folder else None
    told = {"id": model.name, "object": "model", "created": model.created, "owned_by": "tunesmith", "root": root, "parent": model.base}
    return told | {"facts": model.facts}


def _version(version: Version) -> dict[str, Any]:
    told = {"name": version.name, "version": version.version, "folder": str(version.folder), "registered": version.registered}
    return told | {"weights_sha256": version.weights_sha256, "gone": not version.folder.is_dir()} | version.facts


def _shares(registry: Registry, name: str) -> dict[int, float]:
    history = registry.history(name)
    return history[-1].shares if history else {}


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}: a text is needed")
    return value.strip()


def _number(value: Any, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key}: a whole number from 1 is needed")
    return value
