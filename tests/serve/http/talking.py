"""What the tests of the HTTP side share: an app over the fake engine, and tokenizers of several families."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import httpx2
from starlette.applications import Starlette

from tests.serve.fake_engine import Step, tokens_of
from tests.templates import make_tokenizer
from tunesmith.data.rendering.render import Renderer
from tunesmith.serve.ask import Ask, Engine
from tunesmith.serve.catalog import Catalog, Model
from tunesmith.serve.customers import Customers
from tunesmith.serve.http.app import make_app
from tunesmith.serve.metrics import Metrics

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
    },
}


@cache
def tokenizer_of(family: str) -> Any:
    return make_tokenizer(family)


@cache
def renderer_of(family: str) -> Renderer:
    return Renderer(tokenizer_of(family))


def says(family: str, *texts: str | float) -> Callable[[Ask], list[Step]]:
    """A script: these texts in order, with pauses of so many seconds."""

    def script(ask: Ask) -> list[Step]:
        steps: list[Step] = []
        for text in texts:
            steps += [text] if isinstance(text, float) else tokens_of(tokenizer_of(family), text)
        return steps

    return script


def app_of(
    engine: Engine, family: str = "qwen2.5", adapters: Iterable[str] = ("poet",), customers: Customers | None = None, **more: Any
) -> Starlette:
    catalog = Catalog(Model("base", renderer_of(family), base="base", created=1))
    for name in adapters:
        catalog.add(Model(name, renderer_of(family), base="base", created=2, facts={"method": "lora"}))
    customers = customers or Customers()
    metrics = Metrics(engine.figures, lambda name: catalog.find(name) is not None)
    return make_app(engine, catalog, customers, metrics, **more)


def client_of(app: Starlette) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test", timeout=10)
