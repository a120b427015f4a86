"""The verb that serves, as a process of its own: what it refuses, what it answers, how it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import cli
from tunesmith.generate import Sampling, generate
from tunesmith.tuned import open_tuned

STRONG = {"train.learning_rate": 0.05}
QUESTION = [{"role": "user", "content": "Spell 3!!!"}]
SECONDS = 90


@pytest.fixture(scope="module")
def places(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of one base, `one` and `two`, in a folder."""
    folder = tmp_path_factory.mktemp("runs")
    data = runs.write_rows(folder / "rows.jsonl")
    for seed, name in enumerate(("one", "two")):
        runs.finish(runs.settings(tiny_llama, data, folder / name, STRONG | {"train.seed": seed}))
    return folder


@contextmanager
def serving(*words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """(address, process) of a server that is ready."""
    command = [sys.executable, "-m", "tunesmith", "serve", *words, "--port", "0"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes) as process:
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if "http://" in line:
                    yield line.split("http://")[1].split("/v1")[0], process
                    return
            raise AssertionError("".join(said))
        finally:
            process.kill()


def client(address: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{address}/v1", api_key=key, timeout=SECONDS, max_retries=0)


def test_each_name_answers_as_its_run_does_and_others_come_and_go(places: Path, tiny_llama: Path) -> None:
    with serving(str(places / "one"), "--adapters-from", str(places)) as (address, process):
        asked = client(address)
        assert [model.id for model in asked.models.list().data] == ["tiny-llama", "one"]
        loaded = httpx2.post(f"http://{address}/v1/load_lora_adapter", json={"lora_name": "other", "lora_path": str(places / "two")})
        assert loaded.status_code == 200, loaded.text
        said = {}
        for name, folder in (("one", places / "one"), ("other", places / "two"), ("tiny-llama", tiny_llama)):
            tuned = open_tuned(str(folder))
            renderer: Any = tuned.renderer
            prompt = renderer.prompt_ids(QUESTION)
            truth = generate(tuned.model, [prompt], tuned.renderer.stops, Sampling(max_new_tokens=12))[0]
            found = asked.chat.completions.create(model=name, messages=QUESTION, max_tokens=12, temperature=0)  # type: ignore[arg-type]
            said[name] = found.choices[0].message.content
            assert said[name] == tuned.tokenizer.decode(truth.ids, skip_special_tokens=True), name
            assert found.usage is not None and found.usage.prompt_tokens == len(prompt)
            assert found.choices[0].finish_reason == ("stop" if truth.stopped else "length")
        assert len(set(said.values())) == 3
        outside = httpx2.post(f"http://{address}/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": str(tiny_llama.parent)})
        assert outside.status_code in (400, 403, 404)
        httpx2.post(f"http://{address}/v1/unload_lora_adapter", json={"lora_name": "other"}).raise_for_status()
        with pytest.raises(openai.NotFoundError):
            asked.chat.completions.create(model="other", messages=QUESTION, max_tokens=1)  # type: ignore[arg-type]
        page = httpx2.get(f"http://{address}/metrics").text
        assert 'tunesmith_generation_tokens_total{customer="anyone",model="one"}' in page, page
        begun = asked.completions.create(model="one", prompt="on and on", max_tokens=300, stream=True, extra_body={"ignore_eos": True})
        pieces = iter(begun)
        next(pieces)
        process.send_signal(signal.SIGTERM)  # what is being answered may end
        assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == "length"
        assert process.wait(SECONDS) == 143


def test_keys_are_asked_for_and_a_signal_reads_the_file_again(places: Path, tmp_path: Path) -> None:
    file = tmp_path / "customers.yaml"
    text = "customers:\n  - name: {0}\n    key: {0}-key-of-some-length\n    models: [{1}]\n"
    file.write_text(text.format("acme", "one"))
    words = [str(places / "one"), f"second={places / 'two'}", "--customers", str(file)]
    with serving(*words) as (address, process):
        with pytest.raises(openai.AuthenticationError):
            client(address).models.list()
        acme = client(address, "acme-key-of-some-length")
        assert [model.id for model in acme.models.list().data] == ["one"]
        with pytest.raises(openai.NotFoundError):
            acme.chat.completions.create(model="second", messages=QUESTION, max_tokens=1)  # type: ignore[arg-type]
        file.write_text(text.format("other", "second"))
        process.send_signal(signal.SIGHUP)
        assert process.stdout is not None and "read again" in process.stdout.readline()
        assert [model.id for model in client(address, "other-key-of-some-length").models.list().data] == ["second"]
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["serve", *words]) == 2
    return capsys.readouterr().err


def test_what_is_refused_before_anything_is_loaded(
    places: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("tunesmith.models.load.load", lambda *_, **__: pytest.fail("a model was loaded"))
    one = str(places / "one")
    assert "no key is asked" in refused([one, "--host", "0.0.0.0"], capsys)
    assert "two models are to be called one" in refused([one, one], capsys)
    assert "the base's own name" in refused([f"tiny-llama={one}"], capsys)
    assert "--adapter-memory lots" in refused([one, "--port", "0", "--adapter-memory", "lots"], capsys)
    assert "takes nf4" in refused([one, "--port", "0", "--quantize", "q8_0"], capsys)
    assert "one server has one base" in refused([str(tiny_llama), f"x={tiny_llama}"], capsys)
    with serving_nothing() as port:
        assert "another program listens there" in refused([one, "--port", str(port)], capsys)
    signal.signal(signal.SIGTERM, before)


@contextmanager
def serving_nothing() -> Iterator[int]:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_name_means_what_the_registry_says_also_after_a_restart(places: Path, tmp_path: Path) -> None:
    words = ["--registry", str(tmp_path / "versions.db"), "--adapters-from", str(places)]
    with serving(f"it={places / 'one'}", *words) as (address, process):

        def post(what: str, body: dict[str, Any]) -> Any:
            answer = httpx2.post(f"http://{address}/v1/registry/it/{what}", json=body, timeout=SECONDS)
            assert answer.status_code == 200, answer.text
            return answer.json()

        version = post("versions", {"path": str(places / "two")})
        assert version["version"] == 2 and version["method"] == "lora" and len(version["data"]["mask_sha256"]) == 64
        assert post("point", {"version": 2, "note": "tried"})["shares"] == {"2": 1.0}
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 143
    with serving(f"it={places / 'one'}", *words) as (address, process):
        asked = client(address)
        told = {model.id: model for model in asked.models.list().data}
        assert told["it"].model_extra is not None and told["it"].model_extra["run"] == str(places / "two")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 143


def test_behind_the_patience_clients_hear_why_their_answers_end(places: Path) -> None:
    with serving(str(places / "one"), "--patience", "0") as (address, process):
        endless = {"model": "one", "prompt": "on and on", "max_tokens": 450, "ignore_eos": True, "n": 32}

        def ask() -> Any:
            return httpx2.post(f"http://{address}/v1/completions", json=endless, timeout=SECONDS)

        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask)
            while "tunesmith_engine_steps_total 0.0" in httpx2.get(f"http://{address}/metrics").text:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            found = answer.result()
        assert found.status_code == 503 and found.json()["error"]["code"] == "cancelled", found.text
        assert process.wait(SECONDS) == 143
