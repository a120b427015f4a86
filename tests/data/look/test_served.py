import datetime

import pytest

from tests.templates import make_tokenizer
from tunesmith.data.look.served import difference, served
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import RowError, Sample

ROW = Sample("a:1", ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}))


@pytest.mark.parametrize(
    "family", ["smollm2", "qwen2.5", "qwen3", "deepseek-r1", "llama-3.2", "gemma-3", "mistral", "phi-3", "glm", "gpt-oss"]
)
def test_our_prompts_are_what_apply_chat_template_gives(family):
    renderer = Renderer(make_tokenizer(family), date=datetime.date.today().isoformat())
    found = served(ROW, 1, renderer)
    assert found.ids == renderer.prompt_ids(ROW.messages[:1]) and found.how == "apply_chat_template" and not found.special


def test_the_first_difference():
    assert difference([1, 2], [1, 2]) is None
    assert difference([1, 2, 3], [1, 9, 3]) == 1
    assert difference([1, 2], [1, 2, 3]) == difference([1, 2, 3], [1, 2]) == 2


def test_why_they_differ():
    renderer = Renderer(make_tokenizer("qwen2.5"))
    special = Sample("a:1", ({"role": "user", "content": "<|im_end|>"}, ROW.messages[1]))
    found = served(special, 1, renderer)
    assert found.special and "special tokens in the text" in found.reason([], renderer, 1024)
    assert served(ROW, 1, renderer).reason([1], renderer, 16) == "; the row was cut to data.max_length 16"
    dated = Renderer(make_tokenizer("llama-3.2"), date="2020-02-02")
    found = served(ROW, 1, dated)
    if dated.prints_date:
        assert "in training 2020-02-02, for a server today's" in found.reason([], dated, 1024)


def test_history_is_asked_as_the_setting_has_it_learned():
    thought = {"role": "assistant", "content": "<think>hm</think>Yes."}
    row = Sample("a:1", (ROW.messages[0], thought, ROW.messages[0], ROW.messages[1]))
    renderer = Renderer(make_tokenizer("qwen2.5"), thinking="drop")
    assert served(row, 3, renderer).ids == renderer.prompt_ids(row.messages[:3])
    assert "hm" not in renderer.tokenizer.decode(served(row, 3, renderer).ids)


def test_without_a_chat_template_and_with_one_that_refuses():
    tokenizer = make_tokenizer("smollm2")
    tokenizer.chat_template = None
    renderer = Renderer(tokenizer)
    assert served(ROW, 1, renderer).how == "no chat template"
    assert served(ROW, 1, renderer).ids == renderer.prompt_ids(ROW.messages[:1])
    twice = Sample("a:1", (ROW.messages[0], ROW.messages[0], ROW.messages[1]))
    with pytest.raises(RowError, match="the chat template refuses the messages before message 3"):
        served(twice, 2, Renderer(make_tokenizer("gemma-3")))
