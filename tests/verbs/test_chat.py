import argparse
import io
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from tests.fake_tuned import fake_tuned
from tests.headed import TAGS, headed
from tunesmith import config
from tunesmith import generate as generating
from tunesmith.errors import UserError
from tunesmith.verbs import chat


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def tuned(tiny_llama, monkeypatch):
    tuned = fake_tuned(tiny_llama)
    monkeypatch.setitem(sys.modules, "tunesmith.tuned", SimpleNamespace(open_tuned=lambda name: tuned))
    return tuned


@pytest.fixture
def says(monkeypatch, tuned):
    """Makes every answer the next of these texts; notes the weights that it was asked of."""
    weights: list[float] = []
    drawn: list[generating.Sampling] = []
    texts: Iterator[str] = iter(())

    def stream(model, prompt, stop_ids, sampling):
        weights.append(float(model.lm_head.weight.detach().sum()))
        drawn.append(sampling)
        text = next(texts)
        yield from tuned.tokenizer(text.removesuffix("^C"))["input_ids"]
        if text.endswith("^C"):
            raise KeyboardInterrupt

    def script(*given):
        nonlocal texts
        texts = iter(given)
        return SimpleNamespace(weights=weights, sampling=drawn)

    monkeypatch.setattr(generating, "stream", stream)
    return script


def talk(monkeypatch, *flags: str, typed: str, terminal: bool = False) -> int:
    monkeypatch.setattr(sys, "stdin", (Terminal if terminal else io.StringIO)(typed))
    parser = argparse.ArgumentParser()
    chat.add_arguments(parser)
    return chat.run(parser.parse_args(["tiny", *flags]))


def asked(tuned) -> list[list[str]]:
    return [[f"{m['role'][0]}:{m['content']}" for m in messages] for messages in tuned.renderer.asked]


def test_a_pipe_is_answered_line_by_line_with_its_history(tuned, says, monkeypatch, capsys):
    says("hello 你", "4")
    assert talk(monkeypatch, typed="hi\n\n2+2?\r\n") == 0
    assert capsys.readouterr().out == "hello 你\n4\n"
    assert asked(tuned) == [["u:hi"], ["u:hi", "a:hello 你", "u:2+2?"]]


def test_reset_and_system_begin_again(tuned, says, monkeypatch, capsys):
    says("1", "2", "3", "4")
    talk(monkeypatch, "--system", "be kind", typed="a\n/reset\nb\n/system be brief\nc\n/system\nd\n/quit\nnever\n")
    assert asked(tuned) == [["s:be kind", "u:a"], ["s:be kind", "u:b"], ["s:be brief", "u:c"], ["u:d"]]
    assert capsys.readouterr().out == "1\n2\n3\n4\n"


def test_unknown_commands_are_not_sent_and_two_slashes_are_one(tuned, says, monkeypatch, capsys):
    says("ok")
    assert talk(monkeypatch, typed="/rest\n/help\n//etc/hosts is a file\n") == 0
    assert asked(tuned) == [["u:/etc/hosts is a file"]]
    told = capsys.readouterr().err
    assert "no command /rest" in told and told.count("/system") == 4


def test_compare_lets_each_model_go_on_from_its_own_answers(tuned, says, monkeypatch, capsys):
    script = says("base one", "tuned one", "base two", "tuned two")
    with tuned.without_adapter():
        base = float(tuned.model.lm_head.weight.detach().sum())
    assert talk(monkeypatch, "--compare", typed="a\nb\n") == 0
    assert capsys.readouterr().out == "base: base one\ntuned: tuned one\nbase: base two\ntuned: tuned two\n"
    assert asked(tuned)[2:] == [["u:a", "a:base one", "u:b"], ["u:a", "a:tuned one", "u:b"]]
    assert [weight == pytest.approx(base, abs=1e-3) for weight in script.weights] == [True, False] * 2


def test_compare_needs_an_adapter(tuned, monkeypatch):
    tuned.has_adapter = False
    with pytest.raises(UserError, match="no adapter to leave out, it is a model by itself; name a run or an adapter folder"):
        talk(monkeypatch, "--compare", typed="a\n")
    tuned.run = config.parse({"model": {"source": "BASE"}, "method": "freeze"})
    with pytest.raises(UserError, match=r"out, freeze trained the base's own weights; talk to the base .*: tunesmith chat BASE$"):
        talk(monkeypatch, "--compare", typed="a\n")


def test_a_turn_that_the_template_refuses_is_taken_back_for_all(tuned, says, monkeypatch, capsys):
    says("1", "2", "3", "4")
    assert talk(monkeypatch, "--compare", typed="a\nrefuse\nb\n") == 2
    assert asked(tuned)[2:] == [["u:a", "a:1", "u:b"], ["u:a", "a:2", "u:b"]]
    assert "takes no such message" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(tuned, says, monkeypatch, capsys):
    says("a long^C", "next")
    assert talk(monkeypatch, typed="a\nb\n") == 0
    assert capsys.readouterr().out == "a long [stopped]\nnext\n"
    assert asked(tuned)[1] == ["u:a", "a:a long", "u:b"]


def test_thinking_goes_into_the_history_apart(tuned, says, monkeypatch):
    says("<think>hm</think>\n4", "5")
    talk(monkeypatch, typed="a\nb\n")
    assert tuned.renderer.asked[1][1] == {"role": "assistant", "content": "4", "reasoning_content": "hm"}


def test_every_turn_draws_anew(tuned, says, monkeypatch):
    script = says("1", "2")
    talk(monkeypatch, "--temperature", "0.7", "--top-p", "0.9", "--seed", "40", "--max-new-tokens", "9", typed="a\nb\n")
    assert script.sampling == [generating.Sampling(9, 0.7, 0.9, seed=41), generating.Sampling(9, 0.7, 0.9, seed=42)]


def test_wrong_flags_are_said_before_the_model_loads(monkeypatch):
    monkeypatch.setitem(sys.modules, "tunesmith.tuned", SimpleNamespace(open_tuned=lambda name: pytest.fail("loaded")))
    with pytest.raises(UserError, match="temperature"):
        talk(monkeypatch, "--temperature", "-1", typed="a\n")


def test_an_answer_cannot_steer_the_terminal(tuned, says, monkeypatch, capsys):
    says("a\x1b]0;title\x07b\x9b2J\tc\nd")
    talk(monkeypatch, typed="a\n")
    assert capsys.readouterr().out == "a]0;titleb2J\tc\nd\n"


def test_a_terminal_is_greeted_and_ends_with_the_input(tuned, says, monkeypatch, capsys):
    says("hello")
    entered = iter(["", "hi", KeyboardInterrupt(), "\udce4"])

    def read(prompt):
        line = next(entered, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    says("hello", "half")
    assert talk(monkeypatch, typed="", terminal=True) == 0
    told = capsys.readouterr()
    assert told.out.startswith("hello\n") and "/help" in told.err and "Ctrl-D" in told.err
    assert asked(tuned)[1][-1] == "u:?"


def test_the_real_path(tuned, monkeypatch, capsys):
    """Nothing replaced but the terminal: the printed answer is what `generate` makes of the same prompt."""
    assert talk(monkeypatch, "--max-new-tokens", "12", typed="hi\n") == 0
    prompt = tuned.renderer.prompt_ids([{"role": "user", "content": "hi"}])
    (made,) = generating.generate(tuned.model, [prompt], tuned.renderer.stops, generating.Sampling(12))
    assert capsys.readouterr().out == chat.printable(tuned.tokenizer.decode(made.ids, skip_special_tokens=True)) + "\n"


@pytest.fixture
def opens(monkeypatch, tiny_llama):
    """Makes the opened run one with a head."""

    def script(*about):
        made = headed(tiny_llama, *about)
        monkeypatch.setitem(sys.modules, "tunesmith.tuned", SimpleNamespace(open_tuned=lambda name: made))
        return made

    return script


def test_a_head_that_classifies_answers_each_line_with_its_labels(opens, monkeypatch, capsys):
    opens("classify", ["no", "perhaps", "yes"])
    assert talk(monkeypatch, typed="a fine day\n\nanother\n/quit\nnever\n") == 0
    answers = [dict(part.split(" ") for part in line.split(", ")) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 2 and all(set(answer) == {"no", "perhaps", "yes"} for answer in answers)
    for answer in answers:
        shares = [float(share) for share in answer.values()]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=2e-3)


def test_a_head_that_tags_answers_with_the_entities(opens, monkeypatch, capsys):
    made = opens("tag", TAGS)
    with torch.no_grad():
        made.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1e4, 0.0]))  # everything begins a person
    assert talk(monkeypatch, typed="Ann met 李\n") == 0
    assert capsys.readouterr().out == '{"PER":["Ann","met","李"]}\n'


def test_a_line_that_a_head_cannot_take_is_said_and_the_next_one_answered(opens, monkeypatch, capsys):
    opens("classify", ["no", "yes"])
    assert talk(monkeypatch, typed="x" * 600 + "\nfine\n") == 2
    told = capsys.readouterr()
    assert "600 tokens, and this model takes 512" in told.err and len(told.out.splitlines()) == 1
    with pytest.raises(UserError, match="predicts labels with the head that it learned"):
        talk(monkeypatch, "--compare", typed="a\n")
