"""The names that a server offers: exchanged, removed, split between others; the base stays."""

import threading
from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.serve.catalog import Catalog, Model


def names(catalog: Catalog) -> list[str]:
    return [model.name for model in catalog.every()]


def test_models_come_are_exchanged_and_go() -> None:
    catalog = Catalog(Model("base", None))
    catalog.add(Model("a", None, Path("one")))
    catalog.add(Model("b", None))
    catalog.add(Model("a", None, Path("two")))
    found = catalog.find("a")
    assert names(catalog) == ["base", "a", "b"] and found is not None and found.folder == Path("two")
    catalog.remove("a")
    assert catalog.find("a") is None, "never the base in its place"
    with pytest.raises(LookupError):
        catalog.remove("a")


def test_the_base_keeps_its_name() -> None:
    catalog = Catalog(Model("base", None))
    with pytest.raises(UserError, match="the base's own name; give the adapter another: NAME=runs/x"):
        catalog.add(Model("base", None, Path("runs/x")))
    with pytest.raises(ValueError, match="stays"):
        catalog.remove("base")
    assert catalog.find("base") is catalog.base


def test_a_name_can_be_split_between_others() -> None:
    catalog = Catalog(Model("base", None))
    for name in ("s", "s@1", "s@2"):
        catalog.add(Model(name, None))
    catalog.split("s", lambda key: "s@2" if key == "kim" else "s@1")
    assert [model.name for key in ("kim", "lee", "") if (model := catalog.find("s", key))] == ["s@2", "s@1", "s@1"]
    other = catalog.find("s@1", "kim")
    assert other is not None and other.name == "s@1"
    catalog.remove("s@2")
    left = catalog.find("s", "kim")
    assert left is not None and left.name == "s", "one that has left is not missed"
    catalog.split("s", None)
    whole = catalog.find("s", "lee")
    assert whole is not None and whole.name == "s"
    catalog.split("s", lambda key: "s@1")
    catalog.remove("s")
    assert catalog.find("s", "kim") is None
    with pytest.raises(LookupError):
        catalog.split("s", None)


def test_threads_may_change_it_at_the_same_time() -> None:
    catalog = Catalog(Model("base", None))

    def work(name: str) -> None:
        for _ in range(300):
            catalog.add(Model(name, None))
            assert catalog.find(name) is not None
            catalog.every()
            catalog.remove(name)

    threads = [threading.Thread(target=work, args=(f"m{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert names(catalog) == ["base"]
