"""/tokenize and /detokenize."""

from typing import Any

from tests.serve.fake_engine import FakeEngine
from tests.serve.http.talking import WEATHER, app_of, renderer_of, says
from tests.serve.http.test_app import call

TALK = [{"role": "user", "content": "Hi"}]


def post(path: str, family: str = "llama-3.2", **fields: Any) -> Any:
    return call(app_of(FakeEngine(says(family)), family), "POST", path, json={"model": "base", **fields})


def test_messages_are_what_the_model_is_fed():
    answer = post("/tokenize", messages=TALK).json()
    assert answer["tokens"] == renderer_of("llama-3.2").prompt_ids(TALK) and answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 512
    tooled = post("/tokenize", "qwen2.5", messages=TALK, tools=[WEATHER]).json()
    assert tooled["tokens"] == renderer_of("qwen2.5").prompt_ids(TALK, [WEATHER])


def test_texts_there_and_back():
    renderer = renderer_of("llama-3.2")
    answer = post("/tokenize", prompt="One 🙂", return_token_strs=True).json()
    assert answer["tokens"][:1] == renderer.bos and len(answer["token_strs"]) == answer["count"]
    bare = post("/tokenize", prompt="One 🙂", add_special_tokens=False).json()["tokens"]
    assert bare == answer["tokens"][1:]
    assert post("/detokenize", tokens=answer["tokens"]).json() == {"prompt": "One 🙂"}


def test_what_is_refused():
    for fields in ({}, {"prompt": "a", "messages": TALK}, {"prompt": 3}):
        assert post("/tokenize", **fields).status_code == 400
    assert post("/detokenize", tokens=["a"]).status_code == 400 and post("/detokenize", tokens=[-1]).status_code == 400


def test_what_cannot_fit_is_refused_before_the_one_thread_that_tokenises_spends_time_on_it():
    long = "word " * 100_000
    for fields in ({"prompt": long}, {"messages": [{"role": "user", "content": long}]}):
        answer = post("/tokenize", **fields)
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    assert post("/detokenize", tokens=[1] * 513).json()["error"]["code"] == "context_length_exceeded"
    assert post("/detokenize", tokens=[1] * 512).status_code == 200
