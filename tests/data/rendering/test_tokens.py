import sys
import threading
import time

import pytest

from tests.templates import make_tokenizer
from tunesmith.data.rendering.tokens import Encoder, parts, restore
from tunesmith.data.sample import RowError


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(make_tokenizer("gemma-3"))


def test_special_tokens_are_found_the_longest_first(encoder):
    text = "a<unused1<unused12><bos><eos>"
    assert [text[start:end] for start, end in encoder.find(text)] == ["<unused12>", "<bos>", "<eos>"]
    assert list(encoder.find("<|im_end|> <think>")) == []  # not this family's; and an added word is not special
    assert encoder.last("x<bos>y<eos>z") == 7 and encoder.last("x") == 0 and encoder.last("") == 0


def test_finding_is_fast_where_text_is_full_of_angle_brackets(encoder):
    text = "<p>word</p>" * 20_000
    start = time.perf_counter()
    assert list(encoder.find(text)) == []
    assert time.perf_counter() - start < 1.0  # 40,000 brackets against 104 special tokens


def test_hidden_text_comes_back(encoder):
    messages = [{"role": "<bos>", "content": "a <eos> b", "tool_calls": [{"function": {"arguments": {"<bos>": ["<bos>"]}}}]}]
    (hidden, none), marks = encoder.hide(messages, None)
    assert none is None and sorted(marks.values()) == ["<bos>", "<eos>"]
    assert hidden[0]["role"] == "<bos>" and "<eos>" not in hidden[0]["content"]
    assert restore(hidden[0]["content"], marks) == "a <eos> b"
    assert list(hidden[0]["tool_calls"][0]["function"]["arguments"]) == ["<bos>"]
    assert messages[0]["content"] == "a <eos> b"  # the row itself is not touched
    assert encoder.hide("nothing", []) == (["nothing", []], {})


def test_marks_written_as_ascii_json_come_back(encoder):
    import json

    [hidden], marks = encoder.hide("a <eos>")
    assert restore(json.dumps(hidden), marks) == '"a <eos>"'


def test_both_private_planes_taken(encoder):
    with pytest.raises(RowError, match="private-use"):
        encoder.hide("<eos> \U000f0000 \U00100000")


def test_parts_lose_nothing_and_cut_behind_single_line_ends():
    text = "a b\nc\n\nd\n  e\nf\n" * 20
    pieces = list(parts(text, 30))
    assert "".join(pieces) == text and len(pieces) > 5
    assert all(piece.endswith("\n") and not piece.endswith("\n\n") for piece in pieces)
    assert all(not piece[0].isspace() for piece in pieces)
    assert list(parts("x" * 100, 30)) == ["x" * 100]


def test_another_thread_cannot_make_a_text_special_while_it_is_encoded():
    tokenizer = make_tokenizer("gemma-3")
    first, stop = Encoder(tokenizer), threading.Event()
    meanwhile: list[BaseException] = []

    def meddle() -> None:  # as a server does that takes in an adapter
        try:
            while not stop.is_set():
                first.batch(["<eos>"])
                Encoder(tokenizer)
        except BaseException as error:
            meanwhile.append(error)

    thread, interval = threading.Thread(target=meddle), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        special = tokenizer.convert_tokens_to_ids("<eos>")
        assert not [1 for _ in range(1500) if special in first.batch(["<eos>"], split=True)[0]] and not meanwhile
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
