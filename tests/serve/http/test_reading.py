"""What is found by looking at what a template writes."""

from tests.serve.http.talking import renderer_of, tokenizer_of
from tunesmith.serve.http.reading import reading_of


def test_the_marks_of_families():
    qwen = reading_of(renderer_of("qwen2.5"), True)
    assert qwen.form is not None and qwen.form.opens == ("<tool_call>",) and qwen.form.close == "</tool_call>" and not qwen.marks
    llama = reading_of(renderer_of("llama-3.2"), True)
    assert llama.form is not None and llama.form.opens == ("",) and llama.written is not None
    assert llama.written.text("f", "{}") == '{"name": "f", "parameters": {}}'
    mistral = reading_of(renderer_of("mistral-v3"), True)
    assert mistral.form is not None and mistral.nine
    assert mistral.marks == {tokenizer_of("mistral-v3").convert_tokens_to_ids("[TOOL_CALLS]"): mistral.form.opens[0]}
    harmony = reading_of(renderer_of("gpt-oss"), True)
    assert harmony.form is not None and harmony.form.named and "to=functions." in harmony.form.opens


def test_a_template_without_calls_has_no_form():
    for family in ("smollm2", "gemma-3", "phi-3", "cohere2", "mistral"):
        assert reading_of(renderer_of(family), True).form is None
    assert reading_of(renderer_of("qwen2.5"), False).form is None


def test_thinking_ends_with_one_token_and_what_follows_it_leads_to_speech():
    thought = reading_of(renderer_of("gpt-oss"), False).thought
    marks = {letter: token for token, letter in reading_of(renderer_of("gpt-oss"), False).marks.items()}
    [close] = [text for text in thought.closes if text != "</think>"]
    assert marks[close] == tokenizer_of("gpt-oss").convert_tokens_to_ids("<|end|>")
    assert any(lead.endswith("final" + lead[-1]) for lead in thought.leads)
    assert reading_of(renderer_of("mistral"), False).thought.blank == " "
