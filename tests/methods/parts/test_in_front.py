"""What virtual tokens and prefixes begin as, and that they leave room."""

from typing import Any

import pytest
import torch

from tests.tiny_models import tiny
from tunesmith.errors import UserError
from tunesmith.methods.parts.in_front import SENTENCE, check_room, text_ids
from tunesmith.methods.tuning import Start


class Letters:
    """A token for each letter, one in front of every text and one behind."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        own = [ord(letter) for letter in text.strip()]
        return {"input_ids": [1, *own, 2] if add_special_tokens else own}


def start(task: str = "", tokenizer: Any = None) -> Start:
    return Start(None, tokenizer or Letters(), 0, lambda path: torch.empty(0), task)


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [("abc", 3, "ab"), ("abc", 4, "abc"), ("ab", 6, "ababa"), ("a", 1, "")],
)
def test_a_text_is_repeated_or_cut_with_what_stands_in_front_of_every_text_once(text: str, count: int, expected: str) -> None:
    assert text_ids(start(), text, count) == [1, *map(ord, expected)]


def test_without_a_text_the_task_is_named_and_without_a_task_a_sentence_that_fits_any() -> None:
    assert text_ids(start("xy"), "", 3) == [1, *map(ord, "xy")] and text_ids(start("xy"), "z", 2) == [1, ord("z")]
    assert text_ids(start(), "", 1 + len(SENTENCE)) == [1, *map(ord, SENTENCE)]


def test_a_tokenizer_that_writes_the_text_otherwise_within_a_whole_puts_nothing_in_front() -> None:
    def odd(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [7, 8] if add_special_tokens else [5, 6]}

    assert text_ids(start(tokenizer=odd), "any", 3) == [5, 6, 5]


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.text is ' ', which has no tokens; write a sentence about the task"):
        text_ids(start(), " ", 3)


def test_what_fills_the_model_is_refused() -> None:
    """The tiny models take 256 positions; Mamba counts none."""
    check_room(tiny("llama"), 255)
    check_room(tiny("mamba"), 10_000)
    with pytest.raises(LookupError, match=r"256 positions in front leave no room: this model takes 256; lower method\.tokens"):
        check_room(tiny("llama"), 256)
