"""Law: every method merges, over every base, into weights that answer as it does; or it is refused, and told what can be done."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from tests.laws.test_switching import ADAPTERS, ONLY, loaded, logits, ready
from tunesmith.errors import UserError
from tunesmith.export import bases, merge
from tunesmith.methods.method import METHODS, unmergeable
from tunesmith.methods.tuning import Tuning
from tunesmith.models import load as loading
from tunesmith.models import slots

EVERY = ADAPTERS | ONLY["nf4"]
FOLDS = ("lora", "dora", "pissa")
MERGES = [name for name, settings in EVERY.items() if settings["name"] in FOLDS]


def near(found: list[Tensor], wanted: list[Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def written(folder: Path, kind: bases.Kind, tuned: Any, source: Path) -> list[Tensor]:
    """What the merged checkpoint answers, once it is read again."""
    modules = bases.modules_over(tuned, kind)
    bare = loading.skeleton(loading.load_config(source))
    change = merge.folding(source, modules, merge.orientation(bare), "model", merge.parted(bare, modules, headed=False))
    merge.write(change, folder)
    return logits(loaded(folder, "fp32"))


@pytest.mark.parametrize("name", [name for name in MERGES if name not in ONLY["nf4"]])
def test_the_merged_model_is_the_adapter(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    base = loaded(tiny_llama, "fp32")
    tuning, alone = ready(base, EVERY[name], 3), logits(base)
    slots.place(base.model, tuning.adapter)
    live = logits(base)
    assert max((a - b).abs().max().item() for a, b in zip(alone, live, strict=True)) > 1e-2, "the adapter does something"
    near(written(tmp_path / "merged", "original", SimpleNamespace(tuning=tuning, model=base.model), tiny_llama), live)


@pytest.mark.parametrize("name", MERGES)
def test_over_nf4_each_base_is_what_it_is_said_to_be(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Dequantised: the live adapter. Original: what base and adapter are side by side over weights that nobody rounded."""
    base = loaded(tiny_llama, "nf4")
    tuning = ready(base, EVERY[name], 3)
    slots.place(base.model, tuning.adapter)
    live, tuned = logits(base), SimpleNamespace(tuning=tuning, model=base.model)
    near(written(tmp_path / "dequantised", "dequantised", tuned, tiny_llama), live)
    merged = written(tmp_path / "original", "original", tuned, tiny_llama)
    slots.lift(base.model, tuning.adapter)
    plain = loaded(tiny_llama, "fp32")
    slots.place(plain.model, bases.served(tuning.adapter))
    near(merged, logits(plain))
    assert max((a - b).abs().max().item() for a, b in zip(merged, live, strict=True)) > 1e-3, "rounding is seen"


@pytest.mark.parametrize("name", METHODS)
def test_what_cannot_merge_is_told_what_can_be_done(name: str, tiny_llama: Path) -> None:
    if name in ("full", "freeze"):
        with pytest.raises(UserError, match="holds no adapter: there is nothing to merge"):
            bases.refuse("runs/mine", Tuning({}, {}))
        return
    misfit = unmergeable(ready(loaded(tiny_llama, "fp32"), ADAPTERS[name], 3), "runs/mine")
    assert bool(misfit) == (name not in FOLDS)
    assert not misfit or ("`tunesmith serve runs/mine`" in misfit and "`tunesmith export runs/mine --to peft --as lora" in misfit)
