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
from tunesmith.data.rendering.render import Renderer
from tunesmith.export.gguf.model_file import write_model
from tunesmith.models.load import load_tokenizer
from tunesmith.serve.builtin.engine import Builtin
from tunesmith.serve.catalog import Catalog, Model
from tunesmith.serve.customers import Customers
from tunesmith.serve.external.llamacpp import LlamaCpp
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
def tiny(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose template writes tools."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATES["qwen2.5"], encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}), encoding="utf-8")  # words are bytes
    return folder


@pytest.fixture(scope="module")
def builtin(tiny: Path) -> Iterator[Served]:
    opened = open_tuned(str(tiny), dtype="float32", device="cpu")
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


@pytest.fixture(scope="module")
def llamacpp(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("xllamacpp")
    file = write_model(tiny, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "f32").file
    renderer = Renderer(load_tokenizer(tiny), stop_ids=[257])
    engine = LlamaCpp(file, {}, base_name="tiny", tokenizer=renderer.tokenizer, context=2048, max_answers=4, threads=1, seconds=60)
    try:
        app = make_app(engine, Catalog(Model("tiny", renderer, base="tiny")), Customers(), Metrics(engine.figures))
        with served(app) as url:
            yield Served(url, ("tiny",), running=lambda: engine.figures()["running"])
    finally:
        engine.close(0)


# its stream is silent about halves of characters, and this model writes little else: tests/serve/external/test_llamacpp.py asks for those
IN_WHOLE_CHARACTERS = [check for check in CHECKS if check.__name__ != "tells_probabilities"]


@pytest.mark.parametrize("check", IN_WHOLE_CHARACTERS, ids=lambda check: check.__name__)
def test_llamacpp(check, llamacpp):
    check(llamacpp)
