from types import SimpleNamespace

import pytest

from tests.fake_tuned import FakeTuned, fake_tuned
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import Sample
from tunesmith.errors import UserError
from tunesmith.evaluate import evaluate as module
from tunesmith.evaluate.evaluate import answer_room, choose, evaluate, questions, split_thinking
from tunesmith.evaluate.evaluation import record
from tunesmith.generate import Generated, Sampling


@pytest.fixture(scope="module")
def tuned(tiny_llama):
    return fake_tuned(tiny_llama)


def chat(origin: str, *turns: str, **extra) -> Sample:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    messages[-1] |= extra
    return Sample(origin, tuple(messages))


@pytest.fixture
def says(monkeypatch, tuned):
    """Makes the model answer given texts; an answer that ends with … was cut at the limit."""

    seen = SimpleNamespace()

    def script(*texts: str):
        def generate(model, prompts, stop_ids, sampling, *, on_progress=None):
            assert model is tuned.model and stop_ids == tuned.renderer.stops
            seen.sampling, seen.prompts = sampling, prompts
            return [Generated(tuned.tokenizer(text.removesuffix("…"))["input_ids"], not text.endswith("…")) for text in texts]

        monkeypatch.setattr(module, "generate", generate)
        return seen

    return script


def test_the_last_answer_is_the_reference_and_all_before_it_the_prompt(tuned, says):
    samples = [chat("f:1", "hi", "hello", "2+2?", "4"), chat("f:2", "3+3?", "6")]
    script = says("4", "5")
    tuned.renderer.asked.clear()
    result = evaluate(tuned, samples, metrics=["exact_match"])
    assert [[m["content"] for m in messages] for messages in tuned.renderer.asked] == [["hi", "hello", "2+2?"], ["3+3?"]]
    assert script.prompts[1] == tuned.renderer.prompt_ids(samples[1].messages[:1])
    assert result.scores == {"exact_match": 0.5}
    assert result.intervals == {"exact_match": (0.0, 1.0)}
    assert record(result.rows[1]) == {
        "origin": "f:2", "prompt": "3+3?", "reference": "6", "prediction": "5", "scores": {"exact_match": 0.0}, "stopped": True,
    }  # fmt: skip
    assert result.unfinished == result.learned_tokens == 0


def test_messages_after_the_last_answer_are_not_fed(tuned, says):
    says("4")
    sample = Sample(
        "f:1", ({"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}, {"role": "user", "content": "thanks"})
    )
    assert evaluate(tuned, [sample], metrics=["exact_match"]).scores == {"exact_match": 1}


def test_auto_is_the_loss_and_what_suits_the_references(tuned, says):
    says('{"a":1}', "{")
    result = evaluate(tuned, [chat("f:1", "x", '{"a":1}'), chat("f:2", "y", '{"b":2}')])
    assert list(result.scores) == [
        "loss", "perplexity", "exact_match", "json_valid", "json_fields", "json_fields.precision", "json_fields.recall",
    ]  # fmt: skip
    assert result.scores["json_valid"] == 0.5 and result.scores["json_fields.precision"] == 1
    assert result.learned_tokens == 16  # 7 characters and the stop token, twice
    assert result.rows[1].scores == {"exact_match": 0, "json_valid": 0, "json_fields": 0}
    assert "json_fields" in result.intervals and "loss" not in result.intervals


def test_choose():
    assert choose("auto", ["pos", "neg"] * 4) == ["loss", "exact_match", "accuracy", "macro_f1"]
    assert choose("auto", ["A first sentence.", "A second one."]) == ["loss", "exact_match", "chrf"]
    assert choose("auto", []) == ["loss"]
    assert choose(["contains", "contains", "loss"], []) == ["contains", "loss"]
    with pytest.raises(UserError) as error:
        choose(["f1", "bleu", "loss"], [])
    assert len(error.value.problems) == 2 and "json_fields" in error.value.problems[0]


def test_raw_text_has_a_loss_only(tuned):
    result = evaluate(tuned, [Sample("t:1", text="some text")])
    assert set(result.scores) == {"loss", "perplexity"} and result.rows == []
    with pytest.raises(UserError, match="raw text has no answers"):
        evaluate(tuned, [Sample("t:1", text="some text")], metrics=["exact_match"])
    with pytest.raises(UserError, match="no rows"):
        evaluate(tuned, [])


def test_rows_that_the_template_refuses_are_all_named(tuned):
    samples = [chat("f:1", "fine", "x")] + [chat(f"f:{i}", "refuse", "x") for i in range(2, 27)]
    with pytest.raises(UserError) as error:
        evaluate(tuned, samples, metrics=["exact_match"])
    assert error.value.problems[0] == "f:2: this template takes no such message"
    assert error.value.problems[-2] == "and 5 more rows"


def test_rows_without_a_question_or_an_answer_are_named(tuned):
    answer, question = {"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}
    with pytest.raises(UserError) as error:
        questions(tuned, [Sample("f:1", (answer,)), Sample("f:2", (question,)), Sample("f:3", (question, answer))])
    assert [problem.split(": ")[0] for problem in error.value.problems[:-1]] == ["f:1", "f:2"]


def test_thinking_is_kept_apart_as_a_server_does(tuned, says):
    says("<think>\nhm\n</think>\n\n4", "so</think>4", "<think>never ending…")
    result = evaluate(tuned, [chat(f"f:{i}", "2+2?", "4") for i in range(3)], metrics=["exact_match"])
    assert [(row.prediction, row.thinking) for row in result.rows] == [("4", "hm"), ("4", "so"), ("<think>never ending", "")]
    assert result.scores == {"exact_match": pytest.approx(2 / 3)}
    assert result.unfinished == 1
    assert split_thinking("plain") == ("", "plain")


def test_a_tool_call_is_compared_as_the_template_writes_it(tuned, says):
    says("<call>look_up</call>")
    call = {"type": "function", "id": "1", "function": {"name": "look_up", "arguments": {}}}
    result = evaluate(tuned, [chat("f:1", "weather?", "", tool_calls=[call])], metrics=["exact_match"])
    assert result.rows[0].reference == "<call>look_up</call>"
    assert result.scores == {"exact_match": 1}


def test_answers_have_room_for_twice_the_longest_reference(tuned, says):
    samples = [chat("f:1", "x", "y" * 50), chat("f:2", "x", "z")]
    assert answer_room(tuned, questions(tuned, samples)) == 100
    assert answer_room(tuned, questions(tuned, samples[1:])) == 32
    assert answer_room(tuned, questions(tuned, [chat("f:3", "x", "y" * 5000)])) == 1024
    script = says("a", "b")
    evaluate(tuned, samples, metrics=["exact_match"])
    assert script.sampling == Sampling(100)
    evaluate(tuned, samples, metrics=["exact_match"], sampling=Sampling(7))
    assert script.sampling == Sampling(7)


def test_the_real_path_from_samples_to_scores(tuned):
    """Nothing replaced: what the tiny model answers greedily is its own reference."""
    first = evaluate(tuned, [chat("f:1", "one", "x"), chat("f:2", "another", "x")], metrics=["exact_match"], sampling=Sampling(5))
    assert first.scores == {"exact_match": 0}
    said = [chat(f"f:{i}", row.prompt, row.prediction) for i, row in enumerate(first.rows)]
    progress = []
    again = evaluate(tuned, said, metrics=["exact_match"], sampling=Sampling(5), on_progress=lambda *at: progress.append(at))
    assert again.scores == {"exact_match": 1} and progress == [(2, 2)]


def test_the_real_renderer_serves_evaluation(tuned):
    renderer = Renderer(tuned.tokenizer, stop_ids=[257])
    real = FakeTuned("tiny", tuned.model, tuned.tokenizer, renderer)
    samples = [chat("f:1", "one", "x"), chat("f:2", "another", "yes")]
    ours, theirs = (evaluate(model, samples, sampling=Sampling(5)) for model in (real, tuned))
    assert ours.rows == theirs.rows and ours.learned_tokens == theirs.learned_tokens == 6
    assert ours.scores == pytest.approx(theirs.scores)
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    with pytest.raises(UserError, match=r"f:3: .*look_up"):  # a ChatML template has no place for tools
        evaluate(real, [Sample("f:3", chat("", "one", "x").messages, (tool,))])
