"""What answers under a name: exchanged, gone, as the registry says, and after a restart with the same command."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.serve.adapters_made import Told, adapter
from tunesmith.serve.catalog import Catalog, Model
from tunesmith.serve.loading import Loading, answer_with, follow, forget, serve
from tunesmith.serve.registry import Registry


def started() -> tuple[Loading, Any]:
    engine: Any = Told()
    return Loading(engine, Catalog(Model("base", None)), lambda name, folder: Model(name, None, folder, "base")), engine


def restarted(registry: Registry, given: dict[str, Path]) -> tuple[dict[str, str], list[str]]:
    """({name: folder's name} that answers, what was said) of a server that is started with these folders."""
    loading, _ = started()
    for name, folder in given.items():
        serve(loading, name, folder)
    said = list(follow(loading, registry, given))
    return {model.name: model.folder.name for model in loading.catalog.every() if model.folder}, said


def test_folders_answer_are_exchanged_and_go(tmp_path: Path) -> None:
    loading, engine = started()
    for name in ("a", "b"):
        serve(loading, "x", adapter(tmp_path / name))
    assert [model.name for model in loading.catalog.every()] == ["base", "x"]
    forget(loading, "x")
    assert engine.told == [("load", "x", str(tmp_path / "a")), ("load", "x", str(tmp_path / "b")), ("unload", "x")]
    with pytest.raises(LookupError, match="no adapter 'x' is loaded"):
        forget(loading, "x")
    for name in ("base", "", "a b", "/x", "x\n"):
        with pytest.raises(ValueError, match="name"):
            serve(loading, name, tmp_path / "a")


def test_a_split_ends_when_the_name_is_served_by_one(tmp_path: Path) -> None:
    loading, _ = started()
    registry = Registry(tmp_path / "r.sqlite")
    for seed, name in enumerate("ab"):
        registry.register("s", adapter(tmp_path / name, seed))
    answer_with(loading, registry, "s", {1: 0.5, 2: 0.5})

    def answering() -> set[str]:
        found = [loading.catalog.find("s", f"user {number}") for number in range(50)]
        return {model.name for model in found if model is not None}

    assert answering() == {"s@1", "s@2"}
    serve(loading, "s", tmp_path / "b")
    assert answering() == {"s"}


def test_a_restart_keeps_what_a_name_was_pointed_to(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r.sqlite")
    one, two = adapter(tmp_path / "one", 1), adapter(tmp_path / "two", 2)
    assert restarted(registry, {"s": one}) == ({"s": "one"}, [])
    assert registry.resolve("s").spelled == "s@1"
    answers, said = restarted(registry, {"s": two})  # content that the registry does not know yet: what is wanted from now on
    assert (answers, said) == ({"s": "two"}, []) and registry.resolve("s").spelled == "s@2"
    registry.roll_back("s")
    answers, said = restarted(registry, {"s": two})
    assert answers == {"s": "one"} and said == ["s: s@1, as the registry points it"]
    assert len(registry.versions("s")) == 2


def test_names_of_the_registry_answer_without_being_given(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r.sqlite")
    for seed, name in enumerate(("a", "b", "c")):
        registry.register("s", adapter(tmp_path / name, seed))
    registry.point("s", {1: 0.25, 3: 0.75})
    answers, said = restarted(registry, {})
    assert answers == {"s": "c", "s@1": "a", "s@3": "c"}
    assert said == ["s: s@1 for 25% and s@3 for 75%, as the registry points it"]


def test_what_cannot_be_served_is_said_and_the_rest_is_served(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r.sqlite")
    for name in ("gone", "broken", "fine"):
        registry.register(name, adapter(tmp_path / name))
    save_file({"a": torch.ones(7)}, tmp_path / "gone" / "adapter_model.safetensors")
    answers, said = restarted(registry, {})
    assert answers == {"fine": "fine"}
    assert [sentence.partition(":")[0] for sentence in said] == ["broken", "fine", "gone"]
    assert "another base model" in said[0] and "have changed" in said[2]
