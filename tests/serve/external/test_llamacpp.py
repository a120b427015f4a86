"""llama.cpp for real, over a tiny model: its greedy tokens are transformers', of the base and of each adapter."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.export.gguf.made_models import made_model
from tests.serve.external.gathered import Gathered, answer, asked
from tunesmith.errors import UserError
from tunesmith.export.gguf.lora_file import write_lora
from tunesmith.export.gguf.model_file import write_model
from tunesmith.methods import lora
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import LoRA
from tunesmith.models import slots
from tunesmith.models.load import load_tokenizer, quiet
from tunesmith.serve.ask import Ask, Constraint, End, Full
from tunesmith.serve.external.llamacpp import LlamaCpp, lark_of, request_of, trained_context

pytest.importorskip("xllamacpp")
PROMPT = [72, 105, 30, 72, 105]
COUNT = 6
LETTERS = 94  # of the byte tokenizer's ids: printable ASCII. Other bytes are halves of characters, which its stream is silent about
ONLY_LETTERS = {token: -1000.0 for token in range(LETTERS, 384)}


def adapter(folder: Path, base: Path, seed: int) -> tuple[Path, Any]:
    """A LoRA folder that changes much, and its modules."""
    model = opened(base)
    tuning = lora.build(model, LoRA(name="lora", rank=4))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in tuning.parameters.values():
            parameter.data = torch.randn(parameter.shape) * 0.3
    layout.write(folder, model, tuning, str(base))
    return folder, tuning.adapter


def opened(folder: Path) -> Any:
    with quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """(ids, their logarithms of probability)."""
    row, logprobs = list(prompt), []
    for _ in range(count):
        logp_V = model(torch.tensor([row])).logits[0, -1].log_softmax(-1)
        row.append(int(logp_V[:LETTERS].argmax()))
        logprobs.append(float(logp_V[row[-1]]))
    return row[len(prompt) :], logprobs


class Made:
    """A base, two adapters, as files of llama.cpp's; and what transformers makes of each."""

    def __init__(self, folder: Path):
        self.base = made_model("llama", folder / "base")
        self.tokenizer = load_tokenizer(self.base)
        self.gguf = write_model(self.base, folder / "base.gguf", "f32").file
        self.folders, self.truth = {}, {"base": greedy(opened(self.base), PROMPT, COUNT)}
        for name, seed in (("a", 1), ("b", 2)):
            self.folders[name], modules = adapter(folder / name, self.base, seed)
            model = opened(self.base)
            slots.place(model, modules)
            self.truth[name] = greedy(model, PROMPT, COUNT)
        self.files = {name: write_lora(each, self.base, folder / f"{name}.gguf").file for name, each in self.folders.items()}

    def engine(self, *names: str, **more: Any) -> LlamaCpp:
        exact = {"cache_type_k": 0, "cache_type_v": 0, "flash_attn_type": 0}  # fp32 throughout
        files = {name: self.files[name] for name in names}
        settled: dict[str, Any] = {"base_name": "base", "tokenizer": self.tokenizer, "threads": 1, "settings": exact, "seconds": 60}
        return LlamaCpp(self.gguf, files, convert=lambda folder: self.files[folder.name], **settled, **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("llamacpp"))


@pytest.fixture(scope="module")
def engine(made: Made) -> Iterator[LlamaCpp]:
    one = made.engine("a", "b", context=128, max_answers=4)
    try:
        yield one
    finally:
        one.close(0)


def ask(model: str, prompt: list[int] = PROMPT, **more: Any) -> Ask:
    return asked(model, prompt, **{"max_tokens": COUNT, "stop_ids": frozenset(), "logit_bias": ONLY_LETTERS} | more)


@pytest.mark.parametrize("model", ["base", "a", "b", "base", "a"])
def test_its_tokens_are_transformers(engine: LlamaCpp, made: Made, model: str) -> None:
    """In turns, so that what one adapter left in the cache would be seen in another's answer."""
    found = Gathered()
    engine.submit(ask(model, logprobs=2), found)
    assert found.end() == End("length")
    ids, logprobs = made.truth[model]
    assert found.ids == ids
    assert [token.logprob for token in found.tokens] == pytest.approx(logprobs, abs=2e-3)
    assert all(len(token.top) == 2 and token.top[0][1] >= token.top[1][1] for token in found.tokens)


def test_adapters_do_something(made: Made) -> None:
    assert len({tuple(ids) for ids, _ in made.truth.values()}) == 3


def test_many_at_once_each_with_its_own(engine: LlamaCpp, made: Made) -> None:
    names = ["base", "a", "b"] * 3
    gathered = [Gathered() for _ in names]
    for name, found in zip(names, gathered, strict=True):
        engine.submit(ask(name), found)
    assert {found.end().reason for found in gathered} == {"length"}
    assert [found.ids for found in gathered] == [made.truth[name][0] for name in names]


def test_a_stop_token_ends_the_answer(engine: LlamaCpp, made: Made) -> None:
    ids, _ = made.truth["a"]
    assert answer(engine, ask("a", stop_ids=frozenset({ids[1]}))) == (ids[: ids.index(ids[1])], End("stop"))


@pytest.mark.parametrize(
    ("constraint", "allowed"),
    [
        (Constraint("choice", ["yes", "no"]), {"yes", "no"}),
        (Constraint("choice", ["机👩"]), {"机👩"}),  # of whose seven tokens the stream tells two
        (Constraint("regex", "^[ab]{2}$"), {"aa", "ab", "ba", "bb"}),
        (Constraint("json", {"enum": [1, "x"]}), {"1", '"x"'}),
        (Constraint("lark", 'start: "p" DIGIT\nDIGIT: /[3]/'), {"p3"}),
    ],
)
def test_answers_keep_to_a_constraint(engine: LlamaCpp, made: Made, constraint: Constraint, allowed: set[str]) -> None:
    ids, end = answer(engine, ask("a", max_tokens=12, stop_ids=frozenset({257}), constraint=constraint, logit_bias={}))
    assert (end, made.tokenizer.decode(ids) in allowed) == (End("stop"), True)


def test_what_it_cannot_do_is_refused(engine: LlamaCpp) -> None:
    with pytest.raises(ValueError, match="min_tokens"):
        engine.submit(ask("a", min_tokens=1), Gathered())
    with pytest.raises(ValueError, match="grammar cannot be served"):  # llama.cpp itself would go on without it
        engine.submit(ask("a", constraint=Constraint("lark", 'start: "a')), Gathered())
    with pytest.raises(ValueError, match="more than the 128"):
        engine.submit(ask("a", [5] * 125), Gathered())
    with pytest.raises(LookupError):
        engine.submit(ask("c"), Gathered())


def test_who_cancels_frees_the_place(engine: LlamaCpp) -> None:
    found = [Gathered() for _ in range(6)]
    cancels = [engine.submit(ask("a", max_tokens=100), each) for each in found]
    for cancel in cancels:
        cancel()
    assert {each.end().reason for each in found} <= {"cancelled", "length"}
    assert answer(engine, ask("a"))[1] == End("length")


def test_adapters_come_and_go(made: Made) -> None:
    one = made.engine("a", context=64, max_answers=2)
    try:
        before = answer(one, ask("a"))
        one.load("b", made.folders["b"])
        assert answer(one, ask("a")) == before and answer(one, ask("b")) != before
        one.unload("a")
        with pytest.raises(LookupError):
            one.submit(ask("a"), Gathered())
        with pytest.raises(LookupError):
            one.unload("a")
        assert answer(one, ask("b"))[1] == End("length")
        with pytest.raises(UserError, match="ended while it started"):
            one.load("c", made.gguf)  # a whole model is no adapter
        assert answer(one, ask("b"))[1] == End("length"), "those of before still answer"
        assert one.figures()["adapters_in_memory"] == 1
    finally:
        one.close(0)
    with pytest.raises(Full):
        one.submit(ask("b"), Gathered())


def test_it_is_started_again_where_it_died(made: Made) -> None:
    one = made.engine("a", context=64, max_answers=2)
    try:
        expected = answer(one, ask("a"))
        one._process.stop()
        with pytest.raises(Full):
            one.submit(ask("a"), Gathered())
        assert again(one, ask("a")) == expected
    finally:
        one.close(0)


def again(one: LlamaCpp, wanted: Ask) -> tuple[list[int], End]:
    """As a client that comes back where the queue is full."""
    for _ in range(200):
        with contextlib.suppress(Full):
            return answer(one, wanted)
        time.sleep(0.05)
    raise AssertionError("it did not come back")


def test_every_adapter_is_named_in_a_request() -> None:
    body = request_of(ask("b", seed=2**40 + 3, logit_bias={5: -2.0}), ["a", "b"], 257)
    assert body["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
    assert request_of(ask("base"), ["a"], 257)["lora"] == [{"id": 0, "scale": 0.0}], "left out, an adapter would have its own scale"
    assert (body["seed"], body["logit_bias"], body["ignore_eos"]) == (3, [[5, -2.0]], True)
    assert "ignore_eos" not in request_of(ask("b", stop_ids=frozenset({257})), ["b"], 257)
    assert lark_of(Constraint("json", {"type": "object"})).startswith('%llguidance {}\nstart: %json {"type": "object"')


def test_the_context_is_the_files(made: Made) -> None:
    assert trained_context(made.gguf) == 512
