import pytest

from tunesmith.imports.translation import Translation, is_off, names, plain, shown

VALUES: dict[str, object] = {
    "1e-4": 1e-4, "8": 8, "true": True, "None": None, "": None, "q_proj": "q_proj", "1.5": 1.5, ".5": 0.5, "1-2": "1-2"
}  # fmt: skip


@pytest.mark.parametrize("text", VALUES)
def test_values_in_quotes_are_what_they_say(text):
    assert plain(text) == VALUES[text] and type(plain(text)) is type(VALUES[text])
    assert plain(7) == 7


def test_what_switches_nothing_on():
    nothing: list[object] = [None, False, 0, 0.0, [], {}, "no"]
    assert all(is_off(value) for value in nothing)
    assert not any(is_off(value) for value in (True, 1, "yes", [0]))


def test_lists():
    assert names("q_proj, v_proj") == names(["q_proj", "v_proj"]) == ["q_proj", "v_proj"]
    assert names(None) == names("") == []


def test_every_key_ends_in_one_list() -> None:
    given: dict[str, object] = {
        "a": 1,
        "b": 2,
        "c": True,
        "d": False,
        "e": "x",
        "fgh": 3,
        "secret_key": "s3cr3t",
        "taken": 5,
        "nothing": None,
    }
    t = Translation("Tool", given, {"a": 4})
    t.put("train.seed", 9)
    assert t.take("taken") == 5 and t.take("absent", 7) == 7
    t.finish({"a": "train.epochs"}, {"so it is": "b"}, {"not here": "c d e secret_key"}, "fghi taken")
    assert t.settings == {"train.seed": 9, "train.epochs": 1}
    assert t.origins == {"train.seed": "Tool's default", "train.epochs": "a (line 4)"}
    assert t.carried == ["Tool's default -> train.seed = 9", "a -> train.epochs = 1"]
    assert t.needless == ["b: 2: so it is", "taken: 5: so it is here, or nothing follows from it"]
    assert t.left == [
        "c: true: not here",
        "e: x: not here",
        "fgh: 3: no key of Tool that is known here; did you mean fghi?",
        "secret_key: (kept to yourself): not here",
    ]
    assert t.off == ["d", "nothing"]


def test_long_values_are_cut():
    assert shown("x" * 100) == "x" * 77 + "..." and shown(None) == "null" and shown(False) == "false" and shown([1]) == "[1]"
