"""Sums of updates as matrices: what is combined is compared with the weighted sum of dense [out, in] updates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import tiny
from tunesmith.errors import UserError
from tunesmith.methods import pissa
from tunesmith.methods.layouts import compose, layout
from tunesmith.methods.layouts.adapter_file import AdapterFile
from tunesmith.methods.settings import PiSSA
from tunesmith.methods.tuning import Start

WIDTHS = {"blocks.0.q": (6, 5), "blocks.0.v": (4, 5), "blocks.1.q": (6, 5)}  # (out, in)


def made(name: str, rank: int, paths: Any = WIDTHS, scale: float = 2.0, source: str = "some/base", **about: Any) -> AdapterFile:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    tensors = {}
    for path in paths:
        out_features, in_features = WIDTHS[path]
        tensors[f"{path}.A"] = torch.randn(rank, in_features, generator=generator)
        tensors[f"{path}.B"] = torch.randn(out_features, rank, generator=generator)
    facts = {"scales": dict.fromkeys(paths, scale), "dropout": 0.1, "dora": False}
    return AdapterFile(Path("adapters") / name, source, "lora", tensors, facts, about)


def updates(file: AdapterFile) -> dict[str, Tensor]:
    scales = file.facts["scales"]
    return {path: scale * file.tensors[f"{path}.B"] @ file.tensors[f"{path}.A"] for path, scale in scales.items()}


def weighted_sum(files: compose.Weighted) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for file, weight in files:
        for path, update in updates(file).items():
            total[path] = total.get(path, torch.zeros_like(update)) + weight * update
    return total


def problems(call: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        call()
    return list(caught.value.problems)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.3), (1.0, -0.5), (0.0, 2.0)], ids=str)
def test_concat_is_the_weighted_sum_of_updates_of_any_rank(weights: tuple[float, float]) -> None:
    files = [(made("a", 2, scale=2.0), weights[0]), (made("b", 3, scale=0.5), weights[1])]
    combined = compose.concat(files)
    assert {path: combined.tensors[f"{path}.A"].shape[0] for path in WIDTHS} == dict.fromkeys(WIDTHS, 5)
    for path, update in weighted_sum(files).items():
        torch.testing.assert_close(updates(combined)[path], update)
    assert compose.deviation(combined, files) < 1e-7


def test_a_layer_that_one_adapter_leaves_out_is_the_others_own() -> None:
    files = [(made("a", 2), 0.5), (made("b", 2, ["blocks.0.q"]), 1.0)]
    for combined in (compose.concat(files), compose.linear(files)):
        torch.testing.assert_close(updates(combined)["blocks.1.q"], 0.5 * updates(files[0][0])["blocks.1.q"])
        assert list(combined.facts["scales"]) == list(WIDTHS)
    assert {path: compose.concat(files).tensors[f"{path}.A"].shape[0] for path in WIDTHS} == {
        "blocks.0.q": 4,
        "blocks.0.v": 2,
        "blocks.1.q": 2,
    }


def test_linear_adds_factors_and_so_also_their_mixed_products() -> None:
    a, b = made("a", 2, scale=2.0), made("b", 2, scale=0.5)
    files = [(a, 0.8), (b, -0.4)]
    combined, path = compose.linear(files), "blocks.0.q"
    A = 1.6**0.5 * a.tensors[f"{path}.A"] - 0.2**0.5 * b.tensors[f"{path}.A"]
    B = 1.6**0.5 * a.tensors[f"{path}.B"] + 0.2**0.5 * b.tensors[f"{path}.B"]
    torch.testing.assert_close(updates(combined)[path], B @ A)
    wanted = weighted_sum(files)
    far = torch.cat([(updates(combined)[path] - wanted[path]).flatten() for path in WIDTHS]).norm()
    size = torch.cat([wanted[path].flatten() for path in WIDTHS]).norm()
    assert compose.deviation(combined, files) == pytest.approx(float(far / size), rel=1e-5) and far > 0.1 * size


def test_one_adapter_alone_is_scaled() -> None:
    a = made("a", 2)
    for how in compose.HOW.values():
        torch.testing.assert_close(updates(how([(a, 0.5)]))["blocks.0.v"], 0.5 * updates(a)["blocks.0.v"])
    assert compose.deviation(compose.linear([(a, -0.5)]), [(a, -0.5)]) < 1e-7


def test_what_the_result_says_of_itself() -> None:
    a, b = made("a", 2), made("b", 2)
    combined = compose.concat([(replace(a, about={"base": {"layers": 2}, "pissa": {"quantised": True}}), 0.7), (b, 0.3)])
    assert combined.about == {
        "base": {"layers": 2},
        "composed": {"how": "concat", "of": [{"adapter": "a", "weight": 0.7}, {"adapter": "b", "weight": 0.3}]},
    }
    assert (combined.base, combined.layout, set(combined.facts["scales"].values())) == ("some/base", "lora", {1.0})


def test_a_pissa_adds_up_as_the_lora_that_it_is_saved_as(tmp_path: Path) -> None:
    model = tiny("llama")
    tuning = pissa.build(model, PiSSA(rank=2, targets=["q"]))
    pissa.init(tuning, Start(model, None, 0, lambda path: model.get_submodule(path).weight), PiSSA(rank=2))
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(0.1)
    layout.write(tmp_path / "adapter", model, tuning, "some/base")
    file = layout.read(tmp_path / "adapter")
    combined = compose.concat([(file, 2.0)])
    assert file.about["layout"] == "pissa" and combined.layout == "lora" and list(combined.about) == ["composed"]
    for path, module in tuning.adapter.items():
        weight_OI = torch.zeros(64, 64)
        torch.testing.assert_close(updates(combined)[path], 2 * module.folded(weight_OI), atol=1e-5, rtol=1e-4)  # type: ignore[operator]


def test_linear_needs_equal_ranks_and_names_every_layer() -> None:
    found = problems(lambda: compose.linear([(made("a", 2), 1.0), (made("b", 3), 1.0)]))
    assert found == ["linear needs the same rank everywhere; concat takes any", *[f"  {path}: ranks 2 (a), 3 (b)" for path in WIDTHS]]


def test_all_that_cannot_be_combined_is_said_at_once() -> None:
    lora = made("a", 2)
    dora = replace(lora, folder=Path("d"), facts=lora.facts | {"dora": True})
    headed = replace(lora, folder=Path("h"), facts=lora.facts | {"head": object()})
    beside = replace(lora, folder=Path("t"), tensors=lora.tensors | {"embed.values": torch.zeros(1, 2)})
    others = [replace(lora, folder=Path(layout), layout=layout) for layout in ("prompt", "prefix", "adapterhub", "new")]
    found = problems(lambda: compose.concat([(file, 1.0) for file in [lora, dora, headed, beside, *others]] + [(lora, float("nan"))]))
    assert [each.partition(":")[0] for each in found] == ["d", "h", "t", "prompt", "prefix", "adapterhub", "new", "adapters/a"]
    for words in ("DoRA scales each row", "a task's head", "also trains embed.values", "virtual tokens", "activation inside", "nan"):
        assert any(words in each for each in found), words
    assert problems(lambda: compose.linear([(lora, 0.0)])) == ["every weight is 0: that is the base itself"]


def test_bases_are_told_by_fingerprint_or_else_by_name(tmp_path: Path) -> None:
    print_a = {"hidden_size": 64, "layers": 2, "values": {"norm.weight": [1.0, 2.0]}}
    print_b = print_a | {"values": {"norm.weight": [1.5, 1.0]}}
    a, moved, other = made("a", 2, base=print_a), made("b", 2, base=print_a), made("c", 2, base=print_b)
    assert compose.other_bases([(a, 1.0), (replace(moved, base="elsewhere"), 1.0)]) == [], "the same weights in another folder"
    [found] = compose.other_bases([(a, 1.0), (moved, 1.0), (other, 1.0)])
    assert found.startswith("adapters/c was made for some/base, adapters/a for some/base: the weights differ by ")
    (tmp_path / "base").mkdir()
    by_path = [(made(name, 2, source=source), 1.0) for name, source in (("a", str(tmp_path / "base")), ("b", f"{tmp_path}/./base/"))]
    assert compose.other_bases(by_path) == []
    assert "another name" in compose.other_bases([by_path[0], (made("c", 2, source="owner/name"), 1.0)])[0]
