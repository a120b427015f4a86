"""Which server takes what; the page shows what the program goes by."""

from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import tiny
from tunesmith.export import served
from tunesmith.export.served import ROWS, SERVERS, Traits, traits_of, verdict, warnings
from tunesmith.methods import method
from tunesmith.methods.settings import SETTINGS
from tunesmith.models import score

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export" / "served.md"
LORA = {"name": "lora", "rank": 4}


def traits(settings: dict[str, Any], family: str = "llama", head: bool = False) -> Traits:
    model = tiny(family)
    tuning = method.build(model, SETTINGS[settings["name"]](**settings), quantized=False, device="meta")
    if head:
        method.give_head(model, tuning, score.make(model, "classify", ["no", "yes"]))
    return traits_of(tuning)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "full"}, Traits("whole")),
        (LORA, Traits("lora", rank=4)),
        ({"name": "dora", "rank": 4}, Traits("lora", rank=4, dora=True)),
        ({"name": "pissa", "rank": 4}, Traits("lora", rank=8)),
        (LORA | {"trainable_tokens": [3, 4]}, Traits("lora", rank=4, tokens=2)),
        (LORA | {"modules_to_save": ["lm_head"]}, Traits("lora", rank=4, saved=("lm_head",))),
        ({"name": "prompt", "tokens": 3}, Traits("prompt")),
        ({"name": "ptuning", "tokens": 3}, Traits("prompt")),
        ({"name": "prefix", "tokens": 3}, Traits("prefix")),
        ({"name": "ptuning_v2", "tokens": 3}, Traits("prefix")),
        ({"name": "adapter"}, Traits("bottleneck")),
    ],
    ids=str,
)
def test_what_decides_is_read_off_shapes(settings: dict[str, Any], expected: Traits) -> None:
    assert traits(settings) == expected


def test_a_head_a_fused_layer_and_some_blocks_only() -> None:
    assert traits(LORA, head=True).head == "classify"
    assert set(traits(LORA | {"targets": ["q", "down"]}, "phi3").ends) == {f"model.layers.{n}.self_attn.qkv_proj" for n in (0, 1)}
    some = method.build(tiny("llama"), SETTINGS["lora"](**LORA), quantized=False)
    some.adapter = {path: module for path, module in some.adapter.items() if ".layers.1." in path}
    assert traits_of(some).partial and not traits_of(some).uneven
    next(iter(some.adapter.values())).scale = 0.25  # type: ignore[assignment]
    assert traits_of(some).uneven
    some.adapter = {path: module for path, module in some.adapter.items() if path.endswith("q_proj") or path.endswith("k_proj")}
    assert traits_of(some).partial, "the first block has none"


@pytest.mark.parametrize(
    ("server", "traits", "how", "reason"),
    [
        ("vllm", Traits("lora", rank=16), "as it is", ""),
        ("vllm", Traits("lora", rank=1024), "merged", "rank 1024 is above 512"),
        ("vllm", Traits("lora", rank=8, dora=True), "merged", "does not know DoRA"),
        ("vllm", Traits("lora", rank=8, saved=("lm_head",)), "merged", "modules_to_save: lm_head"),
        ("vllm", Traits("lora", rank=8, uneven=True), "rewritten", "one rank and one alpha"),
        ("vllm", Traits("lora", rank=8, uneven=True, dora=True), "merged", "DoRA"),
        ("vllm", Traits("prompt"), "embeddings", "virtual tokens"),
        ("vllm", Traits("prefix"), "fitted", "keys and values"),
        ("tgi", Traits("lora", rank=8, partial=True), "rewritten", "every block"),
        ("tgi", Traits("lora", rank=8, ends=("lm_head",)), "merged", "no place for an update of lm_head"),
        ("ollama", Traits("lora", rank=8), "merged", "a whole model"),
        ("peft", Traits("bottleneck"), "fitted", "inside of blocks"),
        ("peft", Traits("whole"), "not", "no adapter"),
        ("llamacpp", Traits("whole"), "as it is", ""),
        ("vllm", Traits("lora", rank=8, head="classify"), "merged", "a pooling model"),
        ("vllm", Traits("prefix", head="classify"), "not", "predicts labels"),
        ("tgi", Traits("whole", head="tag"), "not", "predicts labels"),
    ],
    ids=str,
)
def test_how_a_server_takes_it(server: str, traits: Traits, how: str, reason: str) -> None:
    found = verdict(server, traits)
    assert found.how == how and reason in "; ".join(found.reasons)
    assert bool(found.reasons) == (how != "as it is")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("name", ROWS)
def test_whatever_is_not_taken_as_it_is_has_a_reason_and_a_command(server: str, name: str) -> None:
    found = verdict(server, ROWS[name])
    assert found.how == "as it is" or (all(found.reasons) and found.reasons)
    if server in served.TARGETS and found.how in ("rewritten", "merged", "embeddings", "fitted"):
        assert f"--to {served.TARGETS[server]}" in served.COMMANDS[found.how](server)


def test_a_run_is_warned_at_its_start() -> None:
    assert warnings(Traits("lora", rank=16), None) == [] == warnings(Traits("lora", rank=16), "vllm")
    [said] = warnings(Traits("lora", rank=16, dora=True), "vllm")
    assert said.startswith("serve_with=vllm: vLLM takes it merged into the base (vLLM does not know DoRA)")
    assert "`tunesmith export DIR --to vllm`" in said
    [said] = warnings(Traits("lora", rank=8, head="classify"), "vllm")
    assert "as a pooling model" in said and "`tunesmith export DIR --to safetensors`" in said, "--to vllm refuses it"
    [said] = warnings(Traits("prefix"), "llamacpp")
    assert "with an error" in said and "--to gguf --as lora" in said
    [said] = warnings(Traits("prefix"), None)
    assert "`tunesmith serve` alone" in said
    assert warnings(Traits("prefix"), "builtin") == [] == warnings(Traits("prompt"), None), "vLLM takes prompt embeddings"


def test_the_page_shows_what_the_program_goes_by() -> None:
    assert served.table() in PAGE.read_text(encoding="utf-8")
    assert all(server.source in PAGE.read_text(encoding="utf-8") for server in SERVERS.values())


def test_vllm_ranks_are_those_that_its_settings_allow() -> None:
    assert SERVERS["vllm"].rank == 512
