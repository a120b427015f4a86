"""The quickstart's story, told by a tiny model: what is printed is what was measured and stored."""

import json

import pytest

from tunesmith import cli
from tunesmith.train import folder
from tunesmith.verbs import quickstart
from tunesmith.verbs.quickstart import _free


@pytest.fixture(scope="module")
def story(tiny_llama, tmp_path_factory):
    """(exit code, stdout, run folder) of a quickstart on the tiny model, with four test rows."""
    from contextlib import redirect_stdout
    from io import StringIO

    rows = tmp_path_factory.mktemp("quickstart") / "test.jsonl"
    lines = [{"prompt": f"ticket {n}", "completion": f'{{"n":{n}}}'} for n in range(4)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = rows.parent / "run"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setattr(quickstart, "MODEL", str(tiny_llama))
        patch.setattr(quickstart, "TRAIN", f"{quickstart.TRAIN}#20")
        patch.setattr(quickstart, "TEST", str(rows))
        patch.setenv("COLUMNS", "120")
        code = cli.main(["quickstart", "--steps", "2", "--out", str(out)])
    return code, printed.getvalue(), out


def test_it_ends_well_with_the_next_command(story):
    code, printed, out = story
    assert code == 0
    assert f"tunesmith chat {out} --compare" in printed and f"tunesmith merge {out}" in printed


def test_the_table_shown_is_what_was_stored(story):
    _, printed, out = story
    stored = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    for name, label in (("json_valid", "valid JSON"), ("json_fields", "fields right (F1)"), ("exact_match", "whole answer right")):
        row = next(line for line in printed.splitlines() if label in line)
        assert f"{stored['against']['scores'][name]:.1%}" in row and f"{stored['scores'][name]:.1%}" in row
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(predictions) == stored["data"]["rows"] == 4
    assert "ticket 0" in printed


def test_it_is_a_run_like_any_other(story):
    _, _, out = story
    _, loaded = folder.open_run(out)
    assert (loaded.run.method.name, loaded.run.model.quantize, loaded.run.train.steps) == ("lora", "nf4", 2)
    assert "steps: 2  # quickstart" in (out / folder.RUN).read_text(encoding="utf-8")
    assert (out / "adapter" / "adapter_model.safetensors").exists() and (out / "loss.png").exists()


def test_a_second_quickstart_takes_the_next_number(tmp_path):
    assert _free(tmp_path / "quickstart") == tmp_path / "quickstart"
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart-2").mkdir()
    assert _free(tmp_path / "quickstart") == tmp_path / "quickstart-3"
