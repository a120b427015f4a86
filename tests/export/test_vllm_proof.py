"""When two answers are the same."""

from tunesmith.export.vllm_proof import Answer, same_tokens

NEAR, FAR = {5: -1.0, 6: -1.005, 7: -3.0}, {5: -1.0, 6: -2.0, 7: -2.5}


def test_a_tie_is_no_failure() -> None:
    assert same_tokens([1, 6], Answer([1, 5], [NEAR, NEAR], "stop"), "x")[1].startswith("a tie at token 1")
    assert same_tokens([1], Answer([1, 5], [NEAR, NEAR], "stop"), "x")[1].startswith("a tie"), "we ended, and an end was as likely"


def test_another_token_is_one() -> None:
    assert same_tokens([1, 6], Answer([1, 5], [NEAR, FAR], "stop"), "x") == (1, "its answer to x has 5 at token 1 in place of 6")
    assert same_tokens([1, 9], Answer([1, 5], [NEAR, NEAR], "stop"), "x")[1] == "its answer to x has 5 at token 1 in place of 9"


def test_another_length_is_one() -> None:
    assert same_tokens([1], Answer([1, 5], [NEAR, FAR], "stop"), "x") == (1, "its answer to x has 5 at token 1 in place of the end")
    assert same_tokens([1, 6], Answer([1], [NEAR, FAR], "stop"), "x") == (1, "its answer to x has the end at token 1 in place of 6")
    assert same_tokens([1, 5], Answer([1, 5], [NEAR, FAR], "stop"), "x") == (2, "")
