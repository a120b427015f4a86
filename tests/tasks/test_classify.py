from tests.templates import make_tokenizer
from tunesmith.data.formats import conll, labels
from tunesmith.data.rendering.render import Renderer
from tunesmith.tasks import classify

ROWS = [labels.to_sample({"text": text, "label": label}, f"a:{n}") for n, (text, label) in enumerate([("x", 10), ("y", 9), ("z", 10)])]


def test_from_rows_to_labels_and_back():
    found = classify.labels(ROWS)
    assert found.labels == classify.classes(found.labels) == ["9", "10"]
    for input in ("text", "chat"):
        renderer = classify.render(Renderer(make_tokenizer("qwen2.5")), found.labels, input)
        documents = [document for row in ROWS for document in renderer.documents(row)]
        assert [document.targets for document in documents] == [(1,), (0,), (1,)] and renderer.input == input
        assert [classify.decode(renderer.labels, document.fed, document.targets) for document in documents] == ["10", "9", "10"]


def test_rows_that_it_cannot_learn():
    assert classify.misfit(ROWS[0]) == ""
    assert "task.name=tag" in classify.misfit(conll.to_sample({"tokens": ["x"], "tags": ["O"]}, "a:1"))
