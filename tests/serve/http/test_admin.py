"""Adapters and pointings over HTTP: who may, which folders, what the engine and the catalog are told, and errors in OpenAI's shape."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.serve import fake_engine
from tests.serve.adapters_made import Told, adapter
from tests.serve.http.talking import app_of, says
from tunesmith.serve.catalog import Catalog, Model
from tunesmith.serve.customers import Customers
from tunesmith.serve.http.admin import LONGEST, routes
from tunesmith.serve.registry import Registry

BASE = "base"
LOCAL, REMOTE = ("127.0.0.1", 5000), ("192.0.2.7", 5000)


class Server:
    """The routes over fakes."""

    def __init__(self, folder: Path, customers: Customers | None = None, registry: Registry | None = None, client: tuple[str, int] = LOCAL):
        self.engine, self.catalog = Told(), Catalog(Model(BASE, None))
        self.allowed = folder / "allowed"
        self.allowed.mkdir(exist_ok=True)
        engine: Any = self.engine
        found = routes(engine, self.catalog, customers or Customers(), registry, self.opened, [self.allowed])
        self.client = TestClient(Starlette(routes=list(found)), client=client)

    def opened(self, name: str, folder: Path) -> Model:
        return Model(name, None, folder, BASE, facts={"method": "lora"})

    def post(self, path: str, body: Any, **headers: str) -> Any:
        return self.client.post(path, json=body, headers=headers)

    def names(self) -> list[str]:
        return [model.name for model in self.catalog.every()]


def error_of(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


def test_an_adapter_comes_is_shown_and_goes(tmp_path: Path) -> None:
    server = Server(tmp_path)
    folder = adapter(server.allowed / "a")
    answer = server.post("/v1/adapters", {"name": "acme/support", "path": str(folder)})
    assert answer.status_code == 200
    shown = answer.json()
    assert (shown["id"], shown["object"], shown["root"], shown["parent"]) == ("acme/support", "model", str(folder), BASE)
    assert server.names() == [BASE, "acme/support"]
    assert server.client.get("/v1/adapters").json() == {"object": "list", "data": [shown]}
    gone = server.client.delete("/v1/adapters/acme/support")
    assert gone.json() == {"id": "acme/support", "object": "model", "deleted": True}
    assert server.names() == [BASE]
    assert server.engine.told == [("load", "acme/support", str(folder)), ("unload", "acme/support")]
    assert "no adapter 'acme/support' is loaded" in error_of(server.client.delete("/v1/adapters/acme/support"), 404)
    assert "stays" in error_of(server.client.delete(f"/v1/adapters/{BASE}"), 400)


def test_a_name_that_is_taken_is_exchanged(tmp_path: Path) -> None:
    server = Server(tmp_path)
    for name in ("a", "b"):
        assert server.post("/v1/adapters", {"name": "x", "path": str(adapter(server.allowed / name))}).status_code == 200
    found = server.catalog.find("x")
    assert found is not None and found.folder == server.allowed / "b"


def test_vllms_names(tmp_path: Path) -> None:
    server = Server(tmp_path)
    body = {"lora_name": "x", "lora_path": str(adapter(server.allowed / "a"))}
    answer = server.post("/v1/load_lora_adapter", body)
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'x' added successfully.")
    assert "loaded already" in error_of(server.post("/v1/load_lora_adapter", body), 400)
    assert server.post("/v1/load_lora_adapter", {**body, "load_inplace": True}).status_code == 200
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "x", "lora_int_id": 1}).status_code == 200
    assert server.names() == [BASE]
    error_of(server.post("/v1/unload_lora_adapter", {"lora_name": "x"}), 404)


def test_only_folders_that_the_operator_allowed(tmp_path: Path) -> None:
    server = Server(tmp_path)
    outside = adapter(tmp_path / "outside")
    (server.allowed / "link").symlink_to(outside)
    adapter(tmp_path / "allowed-not")
    paths = [str(outside), str(server.allowed / ".." / "outside"), str(server.allowed / "link"), "/etc", "/none", "~", "\0", ""]
    paths += [str(tmp_path / "allowed-not"), str(tmp_path)]
    answers = {error_of(server.post("/v1/adapters", {"name": "x", "path": path}), 400) for path in paths}
    assert {answer.partition(":")[0] for answer in answers} == {"path"}
    there, not_there = (error_of(server.post("/v1/adapters", {"name": "x", "path": path}), 400) for path in ("/etc", "/none"))
    assert there == not_there, "nothing is told about what lies elsewhere"
    assert "there is no folder" in error_of(server.post("/v1/adapters", {"name": "x", "path": str(server.allowed / "none")}), 400)
    assert server.engine.told == []


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path)
    broken = adapter(server.allowed / "broken")
    said = error_of(server.post("/v1/adapters", {"name": "x", "path": str(broken)}), 400)
    assert "another base model" in said and "choose the right one" in said
    for name in (BASE, "", "a b", "../x", "x" * 129, 3, None):
        error_of(server.post("/v1/adapters", {"name": name, "path": str(adapter(server.allowed / f"a{name}".replace("/", "")))}), 400)
    assert server.names() == [BASE] and server.engine.told == []


def test_bodies_that_are_none(tmp_path: Path) -> None:
    server = Server(tmp_path)
    for content in (b"", b"[]", b"{", b"\xff\xfe", b'"x"'):
        error_of(server.client.post("/v1/adapters", content=content), 400)
    error_of(server.client.post("/v1/adapters", content=b" " * (LONGEST + 1)), 413)
    error_of(server.post("/v1/adapters", {"name": "x", "path": "/x", "version": 1}), 400)
    assert "--registry" in error_of(server.post("/v1/adapters", {"name": "x", "version": 1}), 404)


def test_with_keys_an_admins_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "customers.yaml"
    path.write_text("customers:\n  - {name: a, key: plain}\n  - {name: ops, key: admin, admin: true}\n", encoding="utf-8")
    server = Server(tmp_path, Customers(path), client=REMOTE)
    body = {"name": "x", "path": str(adapter(server.allowed / "a"))}
    error_of(server.post("/v1/adapters", body), 401)
    error_of(server.post("/v1/adapters", body, Authorization="Bearer wrong"), 401)
    error_of(server.post("/v1/adapters", body, Authorization="Bearer plain"), 403)
    assert server.client.get("/v1/adapters", headers={"Authorization": "Bearer plain"}).status_code == 403
    assert server.engine.told == []
    assert server.post("/v1/adapters", body, Authorization="Bearer admin").status_code == 200


def test_without_keys_only_this_machine_and_no_web_page_on_it(tmp_path: Path) -> None:
    remote = Server(tmp_path, client=REMOTE)
    body = {"name": "x", "path": str(adapter(remote.allowed / "a"))}
    assert "own machine only" in error_of(remote.post("/v1/adapters", body), 403)
    local = Server(tmp_path)
    for header in ("Origin", "X-Forwarded-For", "Forwarded"):
        error_of(local.client.post("/v1/adapters", json=body, headers={header: "http://example.com"}), 403)
    assert local.engine.told == remote.engine.told == []
    assert Server(tmp_path, client=("::1", 9)).post("/v1/adapters", body).status_code == 200


def test_a_mistake_of_ours_is_a_500_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    server = Server(tmp_path)
    folder = adapter(server.allowed / "a")

    def broken(name: str, folder: Any) -> None:
        raise KeyError("inner secret")

    monkeypatch.setattr(server.engine, "load", broken)
    assert "inner secret" not in error_of(server.post("/v1/adapters", {"name": "x", "path": str(folder)}), 500)
    assert server.names() == [BASE]


def test_the_registry_decides_what_a_name_answers_with(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.sqlite")
    server = Server(tmp_path, registry=registry)
    folders = [adapter(server.allowed / name, seed) for seed, name in enumerate("abc")]
    for number, folder in enumerate(folders, 1):
        answer = server.post("/v1/registry/support/versions", {"path": str(folder)})
        assert answer.status_code == 200 and answer.json()["version"] == number
    assert server.client.get("/v1/registry").json()["data"] == [{"name": "support", "shares": {"1": 1.0}}]
    error_of(server.post("/v1/registry/support/versions", {"path": "/etc"}), 400)

    answer = server.post("/v1/registry/support/point", {"version": 3, "note": "better"})
    assert answer.json() == {"name": "support", "shares": {"3": 1.0}}
    assert server.engine.told[-1] == ("load", "support", str(folders[2]))
    assert server.post("/v1/registry/support/roll_back", {}).json()["shares"] == {"1": 1.0}
    assert server.engine.told[-1] == ("load", "support", str(folders[0]))
    told = server.client.get("/v1/registry/support").json()
    assert [each["version"] for each in told["versions"]] == [1, 2, 3] and told["shares"] == {"1": 1.0}
    assert [each["note"] for each in told["history"]] == ["first version", "better", "rolled back"]

    assert server.post("/v1/adapters", {"name": "support", "version": 2}).status_code == 200
    assert server.engine.told[-1] == ("load", "support", str(folders[1]))
    save_file({"a": torch.ones(2) * 9}, folders[1] / "adapter_model.safetensors")
    assert "have changed" in error_of(server.post("/v1/adapters", {"name": "support", "version": 2}), 400)
    for path, body, status in [
        ("/v1/registry/support/point", {"version": 9}, 404),
        ("/v1/registry/support/point", {}, 400),
        ("/v1/registry/support/point", {"version": "2"}, 400),
        ("/v1/registry/support/point", {"shares": {"1": 0.5}}, 400),
        ("/v1/registry/support/point", {"shares": {"one": 1.0}}, 400),
        ("/v1/registry/nobody/roll_back", {}, 404),
    ]:
        error_of(server.post(path, body), status)
    error_of(server.client.get("/v1/registry/nobody"), 404)


def test_shares_of_users_go_to_each_version(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.sqlite")
    server = Server(tmp_path, registry=registry)
    for seed, name in enumerate("ab"):
        registry.register("support", adapter(server.allowed / name, seed))
    answer = server.post("/v1/registry/support/point", {"shares": {"1": 0.7, "2": 0.3}})
    assert answer.json() == {"name": "support", "shares": {"1": 0.7, "2": 0.3}}
    assert server.names() == [BASE, "support@1", "support@2", "support"]
    users = [f"u{number}" for number in range(200)]
    found = [server.catalog.find("support", user) for user in users]
    names = [model.name for model in found if model is not None]
    assert names == [f"support@{registry.resolve('support', user).version}" for user in users]
    assert 30 <= names.count("support@2") <= 90
    server.post("/v1/registry/support/point", {"version": 2})
    alone = server.catalog.find("support", "u1")
    assert alone is not None and alone.name == "support" and alone.folder == server.allowed / "b"


def test_what_cannot_be_served_is_not_pointed_to(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.sqlite")
    server = Server(tmp_path, registry=registry)
    registry.register("support", adapter(server.allowed / "a"))
    registry.register("support", adapter(server.allowed / "broken", 1))
    assert "another base model" in error_of(server.post("/v1/registry/support/point", {"version": 2}), 400)
    assert registry.resolve("support").version == 1


def test_a_request_names_its_user_and_gets_his_version() -> None:
    engine = fake_engine.FakeEngine(says("qwen2.5", "hi"))
    app = app_of(engine, adapters=["s", "s@1", "s@2"])
    app.state.service.catalog.split("s", lambda key: "s@2" if key == "kim" else "s@1")
    client = TestClient(app)
    for user in ("kim", "lee", None):
        body = {"model": "s", "user": user, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert [ask.model for ask in engine.asks] == ["s@2", "s@1", "s@1"]
    page = client.get("/metrics").text
    for model, count in (("s@1", 2), ("s@2", 1)):
        assert f'tunesmith_requests_total{{customer="anyone",model="{model}",status="200"}} {count}.0' in page
    engine.close(5)


def test_with_keys_the_metrics_are_an_admins(tmp_path: Path) -> None:
    path = tmp_path / "customers.yaml"
    path.write_text("customers:\n  - {name: a, key: plain}\n  - {name: ops, key: admin, admin: true}\n", encoding="utf-8")
    for customers, statuses in ((Customers(path), [401, 403, 200]), (Customers(), [200, 200, 200])):
        client = TestClient(app_of(fake_engine.FakeEngine(says("qwen2.5", "hi")), customers=customers))
        keys: list[dict[str, str]] = [{}, {"Authorization": "Bearer plain"}, {"Authorization": "Bearer admin"}]
        assert [client.get("/metrics", headers=headers).status_code for headers in keys] == statuses
