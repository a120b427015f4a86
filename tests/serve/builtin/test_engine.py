"""The built-in engine: what it answers is what the model answers alone, whoever comes and goes beside it."""

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serve.builtin.engines import Client, agree, agree_with, alone, engine_of
from tests.tiny_models import some_ids, tiny
from tunesmith.errors import UserError
from tunesmith.models import load, nf4
from tunesmith.models.source import Located
from tunesmith.serve.ask import Ask, Constraint, Full
from tunesmith.serve.builtin import engine as module
from tunesmith.serve.builtin.engine import Builtin

LENGTHS = (3, 40, 17, 70, 1, 25, 33)
FAMILIES = ["llama", "llama_tied", "qwen3", "gemma2", "gemma3", "mistral", "mixtral", "gpt_oss", "gpt2", "granite"]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_come_and_go_are_those_of_the_model_alone(family: str) -> None:
    """Prompts in stretches, rows outgrown, windows passed, and neighbours that begin and end at other steps."""
    prompts = [some_ids(length, seed).tolist() for seed, length in enumerate(LENGTHS)]
    with engine_of(family, step_tokens=24, max_answers=4) as engine:
        first = Client(engine, prompts[0], 70)
        heads = [[first.token()]]
        clients = [first, *(Client(engine, prompt, 6 + 5 * at) for at, prompt in enumerate(prompts[1:-1]))]
        heads += [[clients[1].token()], [], [], [], []]
        clients.append(Client(engine, prompts[-1], 20))
        heads.append([])
        answers = [(head + client.rest()[0]) for head, client in zip(heads, clients, strict=True)]
    model = tiny(family)
    for prompt, tokens in zip(prompts, answers, strict=True):
        agree_with(model, prompt, tokens)
    assert [len(tokens) for tokens in answers] == [70, 6, 11, 16, 21, 26, 20]


def test_who_is_put_back_goes_on_where_it_was() -> None:
    prompts = [some_ids(30 + seed, seed).tolist() for seed in range(4)]
    with engine_of("llama", cache_tokens=256, step_tokens=24) as engine:
        clients = [Client(engine, prompt, 60, temperature=0.7 * (at == 3), seed=5) for at, prompt in enumerate(prompts)]
        answers = [client.rest()[0] for client in clients]
        assert engine.figures()["preempted_total"] > 0
        assert engine.figures()["cache_tokens_allocated"] <= 256
        again = Client(engine, prompts[3], 60, temperature=0.7, seed=5).rest()[0]
    for prompt, tokens in zip(prompts[:3], answers[:3], strict=True):
        agree_with(tiny("llama"), prompt, tokens)
    assert [token.id for token in again] == [token.id for token in answers[3]]


def test_a_common_beginning_is_computed_once() -> None:
    system = some_ids(50, 9).tolist()
    prompts = [system + some_ids(10 + seed, seed).tolist() for seed in range(4)]
    with engine_of("gemma3", step_tokens=200) as engine:
        answers = [client.rest()[0] for client in [Client(engine, prompt, 5) for prompt in prompts]]
        shared = engine.figures()["prompt_tokens_shared_total"]
        assert shared == 3 * 50  # beside each other
        later = Client(engine, prompts[0] + [token.id for token in answers[0]] + [4, 5, 6], 5).rest()[0]
        # a conversation goes on: the last token of the answer was said, but never read
        assert engine.figures()["prompt_tokens_shared_total"] == shared + len(prompts[0]) + 4
    for prompt, tokens in zip(prompts, answers, strict=True):
        agree_with(tiny("gemma3"), prompt, tokens)
    agree_with(tiny("gemma3"), prompts[0] + [token.id for token in answers[0]] + [4, 5, 6], later)


def test_stop_limit_and_context() -> None:
    prompt = some_ids(20, 1).tolist()
    ids, _ = alone(tiny("llama"), prompt, 12)
    stop = ids[5]
    with engine_of("llama") as engine:
        tokens, end = Client(engine, prompt, 12, stop_ids=frozenset([stop])).rest()
        assert ([token.id for token in tokens], end.reason) == (ids[: ids.index(stop)], "stop")
        assert Client(engine, prompt, 3).rest()[1].reason == "length"
        tokens, end = Client(engine, some_ids(250, 2).tolist(), 50).rest()
        assert (len(tokens), end.reason) == (6, "length")  # 256 positions
        assert engine.context("base") == 256
        with pytest.raises(ValueError, match="256 tokens, and base takes 256"):
            Client(engine, some_ids(256, 2).tolist())
        with pytest.raises(ValueError, match="no tokens"):
            Client(engine, [])
        with pytest.raises(ValueError, match="between 0 and 95"):
            Client(engine, [96])
        with pytest.raises(LookupError):
            Client(engine, prompt, model="unknown")


def test_whoever_leaves_frees_its_place() -> None:
    with engine_of("llama", max_answers=1) as engine:
        first, second = Client(engine, [3, 4], 200), Client(engine, [5, 6], 4)
        first.token()
        assert second.came.empty()
        first.cancel()
        assert first.rest()[1].reason == "cancelled"
        agree(second.rest()[0], alone(tiny("llama"), [5, 6], 4))
        first.cancel()  # more than once, and behind its end
        waiting = [Client(engine, [3, 4], 200), Client(engine, [7], 3)]
        waiting[1].cancel()
        assert waiting[1].rest()[1].reason == "cancelled"
        waiting[0].cancel()
        waiting[0].rest()
        assert engine.figures()["cache_tokens"] == 0


def test_a_full_queue_is_said() -> None:
    with engine_of("llama", max_answers=1, queue=2) as engine:
        clients = [Client(engine, [3, 4], 250)]
        clients[0].token()
        clients += [Client(engine, [3, 4], 2) for _ in range(2)]
        with pytest.raises(Full):
            Client(engine, [3, 4], 2)
        clients[0].cancel()
        assert [client.rest()[1].reason for client in clients] == ["cancelled", "length", "length"]


def test_closing_drains_then_cancels() -> None:
    with engine_of("llama") as engine:
        client = Client(engine, [3, 4], 30)
        client.token()
        engine.close(60.0)
        assert client.rest()[1].reason == "length"
        with pytest.raises(Full):
            Client(engine, [3, 4])
    with engine_of("llama", max_answers=1) as engine:
        clients = [Client(engine, [3, 4], 250) for _ in range(2)]
        begun = time.monotonic()
        engine.close(0.0)
        assert time.monotonic() - begun < 30
        assert {client.rest()[1].reason for client in clients} == {"cancelled"}
        assert engine.base.model.config._attn_implementation != "tunesmith_serving"


def test_who_comes_while_it_closes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of("llama") as engine:
        held = engine._held

        def closed_meanwhile(name: str) -> Any:
            engine.close(0.0)
            return held(name)

        monkeypatch.setattr(engine, "_held", closed_meanwhile)
        with pytest.raises(Full, match="closing"):
            Client(engine, [3, 4])


def test_no_number_ends_that_answer_alone() -> None:
    model = tiny("llama")
    model.model.embed_tokens.weight.data[7] = float("nan")
    with engine_of(model) as engine:
        good, bad = Client(engine, [3, 4, 5], 40), Client(engine, [3, 7, 5], 40)
        tokens, end = bad.rest()
        assert (tokens, end.reason) == ([], "error") and "no numbers" in end.message
        truth = alone(tiny("llama"), [3, 4, 5], 40)
        if 7 not in truth[0]:
            agree(good.rest()[0], truth)
        # the row that it leaves is used again
        agree(Client(engine, [9, 8, 6], 5).rest()[0], alone(tiny("llama"), [9, 8, 6], 5))
        assert engine.figures()["failed_total"] == 1


def test_a_step_that_fails_is_computed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of("llama") as engine:
        compute = engine._forward.compute

        def fails(parts: Any) -> Any:
            if any(12 in part.answer.fed for part in parts):
                raise RuntimeError("out of something\nand more")
            return compute(parts)

        monkeypatch.setattr(engine._forward, "compute", fails)
        clients = [Client(engine, [3, 4, 5], 6), Client(engine, [12, 4], 6), Client(engine, [8, 4], 6)]
        answers = [client.rest() for client in clients]
    assert answers[1][1].reason == "error" and answers[1][1].message.endswith("out of something")
    for ids, (tokens, _) in zip(([3, 4, 5], [8, 4]), answers[::2], strict=True):
        truth = alone(tiny("llama"), ids, 6)
        agree(tokens, (truth[0][: len(tokens)], truth[1][: len(tokens)]))
        assert len(tokens) == 6 or 12 in truth[0]


def test_a_mistake_of_the_engine_ends_answers_and_not_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of("llama") as engine:
        plan = engine._scheduler.plan
        failed: list[int] = []

        def once() -> Any:
            if not failed and engine._scheduler.running:
                failed.append(1)
                raise AssertionError("a mistake")
            return plan()

        monkeypatch.setattr(engine._scheduler.__class__, "plan", lambda self: once())
        end = Client(engine, [3, 4, 5], 6).rest()[1]
        assert end.reason == "error" and "a mistake" in end.message
        agree(Client(engine, [3, 4, 5], 6).rest()[0], alone(tiny("llama"), [3, 4, 5], 6))


def test_no_memory_is_said_to_the_answer_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of("llama") as engine:
        take = engine._scheduler.cache.take
        monkeypatch.setattr(engine._scheduler.cache, "take", lambda tokens: take(tokens) if tokens < 100 else None)
        assert "no memory" in Client(engine, some_ids(120, 0).tolist(), 6).rest()[1].message
        assert Client(engine, [3, 4, 5], 6).rest()[1].reason == "length"


def test_a_constraint_is_kept_and_one_that_fails_ends_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Walker:
        trouble, finished, said = "", False, 0

        def mask(self, logits_V: torch.Tensor) -> None:
            logits_V[torch.arange(len(logits_V)) != 30 + self.said] = -torch.inf

        def accept(self, token: int) -> None:
            self.said += 1
            self.finished = self.said == 3
            if fails and self.said == 2:
                raise RuntimeError("lost")

    fails = False
    monkeypatch.setattr(module, "matcher_of", lambda *_: Walker())
    with engine_of("llama") as engine:
        tokens, end = Client(engine, [3, 4], 9, constraint=Constraint("regex", "x")).rest()
        assert ([token.id for token in tokens], end.reason) == ([30, 31, 32], "stop")
        fails = True
        tokens, end = Client(engine, [3, 4], 9, constraint=Constraint("regex", "x")).rest()
        assert (len(tokens), end.reason) == (1, "error") and "lost" in end.message


def test_a_listener_that_fails_is_gone() -> None:
    with engine_of("llama") as engine:

        def put(given: Any) -> None:
            raise OSError("closed")

        engine.submit(Ask("base", (3, 4), 200, frozenset()), put)
        agree(Client(engine, [3, 4, 5], 6).rest()[0], alone(tiny("llama"), [3, 4, 5], 6))
        assert engine.figures()["running"] == 0


@pytest.mark.parametrize("family", ["mamba", "lfm2", "llama4"])
def test_what_it_cannot_compute_is_refused_with_other_engines(family: str) -> None:
    with pytest.raises(UserError, match="--engine vllm"), engine_of(family):
        pass


def test_a_long_rope_is_used_as_far_as_it_stays_the_same() -> None:
    from transformers import Phi3Config

    from tunesmith.serve.builtin.engine import positions

    class Model:
        config: Any = Phi3Config(
            max_position_embeddings=1024,
            original_max_position_embeddings=128,
            rope_parameters={
                "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 128,
                "short_factor": [1.0] * 48, "long_factor": [2.0] * 48,
            },
        )  # fmt: skip

    assert positions(Model) == 128
    assert positions(tiny("llama")) == 256


def test_threads_are_the_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's thread computes with as many threads as the process was told to."""
    found: list[int] = []
    with engine_of("llama") as engine:
        compute = engine._forward.compute

        def noted(parts: Any) -> Any:
            found.append(torch.get_num_threads())
            return compute(parts)

        monkeypatch.setattr(engine._forward, "compute", noted)
        Client(engine, [3, 4], 2).rest()
    assert found[0] == torch.get_num_threads()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_and_goes_in_whatever_memory(seed: int) -> None:
    draw = random.Random(seed)
    family = ["llama", "gemma3", "mistral", "gpt_oss"][seed]
    settings = {"max_answers": draw.randint(2, 8), "cache_tokens": draw.choice([256, 400, 2000]), "step_tokens": draw.choice([20, 64, 300])}
    system = some_ids(40, seed).tolist()
    asked = []
    with engine_of(family, **settings) as engine:
        for number in range(10):
            prompt = system * draw.randint(0, 1) + some_ids(draw.randint(1, 60), 100 * seed + number).tolist()
            asked.append((prompt, Client(engine, prompt, draw.randint(1, 60))))
        leaving = draw.sample(range(10), 2)
        for number in leaving:
            asked[number][1].cancel()
        answers = [client.rest() for _, client in asked]
        assert engine.figures()["cache_tokens"] == 0
    for number, ((prompt, _), (tokens, end)) in enumerate(zip(asked, answers, strict=True)):
        assert end.reason == "length" or (number in leaving and end.reason == "cancelled")
        agree_with(tiny(family), prompt, tokens)


@pytest.mark.parametrize(("kind", "tolerance"), [({"dtype": torch.float32, "quantize": True}, 1e-4), ({"dtype": torch.bfloat16}, 0.15)])
def test_bases_in_four_bits_and_in_bf16(kind: dict[str, Any], tolerance: float, tiny_llama: Path) -> None:
    base = load.load(tiny_llama, **kind)
    prompt = list(range(40, 70))
    engine = Builtin(base, Located(tiny_llama, "base", "folder", ""), cache_tokens=2048)
    try:
        tokens = Client(engine, prompt, 8).rest()[0]
        assert (nf4.dense_bytes(base.model) > 0) == bool(kind.get("quantize"))
    finally:
        engine.close(0.0)
    assert nf4.dense_bytes(base.model) == 0
    whole = [*prompt, *(token.id for token in tokens)]
    with torch.no_grad():
        logprobs_TV = base.model(input_ids=torch.tensor([whole])).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    assert len(tokens) == 8
    for token, logprobs_V in zip(tokens, logprobs_TV, strict=True):
        assert token.logprob is not None and abs(token.logprob - logprobs_V[token.id].item()) < tolerance
        assert logprobs_V.max().item() - logprobs_V[token.id].item() < tolerance
