"""What other engines are handed is made once, and what they cannot put beside a base is refused."""

from pathlib import Path

import pytest
from gguf import GGUFReader

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith.errors import UserError
from tunesmith.export import prepared
from tunesmith.methods.layouts.adapter_file import config_of


def trained(model: Path, folder: Path, method: dict[str, object]) -> Path:
    data = runs.write_rows(folder / "rows.jsonl")
    runs.finish(runs.settings(model, data, folder / "run", {"train.steps": 1, "method": method}))
    return folder / "run" / "adapter"


def test_a_base_is_written_once_for_each_kind(tiny_llama: Path) -> None:
    told: list[str] = []
    first = prepared.base_gguf(tiny_llama, "f32", told.append)
    assert told and GGUFReader(first).get_field("general.architecture") is not None
    stamp, said = first.stat().st_mtime_ns, len(told)
    assert prepared.base_gguf(tiny_llama, "f32", told.append) == first and first.stat().st_mtime_ns == stamp and len(told) == said
    assert prepared.base_gguf(tiny_llama, None, told.append) != first
    with pytest.raises(UserError, match="--quantize q9"):
        prepared.base_gguf(tiny_llama, "q9", told.append)


def test_a_lora_is_taken_and_made_anew_when_it_has_changed(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = trained(tiny_llama, tmp_path, {"name": "lora", "rank": 4})
    assert prepared.adapter_for_vllm(adapter, tiny_llama) == adapter
    first = prepared.adapter_gguf(adapter, tiny_llama)
    assert prepared.adapter_gguf(adapter, tiny_llama) == first
    (adapter / "adapter_model.safetensors").touch()
    assert prepared.adapter_gguf(adapter, tiny_llama) != first


def test_what_has_no_place_beside_a_base_is_refused_with_a_way_out(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = trained(tiny_llama, tmp_path, {"name": "dora", "rank": 4})
    for prepare in (prepared.adapter_gguf, prepared.adapter_for_vllm):
        with pytest.raises(UserError, match="DoRA") as refused:
            prepare(adapter, tiny_llama)
        assert "--engine builtin" in refused.value.problems[-1]


def test_uneven_ranks_are_laid_out_anew_for_vllm(tiny_llama: Path, tmp_path: Path) -> None:
    from tunesmith.methods.layouts import compose, layout
    from tunesmith.models import load as loading

    adapter = trained(tiny_llama, tmp_path, {"name": "lora", "rank": 4, "targets": ["q", "v"]})
    (tmp_path / "second").mkdir()
    other = trained(tiny_llama, tmp_path / "second", {"name": "lora", "rank": 2, "targets": ["q"]})
    files = [(layout.read(adapter), 1.0), (layout.read(other), 1.0)]
    skeleton = loading.skeleton(loading.load_config(tiny_llama))
    uneven = tmp_path / "uneven"
    layout.write(uneven, skeleton, layout.fit(compose.HOW["concat"](files), skeleton, device="cpu"), str(tiny_llama))
    assert config_of(uneven)["rank_pattern"]
    laid = prepared.adapter_for_vllm(uneven, tiny_llama)
    assert laid != uneven and not config_of(laid).get("rank_pattern") and config_of(laid)["r"] == 6
