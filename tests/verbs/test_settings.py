import argparse
from pathlib import Path

import pytest

from tunesmith import config
from tunesmith.errors import UserError
from tunesmith.verbs import settings


def read(*words: str) -> config.Loaded:
    parser = argparse.ArgumentParser()
    settings.add_arguments(parser)
    return settings.read(parser.parse_intermixed_args(words))


def test_file_flags_and_words_in_that_order(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {source: A}\ntrain:\n  steps: 7\n  seed: 3\n")
    loaded = read(str(file), "--model", "B", "train.steps=9", "method.targets=[q,v]", "data.prompt=Say {x}")
    assert (loaded.run.model.source, loaded.run.train.steps, loaded.run.train.seed) == ("B", 9, 3)
    assert loaded.run.method.targets == ["q", "v"] and loaded.run.data.prompt == "Say {x}"  # type: ignore[union-attr]
    assert loaded.origins["train.seed"] == f"{file}:4"
    assert (loaded.origins["model.source"], loaded.origins["train.steps"]) == ("--model", "train.steps=9")


@pytest.mark.parametrize("flag", settings.FLAGS)
def test_every_flag_sets_its_key(flag: str) -> None:
    key = settings.FLAGS[flag][0]
    value = "full" if flag == "--method" else "x"
    loaded = read(flag, value)
    found = loaded.run.model_dump()
    for name in key.split("."):
        found = found[name]
    assert found == ({"name": "full"} if flag == "--method" else "x") and loaded.origins[key] == flag


def test_the_help_lists_every_setting() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    settings.add_arguments(parser)
    said = parser.format_help()
    for row in config.table():
        assert f"  {row.key} " in said and row.sentence in said


def test_misfits_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        read(str(tmp_path / "none.yaml"), "other.yaml")
    assert refused.value.problems == (
        "other.yaml: one run file at most, and settings are written KEY=VALUE",
        f"{tmp_path / 'none.yaml'}: no such run file; settings are written KEY=VALUE, data is given with --data",
    )
    file = tmp_path / "run.yaml"
    file.write_text("train:\n  stepz: 7\nmethod: {name: lora, rank: none}\n")
    with pytest.raises(UserError) as refused:
        read(str(file), "data.max_length=big")
    text = "\n".join(refused.value.problems)
    assert f"{file}:2: train.stepz: no such setting; did you mean 'steps'?" in text
    assert f"{file}:3: method.rank" in text and "data.max_length" in text and "big" in text
