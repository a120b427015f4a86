import json

import pytest

from tests.export.gguf.tokenizers_made import byte_level
from tunesmith.errors import UserError
from tunesmith.export.gguf.splits import LLAMA3, NAMES, QWEN2, split_name


def backend(steps: tuple[str, ...], ignore_merges: bool = False) -> dict:
    return json.loads(byte_level(steps, ignore_merges).backend_tokenizer.to_str())


@pytest.mark.parametrize("steps", NAMES)
def test_a_rule_is_found_by_what_it_does(steps: tuple[str, ...]) -> None:
    merged, whole = NAMES[steps]
    assert split_name(backend(steps), "here") == merged
    if whole:
        assert split_name(backend(steps, ignore_merges=True), "here") == whole


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(UserError, match=r"here: text is cut by .*whole words first.* no name for that"):
        split_name(backend((QWEN2,), ignore_merges=True), "here")
    with pytest.raises(UserError, match="digits then"):
        split_name(backend(("digits", LLAMA3)), "here")
    for pre in (
        {"type": "Whitespace"},
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
        {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": True},
    ):
        with pytest.raises(UserError, match=r"not known in llama\.cpp"):
            split_name({"pre_tokenizer": pre, "model": {"merges": [["a", "b"]]}}, "here")


def test_bytes_alone_need_no_rule() -> None:
    none = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    assert split_name({"pre_tokenizer": none, "model": {"merges": []}}, "here") == "gpt-2"
    with pytest.raises(UserError, match="no rule at all"):
        split_name({"pre_tokenizer": none, "model": {"merges": [["a", "b"]]}}, "here")
