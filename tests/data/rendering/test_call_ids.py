import re

from tunesmith.data.rendering.call_ids import nine_letters


def talk(*ids: str | None, results: tuple[str | None, ...]) -> list[dict]:
    calls = [{"function": {"name": "find", "arguments": {}}} | ({"id": own} if own else {}) for own in ids]
    said = [{"role": "tool", "content": "x"} | ({"tool_call_id": own} if own else {}) for own in results]
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": calls}, *said]


def ids_of(messages: list[dict]) -> tuple[list[str], list[str]]:
    calls = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    return calls, [message["tool_call_id"] for message in messages if message["role"] == "tool"]


def test_ids_of_nine_letters_stay():
    messages = talk("abcdefgh1", "TEQBjG3H3", results=("TEQBjG3H3", "abcdefgh1"))
    assert nine_letters(messages) == messages


def test_other_ids_are_shortened_alike_at_the_call_and_at_its_result():
    calls, results = ids_of(nine_letters(talk("call_1", "call_2", results=("call_2", "call_1"))))
    assert results == calls[::-1] and len(set(calls)) == 2
    assert all(re.fullmatch("[0-9a-f]{9}", own) for own in calls)


def test_missing_ids_are_made_and_results_take_them_in_order():
    messages = [*talk(None, None, results=(None, None)), *talk(None, results=(None,))]
    calls, results = ids_of(nine_letters(messages))
    assert calls == results and len(set(calls)) == 3
    assert ids_of(nine_letters(messages)) == (calls, results)  # a row always has the same
    assert ids_of(nine_letters(messages[:4]))[0] == calls[:2]  # and its beginning too
    assert "id" not in messages[1]["tool_calls"][0] and "tool_call_id" not in messages[2]  # the row itself is not touched


def test_some_ids_missing():
    calls, results = ids_of(nine_letters(talk("abcdefgh1", None, results=("abcdefgh1", None, None))))
    assert results[:2] == calls and re.fullmatch("[0-9a-f]{9}", results[2])
