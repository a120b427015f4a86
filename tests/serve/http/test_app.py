"""Routes beside the two that answer: models, health, version, metrics; keys, CORS, what is not there."""

import asyncio
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import tunesmith
from tests.serve.fake_engine import FakeEngine
from tests.serve.http.talking import app_of, client_of, says
from tunesmith.serve.customers import Customers

ASKED = {"model": "poet", "messages": [{"role": "user", "content": "Hi"}]}


def call(app: Any, method: str, path: str, **more: Any) -> Any:
    async def run() -> Any:
        async with client_of(app) as client:
            return await client.request(method, path, **more)

    return asyncio.run(run())


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(says("qwen2.5", "Hello."))


def test_models(engine):
    app = app_of(engine)
    listed = call(app, "GET", "/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["base", "poet"] and listed["object"] == "list"
    told = call(app, "GET", "/v1/models/poet").json()
    assert told["parent"] == "base" and told["method"] == "lora" and told["max_model_len"] == 512 and told["object"] == "model"
    absent = call(app, "GET", "/v1/models/nobody")
    assert absent.status_code == 404 and absent.json()["error"]["code"] == "model_not_found"


def test_an_unknown_model_is_never_the_base(engine):
    for path, fields in (("/v1/chat/completions", ASKED), ("/v1/completions", {"prompt": "a"}), ("/tokenize", {"prompt": "a"})):
        answer = call(app_of(engine), "POST", path, json={**fields, "model": "nobody"})
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    assert not engine.asks


def test_keys_open_their_models_only(engine, tmp_path):
    file = tmp_path / "customers.yaml"
    file.write_text("customers:\n  - name: acme\n    key: acme-secret\n    models: [poet]\n    requests_per_minute: 2\n", encoding="utf-8")
    app = app_of(engine, customers=Customers(file))
    key = {"Authorization": "Bearer acme-secret"}
    refused = call(app, "POST", "/v1/chat/completions", json=ASKED)
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    # a body is not even read for a stranger
    assert call(app, "POST", "/v1/chat/completions", content=b"{", headers={"Authorization": "Bearer x"}).status_code == 401
    assert [model["id"] for model in call(app, "GET", "/v1/models", headers=key).json()["data"]] == ["poet"]
    assert call(app, "GET", "/v1/models/base", headers=key).status_code == 404
    assert call(app, "POST", "/v1/chat/completions", json={**ASKED, "model": "base"}, headers=key).status_code == 404
    assert [call(app, "POST", "/v1/chat/completions", json=ASKED, headers=key).status_code for _ in range(3)] == [200, 200, 429]
    later = call(app, "POST", "/v1/chat/completions", json=ASKED, headers=key)
    assert int(later.headers["retry-after"]) > 0 and later.json()["error"]["type"] == "rate_limit_error"


def test_health_version_and_a_server_that_ends(engine):
    app = app_of(engine)
    assert call(app, "GET", "/health").status_code == 200
    assert call(app, "GET", "/version").json() == {"version": tunesmith.__version__}
    app.state.service.draining = True
    for method, path in (("GET", "/health"), ("POST", "/v1/chat/completions")):
        answer = call(app, method, path, json=ASKED)
        assert answer.status_code == 503 and answer.headers["retry-after"]


def test_metrics_count_what_happened(engine):
    app = app_of(engine)
    call(app, "POST", "/v1/chat/completions", json=ASKED)
    call(app, "POST", "/v1/chat/completions", json={**ASKED, "model": "nobody"})
    call(app, "POST", "/v1/chat/completions", json={**ASKED, "temperature": 9})
    page = call(app, "GET", "/metrics").text
    assert 'tunesmith_requests_total{customer="anyone",model="poet",status="200"} 1.0' in page
    assert 'tunesmith_requests_total{customer="anyone",model="poet",status="400"} 1.0' in page
    assert 'model="unknown",status="404"} 1.0' in page and "nobody" not in page
    assert 'tunesmith_requests_in_flight{customer="anyone",model="poet"} 0.0' in page


def test_what_is_not_there_is_said_in_openai_s_shape(engine):
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)):
        answer = call(app_of(engine), method, path)
        assert answer.status_code == status and path in answer.json()["error"]["message"]


def test_pages_of_others_may_ask_only_where_it_is_said(engine):
    origin = {"Origin": "https://page.example"}
    assert "access-control-allow-origin" not in call(app_of(engine), "GET", "/v1/models", headers=origin).headers
    allowed = call(app_of(engine, origins=["https://page.example"]), "GET", "/v1/models", headers=origin)
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"


def test_other_routes_stand_beside(engine):
    app = app_of(engine, admin=[Route("/v1/adapters", lambda request: PlainTextResponse("here"))])
    assert call(app, "GET", "/v1/adapters").text == "here"
