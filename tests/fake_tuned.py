"""A stand-in for `tuned.Tuned`: a tiny random Llama, a byte-level tokenizer, an adapter that shifts one weight."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.sample import RowError


@dataclass
class FakeRenderer:
    """ChatML by the tokenizer's template; refuses a message that says `refuse`, as a strict template would."""

    tokenizer: Any
    stops: frozenset[int]
    asked: list[list[dict[str, Any]]] = field(default_factory=list)

    def prompt_ids(self, messages: Any, tools: Any = ()) -> list[int]:
        if any(message["content"] == "refuse" for message in messages):
            raise RowError("this template takes no such message")
        self.asked.append([dict(message) for message in messages])
        text = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def answer(self, messages: Any, tools: Any = ()) -> str:
        message = messages[-1]
        calls = "".join(f"<call>{call['function']['name']}</call>" for call in message.get("tool_calls", ()))
        return message["content"] + calls + "<|im_end|>"

    def documents(self, sample: Any) -> list[Any]:
        if sample.text is not None:
            ids = self.tokenizer(sample.text)["input_ids"]
            return [SimpleNamespace(ids=ids, spans=((1, len(ids)),), origin=sample.origin)]
        prompt = self.prompt_ids(sample.messages[:-1])
        answer = self.tokenizer(sample.messages[-1]["content"])["input_ids"] + sorted(self.stops)
        return [SimpleNamespace(ids=prompt + answer, spans=((len(prompt), len(prompt) + len(answer)),), origin=sample.origin)]


@dataclass
class FakeTuned:
    name: str
    model: Any
    tokenizer: Any
    renderer: Any  # FakeRenderer, or a real one
    has_adapter: bool = True
    head: Any = None
    run: Any = None
    delta: torch.Tensor | None = None

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        weight, delta = self.model.lm_head.weight, self.delta
        assert delta is not None
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.sub_(delta)
        try:
            yield
        finally:
            with torch.no_grad():
                weight.copy_(kept)


def fake_tuned(folder: Any, **changes: Any) -> FakeTuned:
    """Over the model in `folder` (the fixture `tiny_llama`)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    delta = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.lm_head.weight.add_(delta)
    stop = frozenset({tokenizer.vocab["<|im_end|>"]})
    return FakeTuned("tiny", model, tokenizer, FakeRenderer(tokenizer, stop), delta=delta, **changes)
