"""The official `openai` client works unchanged: every check of `tests/serve/conformance.py`, over every kind of engine."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.conformance import CHECKS, Served, served
from tests.serve.dreaming import DreamEngine
from tests.serve.http.talking import app_of, tokenizer_of
from tests.templates import TEMPLATES
from tunesmith.serve.builtin.engine import Builtin
from tunesmith.serve.catalog import Catalog, Model
from tunesmith.serve.customers import Customers
from tunesmith.serve.http.app import make_app
from tunesmith.serve.metrics import Metrics
from tunesmith.tuned import open_tuned


@pytest.fixture(scope="module", params=["qwen2.5", "mistral-v3"])
def dreaming(request: pytest.FixtureRequest) -> Iterator[Served]:
    family: str = request.param
    engine = DreamEngine(tokenizer_of(family), ("base", "poet"), pace=0.002)
    try:
        with served(app_of(engine, family)) as url:
            yield Served(url, ("base", "poet"), running=lambda: engine.figures()["running"])
    finally:
        engine.close(5)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_engine_of_the_tests(check, dreaming):
    check(dreaming)


@pytest.fixture(scope="module")
def builtin(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tiny model whose template writes tools."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATES["qwen2.5"], encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}), encoding="utf-8")  # words are bytes
    opened = open_tuned(str(folder), dtype="float32", device="cpu")
    engine = Builtin(opened.base, opened.located, base_name="tiny", cache_tokens=8192)
    try:
        app = make_app(engine, Catalog(Model("tiny", opened.renderer, base="tiny")), Customers(), Metrics(engine.figures))
        with served(app) as url:
            yield Served(url, ("tiny",), running=lambda: engine.figures()["running"])
    finally:
        engine.close(0)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_builtin_engine(check, builtin):
    check(builtin)
