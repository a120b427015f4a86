"""Chat completions over a scripted engine: what the engine is asked, what the client gets."""

import asyncio
import json
from typing import Any

from tests.serve.fake_engine import FakeEngine
from tests.serve.http.talking import WEATHER, app_of, client_of, renderer_of, says

ASKED: dict[str, Any] = {"model": "poet", "messages": [{"role": "user", "content": "Hi"}]}


def post(engine: FakeEngine, family: str = "qwen2.5", *, path: str = "/v1/chat/completions", **fields: Any) -> Any:
    async def run() -> Any:
        async with client_of(app_of(engine, family)) as client:
            return await client.post(path, json={**ASKED, **fields})

    return asyncio.run(run())


def chunks(response: Any) -> list[dict[str, Any]]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1] if not line.startswith(":")]


def test_an_answer_and_what_the_engine_was_asked():
    engine = FakeEngine(says("qwen2.5", "Hello  wörld 你好"))
    response = post(engine)
    assert response.status_code == 200
    answer = response.json()
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello  wörld 你好", "refusal": None}
    assert choice["finish_reason"] == "stop" and answer["model"] == "poet" and answer["object"] == "chat.completion"
    [ask] = engine.asks
    renderer = renderer_of("qwen2.5")
    assert list(ask.prompt_ids) == renderer.prompt_ids(ASKED["messages"])
    assert ask.max_tokens == 512 - len(ask.prompt_ids) and ask.stop_ids == renderer.stops and ask.temperature == 1.0
    assert answer["usage"]["prompt_tokens"] == len(ask.prompt_ids)


def test_a_stream_says_the_same():
    engine = FakeEngine(says("qwen2.5", "Hello  wörld 你好"))
    parts = chunks(post(engine, stream=True, stream_options={"include_usage": True}))
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(part["choices"][0]["delta"].get("content") or "" for part in parts[:-1]) == "Hello  wörld 你好"
    assert parts[-2]["choices"][0]["finish_reason"] == "stop"
    assert parts[-1]["choices"] == [] and parts[-1]["usage"]["total_tokens"] > 0
    assert {part["id"] for part in parts} == {parts[0]["id"]}


def test_calls():
    engine = FakeEngine(says("qwen2.5", 'Well.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Genève"}}\n</tool_call>'))
    [choice] = post(engine, tools=[WEATHER]).json()["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Well."
    [call] = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Genève"}'} and call["id"].startswith("call_")
