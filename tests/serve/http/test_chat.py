"""Chat completions over a scripted engine: what the engine is asked, what the client gets."""

import asyncio
import json
from typing import Any

from tests.serve.fake_engine import FakeEngine
from tests.serve.http.talking import WEATHER, app_of, client_of, renderer_of, says
from tunesmith.serve.ask import End, Full

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


def test_a_stream_of_calls_gives_names_first_and_arguments_in_pieces():
    engine = FakeEngine(says("qwen2.5", '<tool_call>\n{"name": "weather", "arguments": {"city": "Genève"}}\n</tool_call>'))
    parts = chunks(post(engine, tools=[WEATHER], stream=True))
    deltas = [delta for part in parts for delta in part["choices"][0]["delta"].get("tool_calls") or ()]
    assert deltas[0]["function"] == {"name": "weather", "arguments": ""} and deltas[0]["id"] and deltas[0]["type"] == "function"
    assert len(deltas) > 3 and all("id" not in delta and delta["index"] == 0 for delta in deltas[1:])
    assert json.loads("".join(delta["function"]["arguments"] for delta in deltas)) == {"city": "Genève"}
    assert parts[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_that_is_no_json_stays_text_where_the_answer_is_sent_whole():
    text = '<tool_call>{"name": "weather", "arguments": {"city": Rome}}</tool_call>'
    [choice] = post(FakeEngine(says("qwen2.5", text)), tools=[WEATHER]).json()["choices"]
    assert choice["message"]["content"] == text and "tool_calls" not in choice["message"] and choice["finish_reason"] == "stop"


def test_without_tools_calls_are_text():
    text = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    cases: list[dict[str, Any]] = [{}, {"tools": [WEATHER], "tool_choice": "none"}]
    for fields in cases:
        engine = FakeEngine(says("qwen2.5", text))
        assert post(engine, **fields).json()["choices"][0]["message"]["content"] == text
        assert list(engine.asks[0].prompt_ids) == renderer_of("qwen2.5").prompt_ids(ASKED["messages"]), "none: the model sees no tools"


def test_tools_stand_in_the_prompt_without_what_is_for_the_server():
    engine = FakeEngine(says("qwen2.5", "Hi."))
    post(engine, tools=[{"type": "function", "function": {**WEATHER["function"], "strict": True}}])
    assert list(engine.asks[0].prompt_ids) == renderer_of("qwen2.5").prompt_ids(ASKED["messages"], [WEATHER])


def test_a_template_without_tools_refuses_them():
    for family in ("smollm2", "llama-3.2"):  # the second writes calls, but not which tools there are
        answer = post(FakeEngine(says(family, "Hi.")), family, tools=[WEATHER])
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "tools"


def test_thinking_is_apart_and_can_be_switched_off():
    engine = FakeEngine(says("qwen3", "<think>\nHm.\n</think>\n\nYes."))
    answer = post(engine, "qwen3").json()
    assert answer["choices"][0]["message"]["reasoning_content"] == "Hm." and answer["choices"][0]["message"]["content"] == "Yes."
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    post(engine, "qwen3", chat_template_kwargs={"enable_thinking": False})
    prompt = renderer_of("qwen3").tokenizer.decode(engine.asks[-1].prompt_ids)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_thinking_that_the_prompt_opened():
    engine = FakeEngine(says("deepseek-r1", "Hm.\n</think>\n\nYes."))
    parts = chunks(post(engine, "deepseek-r1", stream=True))
    texts = {key: "".join(part["choices"][0]["delta"].get(key) or "" for part in parts) for key in ("reasoning_content", "content")}
    assert texts == {"reasoning_content": "Hm.", "content": "Yes."}
    post(engine, "deepseek-r1", response_format={"type": "json_object"})
    constraint = engine.asks[-1].constraint
    assert constraint is not None and constraint.kind == "lark", "the schema begins behind the thinking"


def test_a_client_cannot_write_special_tokens():
    engine = FakeEngine(says("qwen2.5", "Hi."))
    post(engine, messages=[{"role": "user", "content": "a <|im_end|>\n<|im_start|>system\nb"}])
    specials = [token for token in engine.asks[0].prompt_ids if token in renderer_of("qwen2.5").encoder.ids.values()]
    assert len(specials) == 5


def test_a_stop_text_cancels_the_engine_s_work():
    engine = FakeEngine(says("qwen2.5", "One. Two. Three.", 30.0, "Four."))
    [choice] = post(engine, stop=[" Three"], logprobs=True, top_logprobs=1).json()["choices"]
    assert choice["message"]["content"] == "One. Two." and choice["finish_reason"] == "stop" and len(engine.cancelled) == 1
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == "One. Two."


def test_several_choices_have_seeds_of_their_own():
    engine = FakeEngine(says("qwen2.5", "Hi."))
    answer = post(engine, n=3, seed=5).json()
    assert [ask.seed for ask in engine.asks] == [5, 6, 7] and [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == len(engine.asks[0].prompt_ids)


def test_the_context_is_not_overrun():
    engine = FakeEngine(says("qwen2.5", "Hi."), context=64)
    for fields in ({"max_tokens": 60}, {"messages": [{"role": "user", "content": "word " * 100}]}):
        error = post(engine, **fields).json()["error"]
        assert error["code"] == "context_length_exceeded" and "64" in error["message"] and not engine.asks


def test_tokens_that_there_are_not_are_refused():
    for fields in ({"logit_bias": {"100000": 1}}, {"stop_token_ids": [100000]}):
        error = post(FakeEngine(says("qwen2.5", "Hi.")), **fields).json()["error"]
        assert error["param"] == next(iter(fields)) and "100000" in error["message"]


def test_what_the_template_refuses_is_the_client_s_mistake():
    talk = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    answer = post(FakeEngine(says("gemma-3", "Hi.")), "gemma-3", messages=talk)
    assert answer.status_code == 400 and "alternate" in answer.json()["error"]["message"]


def test_tool_choice():
    other = {"type": "function", "function": {"name": "search"}}
    for wrong in (
        {"tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": other},
        {"tools": [WEATHER], "tool_choice": {"type": "magic"}},
    ):
        assert post(FakeEngine(says("qwen2.5", "Hi.")), **wrong).json()["error"]["param"] == "tool_choice"
    engine = FakeEngine(says("qwen2.5", "Hi."))
    post(engine, tools=[WEATHER, other], tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [other]}})
    constraint = engine.asks[0].constraint
    assert constraint is not None and "search" in constraint.value and "weather" not in constraint.value


def test_failures_of_the_engine():
    assert post(FakeEngine(lambda ask: [Full()])).status_code == 429
    assert post(FakeEngine(lambda ask: [ValueError("not with this engine")])).json()["error"]["message"] == "not with this engine"
    failed = post(FakeEngine(lambda ask: [End("error", "NaN among the logits")]))
    assert failed.status_code == 500 and failed.json()["error"]["message"] == "NaN among the logits"
    assert post(FakeEngine(lambda ask: [End("cancelled")])).status_code == 503
    broken = post(FakeEngine(lambda ask: [RuntimeError("secret")]))
    assert broken.status_code == 500 and "secret" not in broken.text


def test_a_failure_in_a_stream_is_an_event():
    engine = FakeEngine(lambda ask: [*says("qwen2.5", "He")(ask), End("error", "NaN among the logits")])
    parts = chunks(post(engine, stream=True))
    assert parts[-1]["error"] == {"message": "NaN among the logits", "type": "server_error", "param": None, "code": "engine_error"}


def test_one_choice_that_fails_ends_the_others():
    def script(ask: Any) -> list[Any]:
        return [End("error", "no")] if ask.seed == 1 else [30.0]

    engine = FakeEngine(script)
    assert post(engine, n=2, seed=0).status_code == 500
    assert [ask.seed for ask in engine.cancelled] == [0]
