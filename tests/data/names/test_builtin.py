import json
import re

import pytest

from tunesmith.data.names.builtin import BUILTIN
from tunesmith.data.names.tickets import ENGLISH, INSTRUCTION, PAIRS, Grammar, Phrases

KEYS = ["category", "product", "order", "wants"]
SIZES = {"tickets": 400, "tickets-test": 32}


def ticket(row: dict[str, str]) -> str:
    return row["prompt"]


def phrases(grammar: Grammar) -> list[Phrases]:
    flat = [grammar.layouts, grammar.openings, grammar.products, grammar.orders]
    return flat + [p for group in (grammar.problems, grammar.wishes) for p in group.values()]


@pytest.mark.parametrize("name", SIZES)
def test_rows_are_the_same_every_time_and_none_stands_twice(name):
    rows = BUILTIN[name]()
    assert rows == BUILTIN[name]()
    assert len(rows) == len({row["prompt"] for row in rows}) == SIZES[name]
    assert all(set(row) == {"system", "prompt", "completion"} and row["system"] == INSTRUCTION for row in rows)


@pytest.mark.parametrize("name", SIZES)
def test_answers_are_compact_json_with_fixed_keys_and_known_values(name):
    seen: dict[str, set[str]] = {key: set() for key in KEYS}
    for row in BUILTIN[name]():
        answer = json.loads(row["completion"])
        assert list(answer) == KEYS
        assert row["completion"] == json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        assert (answer["category"], answer["wants"]) in PAIRS
        for key in KEYS:
            seen[key].add(answer[key])
    assert seen["category"] == set(ENGLISH.problems)
    assert seen["wants"] == set(ENGLISH.wishes)
    assert None in seen["order"]


@pytest.mark.parametrize("name", SIZES)
def test_product_and_order_stand_in_the_ticket_and_the_rest_does_not(name):
    given_away = 0
    for row in BUILTIN[name]():
        answer, text = json.loads(row["completion"]), ticket(row)
        assert answer["product"] in text
        assert re.findall(r"[A-H]-\d{4}", text) == ([answer["order"]] if answer["order"] else [])
        assert "{" not in text and "  " not in text
        assert not re.search(r"\b(delivery|defect|wrong_item)\b", text)
        given_away += answer["wants"] in text
    assert given_away < 0.35 * SIZES[name]  # `refund` and `repair` are ordinary words; the rest must be understood


def test_the_splits_share_no_phrase():
    for pair in phrases(ENGLISH):
        assert pair.train and pair.test
        assert not set(pair.train) & set(pair.test)
        # nor does a test phrase hide in a longer training phrase
        assert not [held for held in pair.test for known in pair.train if held in known]


def test_no_wording_of_the_test_rows_occurs_in_the_training_rows():
    """Reads the rows alone: sentences of the test, with product and number blanked out, against those of training."""

    def sentences(name: str) -> set[str]:
        found = set()
        for row in BUILTIN[name]():
            product = json.loads(row["completion"])["product"]
            text = re.sub(r"[A-H]-\d{4}", "N", ticket(row)).replace(product, "P")
            found |= {part.strip(" ,()") for part in re.split(r"(?<=[.!?。！？])\s*", text) if part.strip()}
        return found

    shared = sentences("tickets") & sentences("tickets-test")
    assert not shared


def test_products_and_order_numbers_of_the_test_are_new():
    train, test = ([json.loads(row["completion"]) for row in BUILTIN[name]()] for name in SIZES)
    assert not {a["product"] for a in train} & {a["product"] for a in test}
    assert not {a["order"] for a in train if a["order"]} & {a["order"] for a in test if a["order"]}


def test_meanings_come_up_evenly():
    pairs = [tuple(json.loads(row["completion"])[key] for key in ("category", "wants")) for row in BUILTIN["tickets"]()]
    counts = [pairs.count(pair) for pair in PAIRS]
    assert max(counts) - min(counts) <= 2


def test_documents_are_short_in_the_builtin_models_tokens(builtin_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(builtin_model)
    lengths = []
    for row in BUILTIN["tickets"]():
        messages = [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        lengths.append(len(tokenizer(text + row["completion"], add_special_tokens=False)["input_ids"]) + 1)
    assert max(lengths) <= 110
    assert 70 <= sum(lengths) / len(lengths) <= 90
