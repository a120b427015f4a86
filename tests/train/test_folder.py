import json
import os
from pathlib import Path

import pytest

from tunesmith import config, events
from tunesmith.errors import UserError
from tunesmith.train import folder


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    out = folder.begin(str(tmp_path / "runs" / "a"))
    assert out.is_dir() and not any(out.iterdir())
    assert folder.begin(str(out)) == out, "an empty folder will do"


def test_checking_writes_nothing(tmp_path: Path) -> None:
    assert folder.check(str(tmp_path / "runs" / "a")) == tmp_path / "runs" / "a"
    assert not any(tmp_path.iterdir())


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("")
    with pytest.raises(
        UserError, match=r"already holds a run \(it has no checkpoint yet\): go on with `tunesmith resume .*`, or take another --out"
    ):
        folder.begin(str(tmp_path))
    (tmp_path / "checkpoints" / "step-12").mkdir(parents=True)
    with pytest.raises(UserError, match="it has a checkpoint of step 12"):
        folder.begin(str(tmp_path))


def test_other_people_s_files_are_not_mixed_with_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        folder.begin(str(tmp_path))
    with pytest.raises(UserError, match="is not empty and holds no run"):
        folder.begin(str(tmp_path / "thesis.tex"))
    with pytest.raises(UserError, match=r"cannot be written .*take another --out"):
        folder.begin(str(tmp_path / "thesis.tex" / "run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is writable for root")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        folder.begin(str(tmp_path / "run"))


def test_only_one_process_is_at_work(tmp_path: Path) -> None:
    with folder.locked(tmp_path), pytest.raises(UserError, match="another process is at work"), folder.locked(tmp_path):
        pass
    with folder.locked(tmp_path):
        pass


def test_a_refused_run_is_withdrawn_and_a_begun_one_is_not(tmp_path: Path) -> None:
    out = folder.begin(str(tmp_path / "a"))
    for name in (folder.RUN, folder.DATA, folder.PLAN):
        (out / name).write_text("{}")
    log = events.EventLog(out / folder.EVENTS)
    log.close()
    folder.withdraw(out)
    assert not out.exists()

    out = folder.begin(str(tmp_path / "b"))
    (out / folder.RUN).write_text("")
    log = events.EventLog(out / folder.EVENTS)
    log.write(events.Warned(message="it has begun"))
    log.close()
    folder.withdraw(out)
    assert sorted(path.name for path in out.iterdir()) == ["events.jsonl", "run.yaml"]


def test_a_run_is_opened_with_its_settings(tmp_path: Path) -> None:
    (tmp_path / folder.RUN).write_text(config.dump(config.parse({"train": {"steps": 7}})))
    out, loaded = folder.open_run(tmp_path)
    assert (out, loaded.run.train.steps) == (tmp_path, 7)
    with pytest.raises(UserError, match=r"no run here \(run.yaml is missing\)"):
        folder.open_run(tmp_path.parent)
    with pytest.raises(UserError, match=r"no run here \(there is no such folder\)"):
        folder.open_run(tmp_path / "none")


def test_finished_is_what_the_log_says(tmp_path: Path) -> None:
    assert not folder.is_finished(tmp_path)
    log = events.EventLog(tmp_path / folder.EVENTS)
    log.write(events.Saved(step=1, path="x", seconds=0.1))
    assert not folder.is_finished(tmp_path)
    numbers = dict.fromkeys(("steps", "tokens", "computed_tokens", "learned_tokens", "peak_memory_bytes"), 1)
    log.write(events.Finished(loss=1.0, seconds=1.0, seconds_to_first_step=1.0, tokens_per_second=1.0, **numbers))
    log.close()
    assert folder.is_finished(tmp_path)


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    folder.write_json(tmp_path / "a.json", {"städte": ["Köln"]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"städte": ["Köln"]} == folder.read_json(tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(TypeError):
        folder.write_json(tmp_path / "a.json", {"x": object()})
    assert folder.read_json(tmp_path / "a.json") == {"städte": ["Köln"]}
    (tmp_path / "b.json").write_text("{")
    for name in ("b.json", "none.json"):
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            folder.read_json(tmp_path / name)
