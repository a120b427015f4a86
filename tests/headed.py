"""A stand-in for `tuned.Tuned` with a task's head: a tiny random Llama, a byte-level tokenizer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tunesmith.data.rendering.labelled import Labelled
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import Sample
from tunesmith.models import load, score

TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def headed(folder: Path, task: Any, labels: list[str], input: Any = "text") -> Any:
    """Over the model in `folder` (the fixture `tiny_llama`); the head's values are as random as the rest."""
    base = load.load(folder, dtype=torch.float32)
    head = score.make(base.model, task, labels, input=input)
    head.spread = 0.5
    head.begin(1)
    renderer = Labelled(Renderer(base.tokenizer, stop_ids=[257]), task, labels, input)
    return SimpleNamespace(
        name="tiny", model=base.model, tokenizer=base.tokenizer, head=head, renderer=renderer, run=None, has_adapter=True
    )


def texts(*rows: tuple[str, str]) -> list[Sample]:
    """(text, label) of each."""
    made = []
    for line, (text, label) in enumerate(rows, 1):
        messages = ({"role": "user", "content": text}, {"role": "assistant", "content": label})
        made.append(Sample(f"f:{line}", messages, source=text, label=label))
    return made


def marked(text: str, *entities: tuple[int, int, str], line: int = 1) -> Sample:
    return Sample(f"f:{line}", ({"role": "user", "content": text},), source=text, entities=entities)
