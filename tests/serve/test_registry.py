"""Versions of a name, what each was made of, what a name means and meant; several processes, foreign files, folders that go."""

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tunesmith.errors import UserError
from tunesmith.serve.registry import Registry

ROOT = Path(__file__).resolve().parents[2]


def run_folder(folder: Path, seed: int, f1: float = 0.5) -> Path:
    """What a run leaves, as far as the registry reads it."""
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    save_file({"a": torch.full((2, 2), float(seed))}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}), encoding="utf-8")
    (adapter / "tunesmith.json").write_text(json.dumps({"base": {"model_type": "llama", "values": {"x": [1.0]}}}), encoding="utf-8")
    (folder / "run.yaml").write_text("model: {source: base}\nmethod: {name: lora, rank: 2}\n", encoding="utf-8")
    (folder / "scores.json").write_text(json.dumps({"scores": {"f1": f1}}), encoding="utf-8")
    data = {"rows": 9, "tokens": 70, "mask_sha256": "ab", "template_sha256": "cd", "dropped": [{"origin": "x:1"}]}
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry.sqlite")


def test_versions_count_up_and_the_same_content_is_one(registry: Registry, tmp_path: Path) -> None:
    first = registry.register("support", run_folder(tmp_path / "a", 1))
    second = registry.register("support", run_folder(tmp_path / "b", 2))
    again = registry.register("support", run_folder(tmp_path / "a-copied", 1, f1=0.75))
    assert [first.spelled, second.spelled, again.spelled] == ["support@1", "support@2", "support@1"]
    assert again.folder == tmp_path / "a-copied" and again.facts["scores"] == {"scores": {"f1": 0.75}}
    assert registry.register("legal", tmp_path / "b").spelled == "legal@1", "numbers belong to a name"
    assert [each.version for each in registry.versions("support")] == [1, 2]
    assert registry.names() == ["legal", "support"] and registry.versions("nobody") == []
    assert len(first.weights_sha256) == 64 and first.weights_sha256 == again.weights_sha256 != second.weights_sha256


def test_what_a_version_was_made_of(registry: Registry, tmp_path: Path) -> None:
    facts = registry.register("support", run_folder(tmp_path / "a", 1)).facts
    assert facts["method"] == "lora" and facts["run"]["method"] == {"name": "lora", "rank": 2}
    assert facts["data"] == {"rows": 9, "tokens": 70, "mask_sha256": "ab", "template_sha256": "cd"}
    assert facts["base"]["model_type"] == "llama"
    bare = registry.register("bare", tmp_path / "a" / "adapter").facts
    assert bare == {"method": "lora", "base": facts["base"]}


def test_settings_of_an_adapter_are_part_of_its_content(registry: Registry, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", 1)
    registry.register("support", folder)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 9}), encoding="utf-8")
    assert registry.register("support", folder).version == 2


def test_a_name_means_its_first_version_until_it_is_pointed_elsewhere(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        registry.register("support", run_folder(tmp_path / str(number), number))
    assert registry.resolve("support").version == 1
    registry.point("support", 3, note="better F1")
    assert registry.resolve("support").version == 3 and registry.resolve("support@2").version == 2
    history = registry.history("support")
    assert [each.shares for each in history] == [{1: 1.0}, {3: 1.0}] and history[-1].note == "better F1"
    assert history[0].time <= history[1].time


def test_rolling_back_goes_back_step_by_step(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        registry.register("support", run_folder(tmp_path / str(number), number))
    registry.point("support", 2)
    registry.point("support", 3)
    assert registry.roll_back("support").shares == {2: 1.0}
    assert registry.roll_back("support", note="worse").shares == {1: 1.0}
    with pytest.raises(LookupError, match="never meant anything else"):
        registry.roll_back("support")
    registry.point("support", 3)
    assert registry.roll_back("support").shares == {1: 1.0}, "not what was rolled back from"
    assert [each.note for each in registry.history("support")] == ["first version", "", "", "rolled back", "worse", "", "rolled back"]
    with pytest.raises(LookupError, match="not in the registry"):
        registry.roll_back("nobody")


def test_shares_send_each_user_to_one_version(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        registry.register("support", run_folder(tmp_path / str(number), number))
    registry.point("support", {1: 0.8, 2: 0.2})
    users = [f"user-{number}" for number in range(600)]
    before = {user: registry.resolve("support", user).version for user in users}
    assert before == {user: registry.resolve("support", user).version for user in users}
    counts = Counter(before.values())
    assert 80 <= counts[2] <= 160  # 120 expected, standard deviation 10
    registry.point("support", {1: 0.5, 2: 0.5})
    after = {user: registry.resolve("support", user).version for user in users}
    assert not [user for user in users if before[user] == 2 and after[user] == 1], "who has the new version keeps it when its share grows"
    assert {registry.resolve("support").version for _ in range(60)} == {1, 2}, "without a user by chance"


def test_what_cannot_be_pointed_to(registry: Registry, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", 1)
    registry.register("support", folder)
    for bad in ({}, {1: 0.5}, {1: 1.5, 2: -0.5}, {1: float("nan")}):
        with pytest.raises(ValueError, match="shares are above 0 and add up to 1"):
            registry.point("support", bad)
    with pytest.raises(LookupError, match="support@7 is not in the registry"):
        registry.point("support", 7)
    with pytest.raises(LookupError, match="nobody@1 is not in the registry"):
        registry.point("nobody", 1)
    for spelled in ("nobody", "support@9", "support@x", "support@", "@1", ""):
        with pytest.raises(LookupError):
            registry.resolve(spelled)
    version = registry.resolve("support")
    assert registry.trouble(version) == ""
    save_file({"a": torch.zeros(2, 2)}, folder / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="have changed since it was registered"):
        registry.point("support", 1)
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="is gone or holds no result any more"):
        registry.point("support", 1)
    assert len(registry.history("support")) == 1


def test_folders_and_names_that_cannot_be_registered(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(UserError, match="neither a run with a result nor an adapter folder"):
            registry.register("support", folder)
    good = run_folder(tmp_path / "a", 1)
    for name in ("", "a@1", "a/b", ".a", "a b", "x" * 65):
        with pytest.raises(UserError, match="a name in the registry"):
            registry.register(name, good)
    assert registry.names() == []


def test_files_that_are_no_registry_stay_as_they_are(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE other (x)")
    db.close()
    before = foreign.read_bytes()
    with pytest.raises(UserError, match=r"no registry of tunesmith's"):
        Registry(foreign)
    assert foreign.read_bytes() == before
    text = tmp_path / "text.sqlite"
    text.write_text("hello " * 200, encoding="utf-8")
    with pytest.raises(UserError, match="cannot be used as a registry"):
        Registry(text)
    with pytest.raises(UserError, match="cannot be used as a registry"):
        Registry(tmp_path / "no" / "such" / "folder.sqlite")
    ours = Registry(tmp_path / "ours.sqlite")
    with sqlite3.connect(ours.path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UserError, match="written by another version"):
        Registry(ours.path)


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    path, count, processes = tmp_path / "registry.sqlite", 6, 3
    for number in range(count * processes):
        run_folder(tmp_path / str(number), number)
    program = (
        "import sys; from pathlib import Path; from tunesmith.serve.registry import Registry\n"
        "folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])\n"
        "registry = Registry(folder / 'registry.sqlite')\n"
        "for n in range(first, first + count): registry.point('s', registry.register('s', folder / str(n)).version)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(count * n), str(count)], cwd=ROOT, stderr=subprocess.PIPE)
        for n in range(processes)
    ]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    registry = Registry(path)
    assert [each.version for each in registry.versions("s")] == list(range(1, count * processes + 1))
    assert len(registry.history("s")) == count * processes + 1


def test_what_a_server_loads_at_its_start(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        registry.register("support", run_folder(tmp_path / str(number), number))
    registry.register("legal", tmp_path / "2")
    registry.point("support", {1: 0.2, 3: 0.8})
    found = {name: version.spelled for name, version in registry.pointed().items()}
    assert found == {"legal": "legal@1", "support": "support@3", "support@1": "support@1", "support@3": "support@3"}
