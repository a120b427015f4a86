import io

from rich.console import Console

from tests.templates import make_tokenizer
from tunesmith.data.formats import conll, labels
from tunesmith.data.look.show_labels import show
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import BadRow, Sample

ROW = conll.to_sample({"tokens": ["Angela", "Merkel", "in", "北", "京"], "tags": ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"]}, "a.txt:1")
LABELLED = [labels.to_sample({"text": f"It was {word}.", "label": word}, f"a.csv:{n}") for n, word in enumerate(("good", "bad"), start=2)]


def shown(rows, task, input="text", **how):
    page = io.StringIO()
    code = show(rows, Renderer(make_tokenizer("qwen2.5")), task, input, console=Console(file=page, soft_wrap=True, width=400), **how)
    return code, page.getvalue()


def test_a_label_stands_behind_its_word():
    code, text = shown([ROW], "tag")
    assert code == 0 and "Angela⟦B-PER⟧ Merkel⟦I-PER⟧ in⟦O⟧ 北⟦B-LOC⟧京⟦I-LOC⟧\n" in text
    assert "a.txt:1: " in text and "5 labels, row kept" in text
    _, text = shown([ROW], "tag", "chat")
    assert "<|im_start|>user\nAngela⟦B-PER⟧" in text and "京⟦I-LOC⟧<|im_end|>\n<|im_start|>assistant\n" in text


def test_a_class_stands_at_the_end():
    code, text = shown(LABELLED, "classify")
    assert code == 0 and "It was good.⟦good⟧\n" in text and "It was bad.⟦bad⟧\n" in text and "1 label, row kept" in text


def test_what_cannot_be_used_or_does_not_fit_is_said():
    code, text = shown([BadRow("a.csv", 7, "no label"), Sample("a.csv:8", text="raw"), *LABELLED], "classify")
    assert code == 2 and "a.csv:7: cannot be used: no label" in text and "a.csv:8: cannot be used: " in text and "⟦good⟧" in text
    code, text = shown(LABELLED, "classify", max_length=3, on_overlength="drop")
    assert code == 2 and "not used, dropped: " in text
    assert "row cut" in shown([conll.to_sample({"tokens": ["word"] * 9, "tags": ["O"] * 9}, "a:1")], "tag", max_length=16)[1]
