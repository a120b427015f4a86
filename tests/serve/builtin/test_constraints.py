"""Whatever the model wants, what comes out under the mask is what was asked for: random logits, four kinds, many tokenizers."""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from transformers import AutoTokenizer

from tests.conftest import write_byte_tokenizer
from tests.templates import make_tokenizer
from tunesmith.serve.ask import Constraint
from tunesmith.serve.builtin.constraints import FORMATS, MISSING, Matcher, matcher_of

pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "mood": {"enum": ["müde", "gut", '日本 "x"', None, 3]},
        "age": {"type": "integer", "minimum": 3, "maximum": 7},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "home": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "mood", "age", "home"],
    "additionalProperties": False,
}


def check_person(text: str) -> None:
    """What PERSON says, by hand."""
    value = json.loads(text)
    assert list(value) in (["name", "mood", "age", "tags", "home"], ["name", "mood", "age", "home"])
    assert isinstance(value["name"], str) and 1 <= len(value["name"]) <= 12
    assert value["mood"] in PERSON["properties"]["mood"]["enum"]  # type: ignore[index]
    assert isinstance(value["age"], int) and 3 <= value["age"] <= 7
    assert len(value.get("tags", [])) <= 3 and all(isinstance(tag, bool) for tag in value.get("tags", []))
    assert list(value["home"]) == ["zip"] and re.fullmatch(r"[0-9]{5}", value["home"]["zip"])


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def written(tokenizer: Any, constraint: Constraint, seed: int, *, extra: int = 5, limit: int = 400) -> str:
    """An answer of a model that wants anything: random logits, of which the head has some more than the tokenizer has words."""
    stop = tokenizer.eos_token_id
    matcher = matcher_of(constraint, tokenizer, {stop})
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    while not matcher.finished and len(ids) < limit:
        logits_V = torch.randn(len(tokenizer) + extra, generator=generator)
        logits_V[len(tokenizer) :] = 50  # padding of the head: the likeliest, and no words
        matcher.mask(logits_V)
        token = int(logits_V.argmax())
        assert logits_V[token] > -torch.inf, matcher.trouble
        matcher.accept(token)
        if token == stop:
            break
        ids.append(token)
    assert matcher.finished and not matcher.trouble
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


@pytest.mark.parametrize("seed", range(8))
def test_json_keeps_to_its_schema_with_bytes_as_words(byte_tokenizer: Any, seed: int) -> None:
    check_person(written(byte_tokenizer, Constraint("json", PERSON), seed))


@pytest.mark.parametrize("family", ["smollm2", "qwen3", "llama-3.2", "gemma-3", "mistral-v3", "phi-3", "gpt-oss"])
def test_json_keeps_to_its_schema_in_every_familys_words(family: str) -> None:
    tokenizer = make_tokenizer(family)
    for seed in range(3):
        check_person(written(tokenizer, Constraint("json", PERSON), seed))


def test_json_keeps_to_its_schema_in_the_built_in_models_words(builtin_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(builtin_model)
    for seed in range(3):
        check_person(written(tokenizer, Constraint("json", PERSON), seed, extra=64))


def test_json_is_on_one_line_unless_the_schema_says_otherwise(byte_tokenizer: Any) -> None:
    def blanks(schema: dict[str, Any]) -> str:
        matcher = matcher_of(Constraint("json", schema), byte_tokenizer, {byte_tokenizer.eos_token_id})
        for byte in b'{"a":':
            matcher.accept(byte_id(byte_tokenizer, byte))
        logits_V = torch.zeros(260)
        matcher.mask(logits_V)
        matcher.accept(byte_id(byte_tokenizer, ord(" ")))
        second_V = torch.zeros(260)
        matcher.mask(second_V)
        allowed = [
            (each, byte)
            for each, V in (("first", logits_V), ("then", second_V))
            for byte in b" \n"
            if V[byte_id(byte_tokenizer, byte)] == 0
        ]
        return " ".join(f"{each}:{chr(byte)!r}" for each, byte in allowed)

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert blanks(schema) == "first:' '"
    assert blanks({**schema, "x-guidance": {"whitespace_flexible": True}}) == "first:' ' first:'\\n' then:' ' then:'\\n'"


def byte_id(tokenizer: Any, byte: int) -> int:
    (token,) = tokenizer.encode(chr(byte), add_special_tokens=False)
    return int(token)


def test_schemas_as_pydantic_writes_them(byte_tokenizer: Any) -> None:
    class Mood(Enum):
        GOOD = "good"
        BAD = "bad"

    class Part(BaseModel):
        model_config = ConfigDict(extra="forbid")
        name: str = Field(max_length=5, description="short")
        inner: list["Part"] = Field(default_factory=list, max_length=1)

    class Order(BaseModel):
        model_config = ConfigDict(extra="forbid")
        day: date
        mood: Mood
        secret: SecretStr = Field(max_length=4)  # format: password, which llguidance does not know
        count: int | None = Field(ge=0, le=99)
        kind: Literal["x", "y"]
        part: Part
        pair: tuple[bool, Annotated[int, Field(gt=1, lt=4)]]

    Order.model_rebuild(_types_namespace={"Part": Part})
    schema = Order.model_json_schema()
    for seed in range(4):
        Order.model_validate_json(written(byte_tokenizer, Constraint("json", schema), seed, limit=600))


def test_formats_that_are_known_are_kept_and_others_are_notes(byte_tokenizer: Any) -> None:
    for name in FORMATS:
        matcher_of(Constraint("json", {"type": "string", "format": name}), byte_tokenizer, {257})
    stamp = written(byte_tokenizer, Constraint("json", {"type": "string", "format": "date"}), 1)
    assert re.fullmatch(r'"\d{4}-\d{2}-\d{2}"', stamp)
    named = {
        "type": "object",
        "properties": {"format": {"const": {"format": "byte"}}},
        "required": ["format"],
        "additionalProperties": False,
    }
    assert json.loads(written(byte_tokenizer, Constraint("json", named), 1)) == {"format": {"format": "byte"}}


def test_any_object(byte_tokenizer: Any) -> None:
    short = 0
    for seed in range(6):
        try:
            assert isinstance(json.loads(written(byte_tokenizer, Constraint("json", {}), seed, limit=300)), dict)
            short += 1
        except AssertionError:  # a random walk need not find its end
            continue
    assert short >= 2


def test_expression_choice_and_grammar(byte_tokenizer: Any) -> None:
    texts = ["yes", 'no "q"\\ \n', "日本 ü", "a{1}|b", "yes, sir"]
    grammar = 'start: "a" pair+ "!"\npair: "(" DIGIT DIGIT ")"\nDIGIT: /[0-9]/'
    chosen = set()
    for seed in range(12):
        chosen.add(written(byte_tokenizer, Constraint("choice", texts), seed))
        assert re.fullmatch(r"[0-9]{3}/[a-cé]+\$", written(byte_tokenizer, Constraint("regex", r"^\d{3}/[a-cé]+\$$"), seed))
        assert re.fullmatch(r"a(\([0-9]{2}\))+!", written(byte_tokenizer, Constraint("lark", grammar), seed))
    assert chosen <= set(texts) and len(chosen) >= 3


def test_stop_tokens_only_where_the_grammar_may_end(byte_tokenizer: Any) -> None:
    stops = {byte_tokenizer.eos_token_id, byte_tokenizer.convert_tokens_to_ids("<|im_start|>")}
    matcher = matcher_of(Constraint("regex", "ab?"), byte_tokenizer, stops)

    def may_stop() -> bool:
        logits_V = torch.zeros(300)
        matcher.mask(logits_V)
        allowed = {token for token in stops if logits_V[token] == 0}
        assert allowed in (set(), stops), "all of them or none"
        return bool(allowed)

    assert not may_stop() and not matcher.finished
    matcher.accept(byte_id(byte_tokenizer, ord("a")))
    assert may_stop() and not matcher.finished
    matcher.accept(byte_id(byte_tokenizer, ord("b")))
    assert may_stop() and matcher.finished
    early = matcher_of(Constraint("regex", "ab?"), byte_tokenizer, stops)
    early.accept(byte_id(byte_tokenizer, ord("a")))
    early.accept(min(stops))
    assert early.finished


def test_a_token_that_is_not_allowed_is_trouble_and_nothing_goes_on(byte_tokenizer: Any) -> None:
    matcher = matcher_of(Constraint("regex", "ab"), byte_tokenizer, {257})
    matcher.accept(byte_id(byte_tokenizer, ord("z")))
    assert not matcher.finished
    assert matcher.trouble.startswith("the constraint cannot go on: ") and "\n" not in matcher.trouble
    logits_V = torch.zeros(260)
    matcher.mask(logits_V)
    assert bool((logits_V == -torch.inf).all())


def test_special_tokens_are_no_text_but_a_grammar_may_name_them() -> None:
    tokenizer = make_tokenizer("mistral-v3")
    calls = tokenizer.convert_tokens_to_ids("[TOOL_CALLS]")
    free = matcher_of(Constraint("regex", r"[\s\S]+"), tokenizer, {tokenizer.eos_token_id})
    logits_V = torch.zeros(len(tokenizer))
    free.mask(logits_V)
    assert logits_V[calls] == -torch.inf
    named = matcher_of(Constraint("lark", f'start: <[{calls}]> " [" /[0-9]/ "]"'), tokenizer, {tokenizer.eos_token_id})
    logits_V = torch.zeros(len(tokenizer))
    named.mask(logits_V)
    assert (logits_V == 0).nonzero().flatten().tolist() == [calls]


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Constraint("json", {"type": "foo"}), "the JSON schema cannot be served: Invalid type: foo"),
        (Constraint("json", {"$ref": "https://example.com/x"}), "the JSON schema cannot be served"),
        (Constraint("json", {"type": "string", "pattern": "("}), "unclosed group"),
        (Constraint("json", [1]), "a JSON schema is an object"),
        (Constraint("regex", "(a"), "the regular expression cannot be served: unclosed group"),
        (Constraint("regex", "a(?=b)"), "look-around"),
        (Constraint("regex", 3), "a regular expression is a text"),
        (Constraint("choice", []), "a choice is a list of texts"),
        (Constraint("choice", ["a", ""]), "a choice is a list of texts"),
        (Constraint("lark", "start: x"), "unknown name"),
        (Constraint("lark", None), "a grammar is a text"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_said_in_one_sentence(byte_tokenizer: Any, constraint: Constraint, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        matcher_of(constraint, byte_tokenizer, {257})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_missing_library_and_a_tokenizer_without_its_file(byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        eos_token_id = 1

    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        matcher_of(Constraint("json", {}), Slow(), {1})
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'tunesmith[serve]'")) as caught:
        matcher_of(Constraint("json", {}), byte_tokenizer, {257})
    assert str(caught.value) == MISSING


def test_answers_of_one_schema_do_not_touch_each_other(byte_tokenizer: Any) -> None:
    constraint = Constraint("json", PERSON)
    alone = [written(byte_tokenizer, constraint, seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda seed: written(byte_tokenizer, constraint, seed), range(8))) == alone
    one, other = (matcher_of(constraint, byte_tokenizer, {257}) for _ in range(2))
    one.accept(byte_id(byte_tokenizer, ord("{")))
    assert allowed(one) != allowed(other)


def allowed(matcher: Matcher) -> list[int]:
    logits_V = torch.zeros(260)
    matcher.mask(logits_V)
    return [int(token) for token in (logits_V == 0).nonzero().flatten()]


@pytest.mark.parametrize(
    "constraint", [Constraint("json", {"$ref": "#"}), Constraint("regex", r"[^\s\S]"), Constraint("lark", "start: start")]
)
def test_what_no_text_keeps_to_is_refused_before_an_answer_begins(constraint):
    with pytest.raises(ValueError, match="no text at all would keep to it"):
        matcher_of(constraint, make_tokenizer("gemma-3"), [1])
