import json
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.serve.builtin.test_mixed import made
from tunesmith.errors import UserError
from tunesmith.methods.layouts import layout
from tunesmith.models import load as loading
from tunesmith.models.fingerprint import fingerprint
from tunesmith.models.load import Base
from tunesmith.models.source import Located
from tunesmith.serve.builtin.adapters import Adapters
from tunesmith.serve.builtin.mixed import Mixed

IDS = torch.arange(3, 11)[None]
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "dora": {"rank": 4, "trainable_tokens": [5]},
    "pissa": {"rank": 2, "niter": "exact"},
    "prompt": {"tokens": 3, "init": "random"},
    "ptuning": {"tokens": 3, "hidden": 16},
    "prefix": {"tokens": 3, "hidden": 16, "init": "random"},
    "adapter": {"variant": "houlsby", "reduction": 4.0},
}


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> Base:
    return loading.load(tiny_llama, dtype=torch.float32)


@pytest.fixture
def write(base: Base, tmp_path: Path) -> Callable[..., Path]:
    """An adapter's folder, by method and seed."""

    def written(name: str, seed: int = 1, folder: str = "") -> Path:
        path = tmp_path / (folder or f"{name}-{seed}")
        tuning = made(base.model, name, seed, **SETTINGS[name])
        tuning.about["base"] = fingerprint(base.folder)
        layout.write(path, base.model, tuning, "base")
        return path

    return written


class Server:
    """What an engine has: a model, its adapters, and one row at a time."""

    def __init__(self, base: Base, budget: int | None = None):
        self.told: list[str] = []
        self.mixed = Mixed(base.model)
        self.adapters = Adapters(base, Located(base.folder, "base", "folder", "base"), self.mixed, budget, self.told.append)

    def logits(self, key: str) -> Tensor:
        ids_T = torch.cat([torch.tensor(list(self.mixed.virtual_ids(key)), dtype=torch.long), IDS[0]])
        with self.mixed.rows([(0, len(ids_T), key)]):
            found: Tensor = self.mixed.model(input_ids=ids_T[None], use_cache=False).logits[0, -8:]
        return found

    def answer(self, name: str) -> Tensor:
        key = self.adapters.hold(name)
        try:
            return self.logits(key)
        finally:
            self.adapters.release(key)

    def in_memory(self) -> int:
        return int(self.adapters.figures()["adapters_in_memory"])


@pytest.fixture
def serve(base: Base) -> Any:
    """One server after the other on the same base."""
    servers: list[Server] = []

    def served(budget: int | None = None) -> Server:
        close()
        servers.append(Server(base, budget))
        return servers[-1]

    def close() -> None:
        while servers:
            servers.pop().mixed.close()

    yield served
    close()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_folder_answers_under_its_name(name: str, serve: Any, write: Callable[..., Path]) -> None:
    server = serve()
    server.adapters.load("customer", write(name))
    assert server.adapters.names() == ["customer"]
    tokens = SETTINGS[name].get("tokens", 0)
    assert server.adapters.in_front("customer") == tokens
    if name != "prefix":  # nothing of it stands at the layers
        assert not torch.allclose(server.answer("customer"), server.logits(""), atol=1e-2)
    key = server.adapters.hold("customer")
    assert server.mixed.first_position(key) + server.mixed.virtual_tokens(key) == tokens
    server.adapters.release(key)


def test_its_size_is_that_of_its_tensors(serve: Any, write: Callable[..., Path]) -> None:
    server = serve()
    for seed in range(5):
        server.adapters.load(f"customer{seed}", write("lora", seed))
    own = sum(4 * 4 * (i + o) for i, o in [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]) * 2
    assert {server.adapters.bytes(name) for name in server.adapters.names()} == {own}
    figures = server.adapters.figures()
    assert figures == {"adapters": 5, "adapters_in_memory": 5, "adapters_held": 0, "adapter_bytes": 5 * own, "adapter_stack_bytes": 0}


def test_those_used_longest_ago_leave_and_come_back(serve: Any, write: Callable[..., Path]) -> None:
    one = serve()
    one.adapters.load("a", write("lora", 0))
    size = one.adapters.bytes("a")
    server = serve(2 * size)
    for seed in range(4):
        server.adapters.load(f"a{seed}", write("lora", seed))
    assert server.in_memory() == 2
    wanted = {name: server.answer(name) for name in server.adapters.names()}
    assert server.in_memory() == 2 and server.adapters.figures()["adapter_bytes"] == 2 * size
    order = list(wanted) * 5
    random.Random(0).shuffle(order)
    for name in order:
        assert torch.equal(server.answer(name), wanted[name]), "the same again"
    keys = [server.adapters.hold(name) for name in wanted]
    assert server.in_memory() == 4, "who is held stays, beyond the budget too"
    for key in keys:
        server.adapters.release(key)
    assert server.in_memory() == 2
    differ = [name for name in wanted if name != "a0" and torch.allclose(wanted[name], wanted["a0"], atol=1e-3)]
    assert not differ


def test_one_beyond_the_budget_is_refused(serve: Any, write: Callable[..., Path]) -> None:
    server = serve(1000)
    with pytest.raises(UserError, match=r"big: takes 0 MB, and adapters may take 0 MB together; raise that limit"):
        server.adapters.load("big", write("lora"))
    assert server.adapters.names() == []


def test_a_folder_that_has_vanished_or_changed_fails_its_own_requests(serve: Any, write: Callable[..., Path]) -> None:
    folder, other = write("lora", 0), write("lora", 1)
    probe = serve()
    probe.adapters.load("probe", folder)
    server = serve(probe.adapters.bytes("probe"))
    server.adapters.load("a", folder)
    wanted = server.answer("a")
    server.adapters.load("b", other)  # a leaves memory
    away = folder.rename(folder.with_name("away"))
    with pytest.raises(ValueError, match="a had left memory, and its folder cannot be read again"):
        server.adapters.hold("a")
    server.answer("b")
    away.rename(folder)
    assert torch.equal(server.answer("a"), wanted), "it is back"
    server.answer("b")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    with pytest.raises(ValueError, match="has changed since it was loaded; load it again"):
        server.adapters.hold("a")
    assert server.adapters.figures()["adapters_held"] == 0, "who was refused holds nothing"
    server.adapters.load("a", folder)
    assert not torch.allclose(server.answer("a"), wanted, atol=1e-3)


def test_answers_in_flight_end_with_what_they_began_with(serve: Any, write: Callable[..., Path]) -> None:
    server = serve()
    server.adapters.load("a", write("lora", 0))
    old = server.adapters.hold("a")
    wanted = server.logits(old)
    server.adapters.load("a", write("lora", 1))
    new = server.adapters.hold("a")
    assert new != old and server.in_memory() == 2
    assert torch.equal(server.logits(old), wanted) and not torch.allclose(server.logits(new), wanted, atol=1e-3)
    server.adapters.release(old)
    assert server.in_memory() == 1
    with pytest.raises(LookupError):
        server.logits(old)
    latest = server.logits(new)
    server.adapters.unload("a")
    with pytest.raises(LookupError):
        server.adapters.hold("a")
    with pytest.raises(LookupError):
        server.adapters.unload("a")
    assert torch.equal(server.logits(new), latest), "it ends with it"
    server.adapters.release(new)
    assert server.in_memory() == 0 and server.adapters.figures()["adapter_bytes"] == 0


def test_another_base_is_refused(serve: Any, write: Callable[..., Path], tmp_path: Path) -> None:
    server, folder = serve(), write("lora")
    about = json.loads((folder / "tunesmith.json").read_text())
    about["base"]["values"] = {name: [2 * value for value in values] for name, values in about["base"]["values"].items()}
    (folder / "tunesmith.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"was made for another base model \(base\):\n.*the weights differ by"):
        server.adapters.load("a", folder)
    with pytest.raises(UserError, match="no such folder"):
        server.adapters.load("a", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not an adapter folder"):
        server.adapters.load("a", tmp_path / "empty")
    assert server.adapters.names() == [] and server.in_memory() == 0


def test_a_run_is_its_adapter(serve: Any, write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write("lora")
    shutil.copytree(folder, tmp_path / "run" / "adapter")
    server = serve()
    server.adapters.load("run", tmp_path / "run")
    server.adapters.load("folder", folder)
    assert torch.equal(server.answer("run"), server.answer("folder"))


def test_what_differs_is_told(serve: Any, write: Callable[..., Path]) -> None:
    folder, server = write("pissa"), serve()
    about = json.loads((folder / "tunesmith.json").read_text())
    about["pissa"] |= {"quantised": True, "weight_difference": {"nf4": 0.02}}
    (folder / "tunesmith.json").write_text(json.dumps(about))
    server.adapters.load("a", folder)
    assert len(server.told) == 1 and "served as the LoRA of twice the rank" in server.told[0]


def test_many_threads(serve: Any, write: Callable[..., Path]) -> None:
    """Names are loaded, exchanged and forgotten while one thread computes: every answer is that of what was held."""
    folders = [write("lora", seed) for seed in range(4)]
    server = serve()
    for seed, folder in enumerate(folders):
        server.adapters.load(f"a{seed}", folder)
    wanted = [server.answer(f"a{seed}") for seed in range(4)]
    small = serve(2 * server.adapters.bytes("a0"))
    for seed, folder in enumerate(folders):
        small.adapters.load(f"a{seed}", folder)
    problems: list[BaseException] = []
    over = threading.Event()

    def change(seed: int) -> None:
        draw = random.Random(seed)
        try:
            while not over.is_set():
                if draw.random() < 0.5:
                    small.adapters.load(f"a{seed}", folders[seed])
                else:
                    keys = [small.adapters.hold(f"a{other}") for other in draw.sample(range(4), 2)]
                    for key in keys:
                        small.adapters.release(key)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=change, args=(seed,), daemon=True) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        draw = random.Random(9)
        for _ in range(12):
            seed = draw.randrange(4)
            assert torch.equal(small.answer(f"a{seed}"), wanted[seed])
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    assert not problems, problems
    assert small.in_memory() <= 2 and small.adapters.figures()["adapters_held"] == 0
