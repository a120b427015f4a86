"""What the official `openai` client must find at any of our servers, whatever engine computes there.

Each check takes a `Served` and asserts on its own. `tests/laws/test_openai_client.py` runs them over an engine of the tests and over the
builtin one; `CHECKS` over another server is one parametrised test more.
"""

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pydantic
import pytest

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SEARCH: Any = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {"type": "object", "properties": {"safe": {"type": "boolean"}}, "required": ["safe"], "additionalProperties": False},
    },
}
TALK: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name three colours."}]


@dataclass(frozen=True)
class Served:
    """A server that runs. `url` ends in /v1."""

    url: str
    models: tuple[str, ...]  # the base's name first
    writes_tools: bool = True  # the model's template does
    running: Callable[[], float] | None = None  # answers that the engine works on at the moment
    key: str = "none"

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.key, max_retries=0, timeout=120)

    @property
    def asynchronous(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key=self.key, max_retries=0, timeout=120)


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The app at a port of its own, by uvicorn in a thread; its URL, which ends in /v1."""
    import uvicorn

    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def ask(served: Served, **fields: Any) -> Any:
    with served.client as client:
        return client.chat.completions.create(**{"model": served.models[0], "messages": TALK, "temperature": 0, "max_tokens": 12, **fields})


def lists_its_models(served: Served) -> None:
    with served.client as client:
        assert {model.id for model in client.models.list()} == set(served.models)
        model = client.models.retrieve(served.models[-1])
        assert model.id == served.models[-1] and model.object == "model" and model.created > 0


def answers_with_every_model(served: Served) -> None:
    for name in served.models:
        answer = ask(served, model=name)
        assert answer.model == name and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
        [choice] = answer.choices
        assert choice.index == 0 and choice.message.role == "assistant" and isinstance(choice.message.content, str)
        assert choice.finish_reason in ("stop", "length")
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert 0 < answer.usage.completion_tokens <= 12
        assert (choice.finish_reason == "length") == (answer.usage.completion_tokens == 12) or choice.finish_reason == "stop"


def is_greedy_at_temperature_zero_and_streams_the_same(served: Served) -> None:
    whole = ask(served)
    assert ask(served).choices[0].message.content == whole.choices[0].message.content
    with served.client as client:
        stream = client.chat.completions.create(
            model=served.models[0], messages=TALK, temperature=0, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and chunks[0].choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == whole.choices[0].message.content
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == [] and all(chunk.usage is None for chunk in chunks[:-1])


def draws_the_same_with_the_same_seed(served: Served) -> None:
    texts = [ask(served, temperature=1.5, seed=seed, max_tokens=16).choices[0].message.content for seed in (7, 7, 8, 9, 10)]
    assert texts[0] == texts[1] and len(set(texts)) > 1


def gives_several_choices(served: Served) -> None:
    answer = ask(served, n=3, temperature=1.5, seed=3, max_tokens=16)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    with served.client as client:
        texts = ["", "", ""]
        for chunk in client.chat.completions.create(
            model=served.models[0], messages=TALK, n=3, temperature=1.5, seed=3, max_tokens=16, stream=True
        ):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


def stops_exactly_before_a_stop_text(served: Served) -> None:
    whole = ask(served, max_tokens=24).choices[0].message.content
    place = next((n for n in range(2, len(whole) - 2) if "\ufffd" not in whole[n : n + 2]), None)
    if place is None:
        pytest.skip("the model's answer holds no text that could stop it")
    stop = whole[place : place + 2]
    answer = ask(served, max_tokens=24, stop=[stop, "\u2603never"])
    assert answer.choices[0].message.content == whole[: whole.index(stop)] and answer.choices[0].finish_reason == "stop"
    with served.client as client:
        chunks = client.chat.completions.create(model=served.models[0], messages=TALK, temperature=0, max_tokens=24, stop=stop, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole[: whole.index(stop)]


def tells_probabilities(served: Served) -> None:
    answer = ask(served, logprobs=True, top_logprobs=3, max_tokens=6)
    content = answer.choices[0].logprobs.content
    assert 0 < len(content) <= 6
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        tops = [other.logprob for other in entry.top_logprobs]
        assert tops == sorted(tops, reverse=True) and math.isclose(tops[0], entry.logprob, abs_tol=1e-3)
    spelled = bytes(byte for entry in content for byte in entry.bytes).decode(errors="replace")
    assert answer.choices[0].message.content.strip() in spelled or spelled.strip() in answer.choices[0].message.content


def completes_texts_and_token_ids(served: Served) -> None:
    with served.client as client:
        root = served.url.removesuffix("/v1")
        ids = httpx2.post(f"{root}/tokenize", json={"model": served.models[0], "prompt": "One two"}, headers=_key(served)).json()["tokens"]
        shared: Any = {"model": served.models[0], "temperature": 0, "max_tokens": 8}
        by_text = client.completions.create(prompt="One two", **shared)
        by_ids = client.completions.create(prompt=ids, **shared)
        assert by_text.object == "text_completion" and by_text.choices[0].text == by_ids.choices[0].text
        assert by_text.usage is not None and by_text.usage.prompt_tokens == len(ids)
        both = client.completions.create(prompt=["One two", "Three"], n=1, logprobs=2, **shared)
        assert [choice.index for choice in both.choices] == [0, 1]
        logprobs = both.choices[0].logprobs
        assert logprobs is not None and logprobs.tokens and len(logprobs.tokens) == len(logprobs.token_logprobs or [])
        echoed = client.completions.create(prompt="One two", echo=True, **shared)
        assert echoed.choices[0].text == "One two" + by_text.choices[0].text
        streamed = client.completions.create(prompt="One two", stream=True, **shared)
        assert "".join(chunk.choices[0].text for chunk in streamed) == by_text.choices[0].text


class Trip(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=6, pattern="^[a-z]+$")
    days: int = pydantic.Field(ge=1, le=30)
    by_train: bool


def keeps_to_a_schema(served: Served) -> None:
    with served.client as client:
        parsed = client.chat.completions.parse(
            model=served.models[0], messages=TALK, response_format=Trip, temperature=1, seed=1, max_tokens=120
        )
        assert isinstance(parsed.choices[0].message.parsed, Trip)
    chosen = ask(served, extra_body={"structured_outputs": {"choice": ["red", "green"]}}, max_tokens=20)
    assert chosen.choices[0].message.content in ("red", "green") and chosen.choices[0].finish_reason == "stop"
    matched = ask(served, extra_body={"guided_regex": "[0-9]{3}-[a-f]{2}"}, max_tokens=20)
    assert len(matched.choices[0].message.content) == 6 and matched.choices[0].message.content[3] == "-"
    with pytest.raises(openai.BadRequestError):
        ask(served, extra_body={"guided_regex": "("})


def calls_the_tools_it_must(served: Served) -> None:
    if not served.writes_tools:
        with pytest.raises(openai.BadRequestError, match="tools"):
            ask(served, tools=[WEATHER])
        return
    named = {"type": "function", "function": {"name": "weather"}}
    answer = ask(served, tools=[WEATHER, SEARCH], tool_choice=named, max_tokens=120)
    [call] = answer.choices[0].message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "weather" and arguments["city"] in ("Paris", "Rome") and 1 <= arguments["days"] <= 9
    assert answer.choices[0].finish_reason == "stop" and call.id and answer.choices[0].message.content is None
    shared: Any = {"tools": [WEATHER, SEARCH], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 120}
    needed = ask(served, **shared)
    [call] = needed.choices[0].message.tool_calls
    assert call.function.name in ("weather", "search") and needed.choices[0].finish_reason == "tool_calls"
    with served.client as client:
        deltas = [
            delta
            for chunk in client.chat.completions.create(model=served.models[0], messages=TALK, temperature=0, stream=True, **shared)
            for delta in chunk.choices[0].delta.tool_calls or ()
        ]
    assert deltas[0].id and deltas[0].function.name == call.function.name and {delta.index for delta in deltas} == {0}
    assert json.loads("".join(delta.function.arguments or "" for delta in deltas)) == json.loads(call.function.arguments)
    # the call goes back with its result
    talk = [*TALK, needed.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}]
    assert isinstance(ask(served, messages=talk, tools=[WEATHER, SEARCH], tool_choice="none").choices[0].message.content, str)


def refuses_in_the_client_s_own_classes(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(served, model="no-such-model")
    assert unknown.value.code == "model_not_found"
    for field, value in {"temperature": 3, "top_p": 0, "n": 0, "max_tokens": 0, "stop": ["a"] * 5, "logit_bias": {"a": 1}}.items():
        with pytest.raises(openai.BadRequestError) as refused:
            ask(served, **{field: value})
        assert refused.value.param == field and refused.value.type == "invalid_request_error", refused.value
    image: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]
    with pytest.raises(openai.BadRequestError, match="image_url"):
        ask(served, messages=image)
    with pytest.raises(openai.BadRequestError) as long:
        ask(served, messages=[{"role": "user", "content": "word " * 200_000}])
    assert long.value.code == "context_length_exceeded"
    assert isinstance(ask(served).choices[0].message.content, str), "the server must go on"


def forces_a_token_by_its_bias(served: Served) -> None:
    root = served.url.removesuffix("/v1")
    [token] = httpx2.post(
        f"{root}/tokenize", json={"model": served.models[0], "prompt": "x", "add_special_tokens": False}, headers=_key(served)
    ).json()["tokens"][:1]
    answer = ask(served, logit_bias={str(token): 100}, max_tokens=4, extra_body={"ignore_eos": True})
    assert answer.choices[0].message.content == "xxxx" and answer.choices[0].finish_reason == "length"


def answers_many_at_once(served: Served) -> None:
    asked: list[Any] = [
        {"model": served.models[n % len(served.models)], "messages": [{"role": "user", "content": f"Count to {n}."}], "max_tokens": 8}
        for n in range(8)
    ]

    async def run() -> list[str | None]:
        async with served.asynchronous as client:
            answers = await asyncio.gather(*[client.chat.completions.create(temperature=0, **fields) for fields in asked])
            return [answer.choices[0].message.content for answer in answers]

    together = asyncio.run(run())
    assert together == [ask(served, **fields).choices[0].message.content for fields in asked]


def frees_the_place_of_a_client_that_leaves(served: Served) -> None:
    running = served.running
    if running is None:
        pytest.skip("the engine does not tell what it works on")
    long: Any = {"max_tokens": 300, "extra_body": {"ignore_eos": True}}
    with served.client as client:
        stream = client.chat.completions.create(model=served.models[0], messages=TALK, stream=True, **long)
        next(iter(stream))
        stream.close()
    _wait(lambda: running() == 0)

    async def leave() -> None:
        async with served.asynchronous as client:
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(model=served.models[0], messages=TALK, timeout=0.05, **long)

    asyncio.run(leave())
    _wait(lambda: running() == 0)


def _wait(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "the place is not free"
        time.sleep(0.01)


def _key(served: Served) -> dict[str, str]:
    return {"Authorization": f"Bearer {served.key}"}


CHECKS: list[Callable[[Served], None]] = [
    lists_its_models,
    answers_with_every_model,
    is_greedy_at_temperature_zero_and_streams_the_same,
    draws_the_same_with_the_same_seed,
    gives_several_choices,
    stops_exactly_before_a_stop_text,
    tells_probabilities,
    completes_texts_and_token_ids,
    keeps_to_a_schema,
    calls_the_tools_it_must,
    refuses_in_the_client_s_own_classes,
    forces_a_token_by_its_bias,
    answers_many_at_once,
    frees_the_place_of_a_client_that_leaves,
]
