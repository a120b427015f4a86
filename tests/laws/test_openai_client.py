"""The official `openai` client works unchanged: every check of `tests/serve/conformance.py`, over every kind of engine."""

from collections.abc import Iterator

import pytest

from tests.serve.conformance import CHECKS, Served, served
from tests.serve.dreaming import DreamEngine
from tests.serve.http.talking import app_of, tokenizer_of


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
