"""vLLM itself as the judge, of exports and as an engine: `make verify-vllm`, which takes some minutes.

Everything is over the built-in model. TUNESMITH_VLLM_PYTHON names a Python that has vLLM; without it nothing here runs.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.serve.conformance import CHECKS, Served, served
from tests.serve.external.gathered import Gathered, answer, asked
from tunesmith.data.rendering.render import Renderer
from tunesmith.errors import ProofFailed
from tunesmith.export import vllm as target
from tunesmith.export.export import check, export
from tunesmith.export.source import describe
from tunesmith.export.target import Options
from tunesmith.generate import Sampling, generate, serving
from tunesmith.methods import lora, pissa, prompt
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import LoRA, PiSSA, Prompt
from tunesmith.models import load as loading
from tunesmith.models import slots
from tunesmith.models.fingerprint import fingerprint
from tunesmith.models.load import load_tokenizer
from tunesmith.serve.ask import Constraint, End
from tunesmith.serve.catalog import Catalog, Model
from tunesmith.serve.customers import Customers
from tunesmith.serve.external.vllm import PYTHON, Vllm
from tunesmith.serve.http.app import make_app
from tunesmith.serve.metrics import Metrics
from tunesmith.train.checkpoint import write_whole

pytestmark = pytest.mark.skipif(PYTHON not in os.environ, reason="vLLM is asked by `make verify-vllm`")
FLAGS = ("--enforce-eager",)
SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1"}


@pytest.fixture(scope="module")
def adapters(builtin_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random updates that change the answers: two LoRAs, one of several scales, a PiSSA as it is served, virtual tokens."""
    folder, skeleton = tmp_path_factory.mktemp("adapters"), loading.skeleton(loading.load_config(builtin_model))
    uneven = lora.build(skeleton, LoRA(name="lora", rank=12, targets=["q", "v"]), device="cpu")
    next(iter(uneven.adapter.values())).scale = 5.0  # type: ignore[assignment]
    built: dict[str, tuple[Any, float]] = {
        "alice": (lora.build(skeleton, LoRA(name="lora", rank=4), device="cpu"), 0.07),
        "bob": (uneven, 0.05),
        "carol": (pissa.build(skeleton, PiSSA(name="pissa", rank=8, targets=["q", "v", "down"]), device="cpu"), 0.07),
        "pat": (prompt.build(skeleton, Prompt(name="prompt", tokens=5), device="cpu"), 0.1),
    }
    for place, (name, (tuning, size)) in enumerate(built.items()):
        torch.manual_seed(place)
        for parameter in tuning.parameters.values():
            parameter.data = torch.randn(parameter.shape) * size
        tuning.about["base"] = fingerprint(builtin_model)
        layout.write(folder / name, skeleton, tuning, str(builtin_model))
    return {name: folder / name for name in built}


def exported(names: list[str], adapters: dict[str, Path], out: Path, change: Any = None, **options: Any) -> Any:
    sources = [describe(str(adapters[name])) for name in names]
    check("vllm", sources, Options(**options))

    def fill(folder: Path, write: Any) -> None:
        write_whole(folder, write)
        if change:
            change(folder)

    return export("vllm", sources, out, Options(**options), verify=True, fill=fill, tell=print)


def test_base_and_adapters_answer_as_they_did(adapters: dict[str, Path], tmp_path: Path) -> None:
    done = exported(list(adapters), adapters, tmp_path / "out")
    figures = done.proof.figures["sources"]
    print(json.dumps(figures, indent=2))
    assert done.proof.failures == () and set(figures) == set(adapters)
    assert all(each["answers_unlike_the_bases"] > 0 for each in figures.values())


def test_a_merged_model_answers_as_it_did(adapters: dict[str, Path], tmp_path: Path) -> None:
    done = exported(["alice"], adapters, tmp_path / "out")
    print(json.dumps(done.proof.figures, indent=2))
    assert done.proof.failures == () and done.facts["written"]["merged"]


def test_an_adapter_that_is_a_tenth_off_is_found(adapters: dict[str, Path], tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        file = folder / target.ADAPTERS / "alice" / "adapter_model.safetensors"
        tensors = load_file(file)
        for name in tensors:
            if "down_proj.lora_B" in name:
                tensors[name] *= 1.1
        save_file(tensors, file, metadata={"format": "pt"})

    with pytest.raises(ProofFailed, match="alice: "):
        exported(["alice"], adapters, tmp_path / "out", spoil, keep_base=True)


@pytest.fixture(scope="module")
def engine(builtin_model: Path, adapters: dict[str, Path]) -> Iterator[Vllm]:
    one = Vllm(
        builtin_model, {"alice": adapters["alice"]}, base_name="base", dtype="float32", context=1024, max_answers=4,
        flags=[*FLAGS, "--max-lora-rank", "16"], environment=SMALL,
    )  # fmt: skip
    one._rank = 16
    try:
        yield one
    finally:
        one.close(0)


def test_the_engines_tokens_are_transformers(engine: Vllm, builtin_model: Path, adapters: dict[str, Path]) -> None:
    base = loading.load(builtin_model, dtype=torch.float32)
    ids = base.tokenizer("The capital of France is")["input_ids"]
    truth = {}
    for name in ("base", "alice"):
        modules = {} if name == "base" else layout.fit(layout.read(adapters[name]), base.model).adapter
        slots.place(base.model, modules)
        with serving(base.model):
            truth[name] = generate(base.model, [ids], [2], Sampling(max_new_tokens=8))[0].ids
        slots.lift(base.model, modules)
    assert truth["base"] != truth["alice"]
    for name in ("base", "alice", "base"):
        assert answer(engine, asked(name, ids, max_tokens=8, stop_ids=frozenset({2})), 120)[0] == truth[name], name


def test_logprobs_seeds_and_stops(engine: Vllm, builtin_model: Path) -> None:
    ids = load_tokenizer(builtin_model)("The capital of France is")["input_ids"]
    found = Gathered()
    engine.submit(asked("base", ids, logprobs=3, stop_ids=frozenset({2})), found)
    assert found.end(120) == End("length")
    assert all(len(token.top) == 3 and token.top[0] == (token.id, token.logprob) for token in found.tokens)
    first = answer(engine, asked("base", ids, temperature=1.0, seed=7), 120)
    assert answer(engine, asked("base", ids, temperature=1.0, seed=7), 120) == first
    stop = found.ids[1]
    assert answer(engine, asked("base", ids, stop_ids=frozenset({stop})), 120) == (found.ids[: found.ids.index(stop)], End("stop"))


@pytest.mark.parametrize(
    ("constraint", "allowed"),
    [
        (Constraint("choice", ["yes", "no"]), {"yes", "no"}),
        (Constraint("regex", r"^\d{2}$"), {f"{number:02}" for number in range(100)}),
        (Constraint("json", {"enum": [1, "x"]}), {"1", '"x"'}),
        (Constraint("lark", 'start: "p" DIGIT\nDIGIT: /[3]/'), {"p3"}),
    ],
    ids=lambda each: each.kind if isinstance(each, Constraint) else "",
)
def test_answers_keep_to_a_constraint(engine: Vllm, builtin_model: Path, constraint: Constraint, allowed: set[str]) -> None:
    tokenizer = load_tokenizer(builtin_model)
    ids, end = answer(engine, asked("base", [1, 2, 3], max_tokens=16, stop_ids=frozenset({2}), constraint=constraint), 120)
    assert (end, tokenizer.decode(ids) in allowed) == (End("stop"), True)


def test_adapters_come_and_go(engine: Vllm, adapters: dict[str, Path]) -> None:
    engine.load("carol", adapters["carol"])
    theirs = answer(engine, asked("carol", [1, 2, 3]), 120)
    assert theirs[1] == End("length")
    engine.unload("carol")
    with pytest.raises(LookupError):
        engine.submit(asked("carol", [1]), Gathered())
    assert answer(engine, asked("alice", [1, 2, 3]), 120) != theirs


def test_figures_are_read(engine: Vllm) -> None:
    engine.wait()
    assert engine.figures()["answer_tokens_total"] > 0


@pytest.fixture(scope="module")
def client(engine: Vllm, builtin_model: Path) -> Iterator[Served]:
    renderer = Renderer(load_tokenizer(builtin_model), stop_ids=[2])
    app = make_app(engine, Catalog(Model("base", renderer, base="base")), Customers(), Metrics(engine.figures))
    with served(app) as url:
        yield Served(url, ("base",), writes_tools=False, running=lambda: engine.figures()["running"])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_official_client_is_answered(check: Any, client: Served) -> None:
    check(client)
