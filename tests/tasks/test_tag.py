from typing import Any

import pytest

from tests.shared import needs, read
from tests.templates import make_tokenizer
from tunesmith.data.formats import conll, labels, spans
from tunesmith.data.rendering.render import Renderer
from tunesmith.tasks import tag

ROW = conll.to_sample({"tokens": ["Angela", "Merkel", "in", "Paris"], "tags": ["I-PER", "I-PER", "O", "I-LOC"]}, "a:1")
MARKED = spans.to_sample({"text": "彭小军在Paris。", "spans": [[0, 3, "PER"], [4, 9, "LOC"]]}, "a:2")


def test_from_rows_to_entities_and_back():
    found = tag.labels([ROW, MARKED])
    assert found.labels == ["LOC", "PER"] and tag.classes(found.labels) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    for input in ("text", "chat"):
        renderer = tag.render(Renderer(make_tokenizer("qwen2.5")), found.labels, input)
        for row in (ROW, MARKED):
            [document] = renderer.documents(row)
            decoded = tag.decode(renderer.labels, document.fed, document.targets)
            assert decoded.entities == row.entities and decoded.json(row.source) == row.messages[1]["content"]
    assert decoded.words == ("彭", "小", "军", "在", "Paris", "。")
    assert decoded.tags == ("B-PER", "I-PER", "I-PER", "O", "B-LOC", "O")


def test_any_prediction_means_something():
    renderer = tag.render(Renderer(make_tokenizer("qwen2.5")), ["LOC", "PER"])
    fed = renderer.feed(renderer.sample("Angela Merkel in Paris"))
    assert tag.decode(renderer.labels, fed, [4, 2, 2, 3]).entities == ((0, 6, "PER"), (7, 16, "LOC"), (17, 22, "PER"))


def test_rows_that_it_cannot_learn():
    assert tag.misfit(ROW) == ""
    assert "task.name=generate" in tag.misfit(labels.to_sample({"text": "x", "label": "y"}, "a:1"))


@needs("cluener")
@pytest.mark.parametrize(
    ("file", "share"), [("cluener/dev.jsonl", 0.99), ("msra_ner/test.txt", 1.0), ("restaurant8k_slots/test.json", 0.97)]
)
def test_words_can_say_almost_all_entities_of_real_files(file, share):
    samples = read(file)[0][:300]
    renderer = tag.render(Renderer(make_tokenizer("qwen2.5")), tag.labels(samples).labels)
    right = every = 0
    made: list[Any] = renderer.documents_of(samples)
    for sample, [document] in zip(samples, made, strict=True):
        assert sample.entities is not None
        decoded = set(tag.decode(renderer.labels, document.fed, document.targets).entities)
        right += len(decoded & set(sample.entities))
        every += len(sample.entities)
    assert every > 100 and right >= share * every
