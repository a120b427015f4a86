import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import config, events
from tunesmith.errors import Interrupted, UserError
from tunesmith.step import graphs
from tunesmith.train import checkpoint, folder, loop
from tunesmith.train.setting import decide
from tunesmith.tuned import open_tuned


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def done(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with dropout, six steps. Do not write into it."""
    out = tmp_path_factory.mktemp("done") / "run"
    runs.finish(runs.settings(tiny_llama, data, out, DROPOUT))
    return out


DROPOUT = {"method": {"name": "lora", "rank": 4, "dropout": 0.1}}


def happened(out: Path, kind: Any) -> list[Any]:
    return [event for event in events.read_events(out / "events.jsonl") if isinstance(event, kind)]


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to / "run")
    return to / "run"


# --- what a run is ---


def test_the_same_run_twice_gives_the_same_files(done: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    runs.finish(runs.settings(tiny_llama, data, again, DROPOUT))
    assert runs.contents(again) == runs.contents(done)
    assert {"adapter/adapter_model.safetensors", "checkpoints/step-6/state.json", "data.json", "plan.json"} <= set(runs.contents(done))
    assert runs.steps_of(again) == runs.steps_of(done)
    for name in ("data.json", "plan.json", "checkpoints/step-6/state.json"):
        assert str(data.parent) not in (done / name).read_text(), f"{name} names a path"


def test_another_seed_is_another_run(done: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "run", DROPOUT | {"train.seed": 1}))
    assert runs.steps_of(tmp_path / "run")[0]["loss"] != runs.steps_of(done)[0]["loss"]


def test_counts_add_up(done: Path) -> None:
    (started,), (finished,), steps = happened(done, events.Started), happened(done, events.Finished), happened(done, events.Step)
    report, plan = folder.read_json(done / "data.json"), folder.read_json(done / "plan.json")
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    for name in ("tokens", "computed_tokens", "learned_tokens"):
        assert sum(getattr(step, name) for step in steps) == getattr(finished, name) > 0
    assert finished.tokens == started.total_tokens == plan["tokens"]
    assert started.total_steps == finished.steps == plan["steps"] == 6
    assert (
        started.trainable_parameters
        == plan["trainable_parameters"]
        == sum(tensor.numel() for tensor in load_file(done / "adapter" / "adapter_model.safetensors").values())
    )
    epoch = round(report["tokens"] / 200)
    assert sum(step.tokens for step in steps[:epoch]) == report["tokens"], "an epoch is every token once"
    assert sum(step.learned_tokens for step in steps[:epoch]) == report["learned_tokens"]
    state = json.loads((done / "checkpoints/step-6/state.json").read_text())
    assert (state["tokens"], state["learned_tokens"]) == (finished.tokens, finished.learned_tokens)


def test_speeds_and_memory_are_plausible(done: Path) -> None:
    (started,), (finished,), steps = happened(done, events.Started), happened(done, events.Finished), happened(done, events.Step)
    assert 0 < finished.seconds_to_first_step < finished.seconds < 60
    after_first = finished.tokens - steps[0].tokens
    assert finished.tokens_per_second == pytest.approx(after_first / (finished.seconds - finished.seconds_to_first_step), rel=0.7)
    assert all(0 < step.tokens_per_second < 1e6 for step in steps)
    assert 50e6 < steps[0].peak_memory_bytes <= finished.peak_memory_bytes < 8e9
    assert started.matmul_flops > 1e8
    in_blocks, adapter, head = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128), started.trainable_parameters, 64 * 384
    learned = folder.read_json(done / "data.json")
    share = learned["learned_tokens"] / learned["tokens"]
    assert started.flops_per_token == pytest.approx(4 * in_blocks + 6 * adapter + 4 * head * share)


def test_packed_and_unpacked_runs_have_the_same_losses(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    for name, pack in (("packed", True), ("alone", False)):
        runs.finish(runs.settings(tiny_llama, data, tmp_path / name, {"data.pack": pack}))
    packed, alone = runs.steps_of(tmp_path / "packed"), runs.steps_of(tmp_path / "alone")
    assert [step["loss"] for step in packed] == pytest.approx([step["loss"] for step in alone], rel=1e-5)
    assert [step["grad_norm"] for step in packed] == pytest.approx([step["grad_norm"] for step in alone], rel=1e-4)
    assert [step["tokens"] for step in packed] == [step["tokens"] for step in alone]


def test_it_learns(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    runs.finish(
        runs.settings(tiny_llama, data, tmp_path / "run", {"train.steps": 30, "train.learning_rate": 0.02, "train.checkpoint_every": 30})
    )
    losses = [step["loss"] for step in runs.steps_of(tmp_path / "run")]
    assert losses[-1] < 0.6 * losses[0]


# --- evaluation on the way ---


@pytest.fixture(scope="module")
def evaluated(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is evaluated on other answers than it learns, so that its best evaluation is not its last."""
    folder = tmp_path_factory.mktemp("evaluated")
    rows = [{"prompt": f"Spell {i}", "completion": "ZZ" * (1 + i)} for i in range(4)]
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"data.evaluate": str(folder / "other.jsonl"), "evaluate.every": 2, "train.learning_rate": 0.02, "train.steps": 10}
    runs.finish(runs.settings(tiny_llama, data, folder / "run", changes | {"train.keep": 2}))
    return folder / "run"


def own_loss(model: Any, documents: Any) -> float:
    """The class's own loss over the learned tokens, document by document, from its own logits."""
    total = 0.0
    for begin, end in zip(documents.begin_D, documents.end_D, strict=True):
        ids = torch.from_numpy(documents.ids_N[begin:end].astype("int64"))
        labels = torch.where(torch.from_numpy(documents.learned_N[begin:end].copy()), ids, -100)
        with torch.no_grad():
            total += model(input_ids=ids[None], labels=labels[None]).loss.item() * int((labels[1:] != -100).sum())
    return total / documents.learned_tokens


def test_the_evaluation_loss_is_the_class_s_own(evaluated: Path) -> None:
    found = happened(evaluated, events.Evaluated)
    assert [event.step for event in found] == [2, 4, 6, 8, 10]
    setting = decide(config.load(evaluated / "run.yaml").run, {}, runs.quiet)
    assert setting.evaluation is not None
    assert len(setting.evaluation) == 4 and len(setting.documents) == 24
    assert found[-1].loss == pytest.approx(own_loss(open_tuned(str(evaluated)).model, setting.evaluation), rel=1e-5)
    assert (
        found[-1].learned_tokens
        == setting.evaluation.learned_tokens
        == folder.read_json(evaluated / "data.json")["evaluation"]["learned_tokens"]
    )


def test_best_holds_the_best(evaluated: Path) -> None:
    found = happened(evaluated, events.Evaluated)
    best = min(found, key=lambda event: event.loss)
    assert best.best and best is not found[-1], "this test needs a run whose best is not its last"
    setting = decide(config.load(evaluated / "run.yaml").run, {}, runs.quiet)
    tuned = open_tuned(str(evaluated / "best"), dtype="float32")
    assert own_loss(tuned.model, setting.evaluation) == pytest.approx(best.loss, rel=1e-5)
    state = json.loads((evaluated / "checkpoints/step-10/state.json").read_text())
    assert (state["best_step"], state["best_loss"]) == (best.step, best.loss)


def test_keep_is_honoured(evaluated: Path) -> None:
    assert checkpoint.steps(evaluated) == [9, 10]
    assert [event.step for event in happened(evaluated, events.Saved)] == [3, 6, 9, 10]


# --- stopping and going on ---


def test_a_finished_run_needs_more_steps(done: Path, tmp_path: Path) -> None:
    out = copied(done, tmp_path)
    before = runs.contents(out) | {"events": (out / "events.jsonl").read_bytes()}
    with pytest.raises(UserError, match=r"finished after 6 steps; for more: tunesmith resume .* train.steps=12"):
        list(loop.resume(out, tell=runs.quiet))
    with pytest.raises(UserError, match="has already done 6"):
        list(loop.resume(out, steps=5, tell=runs.quiet))
    assert runs.contents(out) | {"events": (out / "events.jsonl").read_bytes()} == before

    list(loop.resume(out, steps=8, tell=runs.quiet))
    assert [step["step"] for step in runs.steps_of(out)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [event.steps for event in happened(out, events.Finished)] == [8]
    assert config.load(out / "run.yaml").run.train.steps == 8
    assert folder.read_json(out / "plan.json")["steps"] == 8
    assert (out / "adapter/adapter_model.safetensors").read_bytes() != before["adapter/adapter_model.safetensors"]


@pytest.mark.parametrize("method", ["lora", "freeze"])
def test_a_changed_base_is_refused(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Other weights under the same path, that another fine-tune was written to, say."""
    data, out, base = runs.write_rows(tmp_path / "rows.jsonl"), tmp_path / "run", shutil.copytree(tiny_llama, tmp_path / "base")
    with pytest.raises(Interrupted):
        list(loop.train(runs.settings(base, data, out, {"method": method}), stop=runs.stop_after(2), tell=runs.quiet))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    tensors = load_file(base / "model.safetensors")
    save_file({name: t * 1.001 for name, t in tensors.items()}, base / "model.safetensors")
    with pytest.raises(UserError, match=r"base is no longer the model that the run began with: the weights differ by 0.1%"):
        list(loop.resume(out, tell=runs.quiet))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    save_file(tensors, base / "model.safetensors")
    assert isinstance(list(loop.resume(out, tell=runs.quiet))[-1], events.Finished)


def test_changed_data_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    data, out = runs.write_rows(tmp_path / "rows.jsonl"), tmp_path / "run"
    with pytest.raises(Interrupted):
        list(loop.train(runs.settings(tiny_llama, data, out), stop=runs.stop_after(2), tell=runs.quiet))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    runs.write_rows(data, 25)
    with pytest.raises(UserError, match="the data, the chat template or the tokenizer is no longer what the run began with"):
        list(loop.resume(out, tell=runs.quiet))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    runs.write_rows(data)
    assert [e.step for e in loop.resume(out, tell=runs.quiet) if isinstance(e, events.Step)] == [3, 4, 5, 6]


def test_changed_evaluation_data_is_refused(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    other, out = runs.write_rows(tmp_path / "other.jsonl", 5), tmp_path / "run"
    with pytest.raises(Interrupted):
        list(loop.train(runs.settings(tiny_llama, data, out, {"data.evaluate": str(other)}), stop=runs.stop_after(2), tell=runs.quiet))
    runs.write_rows(other, 6)
    with pytest.raises(UserError, match="the evaluation data"):
        list(loop.resume(out, tell=runs.quiet))


def test_a_run_killed_before_its_first_checkpoint_begins_anew(done: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    happening = loop.train(runs.settings(tiny_llama, data, out, DROPOUT), tell=runs.quiet)
    assert [type(next(happening)) for _ in range(3)] == [events.Started, events.Step, events.Step]
    happening.close()  # type: ignore[attr-defined]
    with open(out / "events.jsonl", "ab") as log:
        log.write(b'{"event": "step", "st')  # a kill in the middle of a line
    assert not checkpoint.steps(out)
    list(loop.resume(out, tell=runs.quiet))
    assert runs.steps_of(out) == runs.steps_of(done)
    assert runs.contents(out) == runs.contents(done)
    assert happened(out, events.Resumed)[0].dropped_events == 2


def test_a_run_killed_before_its_plan_was_written_resumes(done: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    next(loop.train(runs.settings(tiny_llama, data, out, DROPOUT), tell=runs.quiet))
    (out / "plan.json").unlink()
    (out / "events.jsonl").unlink()
    list(loop.resume(out, tell=runs.quiet))
    assert runs.contents(out) == runs.contents(done)


def test_a_run_killed_after_its_last_checkpoint_is_finished_by_resume(done: Path, tmp_path: Path) -> None:
    """The last checkpoint stands, but neither the adapter nor the last event had been written."""
    out = copied(done, tmp_path)
    lines = (out / "events.jsonl").read_text().splitlines(keepends=True)
    assert '"finished"' in lines[-1]
    (out / "events.jsonl").write_text("".join(lines[:-1]))
    shutil.rmtree(out / "adapter")
    (out / "loss.png").unlink()
    list(loop.resume(out, tell=runs.quiet))
    assert runs.contents(out) == runs.contents(done)
    assert runs.steps_of(out) == runs.steps_of(done)
    assert len(happened(out, events.Finished)) == 1 and (out / "loss.png").exists()


def test_asked_to_stop_at_the_last_step_it_is_finished(done: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    found = list(loop.train(runs.settings(tiny_llama, data, tmp_path / "run", DROPOUT), stop=runs.stop_after(6), tell=runs.quiet))
    assert isinstance(found[-1], events.Finished)
    assert runs.contents(tmp_path / "run") == runs.contents(done)


def test_an_interrupted_full_run_leaves_a_model(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"stopped after step 2; go on with `tunesmith resume {out}`") as stopped:
        list(loop.train(runs.settings(tiny_llama, data, out, {"method": "full"}), stop=runs.stop_after(2, 143), tell=runs.quiet))
    assert stopped.value.exit_code == 143
    tuned = open_tuned(str(out))
    trained = load_file(out / "checkpoints/step-2/trained.safetensors")
    assert torch.equal(tuned.model.get_parameter("lm_head.weight"), trained["lm_head.weight"])


def test_seconds_are_those_of_all_sittings(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        list(loop.train(runs.settings(tiny_llama, data, out), stop=runs.stop_after(4), tell=runs.quiet))
    first = checkpoint.load(out)
    assert first is not None and first.clock.seconds > first.clock.seconds_to_first_step > 0
    (path,) = (out / "checkpoints").iterdir()
    clock = json.loads((path / "clock.json").read_text())
    (path / "clock.json").write_text(json.dumps(clock | {"seconds": 1000.0}))
    list(loop.resume(out, tell=runs.quiet))
    assert 1000 < happened(out, events.Finished)[0].seconds < 1060


def test_two_processes_cannot_be_at_work_in_one_run(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    happening = loop.train(runs.settings(tiny_llama, data, tmp_path / "run"), tell=runs.quiet)
    next(happening)
    with pytest.raises(UserError, match="another process is at work in this run"):
        list(loop.resume(tmp_path / "run", tell=runs.quiet))
    assert [event.step for event in happening if isinstance(event, events.Step)] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_named(done: Path, tmp_path: Path) -> None:
    out = copied(done, tmp_path)
    file = out / "checkpoints/step-6/trained.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"checkpoints/step-6 is damaged .* remove this folder and resume: the run begins anew then"):
        list(loop.resume(out, steps=9, tell=runs.quiet))
    assert config.load(out / "run.yaml").run.train.steps == 6, "nothing was changed"


def test_a_checkpoint_of_another_adapter_does_not_fit(done: Path, tmp_path: Path) -> None:
    out = copied(done, tmp_path)
    file = out / "checkpoints/step-6/trained.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file(tensors | {name: torch.zeros(3, 3)}, file)
    with pytest.raises(UserError, match=r"the checkpoint of step 6 does not fit"):
        list(loop.resume(out, steps=9, tell=runs.quiet))


def test_a_full_disk_while_saving_leaves_the_last_checkpoint_whole(
    done: Path, tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, saved = tmp_path / "run", []

    def full(tensors: Any, path: Path, **rest: Any) -> None:
        saved.append(path)
        if len(saved) > 3:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, path, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match=r"step-6: the disk is full; what was saved before is whole"):
            runs.finish(runs.settings(tiny_llama, data, out, DROPOUT))
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-3"]
    last = checkpoint.load(out)
    assert last is not None and last.progress.step == 3
    assert open_tuned(str(out)).has_adapter
    list(loop.resume(out, tell=runs.quiet))
    assert runs.contents(out) == runs.contents(done)


def test_a_run_refused_before_its_first_event_leaves_its_folder_free(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("cannot be loaded")

    with monkeypatch.context() as patch:
        patch.setattr(loop.loading, "load", refuse)
        with pytest.raises(UserError, match="cannot be loaded"):
            runs.finish(runs.settings(tiny_llama, data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "run"))


# --- a loss that is not finite ---


@pytest.fixture(scope="module")
def poisoned(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama` whose embedding of `~` is infinite."""
    from transformers import AutoTokenizer

    model = tmp_path_factory.mktemp("poisoned") / "model"
    shutil.copytree(tiny_llama, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][AutoTokenizer.from_pretrained(model).convert_tokens_to_ids("~")] = float("inf")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.fixture(scope="module")
def with_tilde(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Line 9 holds the character that the poisoned model cannot take."""
    path = runs.write_rows(tmp_path_factory.mktemp("tilde") / "rows.jsonl")
    lines = path.read_text().splitlines()
    lines[8] = json.dumps({"prompt": "Spell ~", "completion": "tilde"})
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_loss_that_is_not_finite_stops_the_run(poisoned: Path, with_tilde: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError) as refused:
        runs.finish(runs.settings(poisoned, with_tilde, out, {"train.checkpoint_every": 1}))
    warned = happened(out, events.Warned)[-1]
    assert warned.message in refused.value.problems[0]
    assert f"the loss is not finite in {with_tilde}:9;" in warned.message, "the row, and no other of its packed row"
    assert warned.message.endswith("the first module whose output is not finite is model.embed_tokens")
    before = [step["step"] for step in runs.steps_of(out)]
    assert warned.step == len(before) + 1
    assert checkpoint.newest(out) == len(before)
    assert "on_nonfinite: skip" in refused.value.problems[1] and str(out / "run.yaml") in refused.value.problems[1]


def test_a_step_that_is_not_finite_is_skipped(poisoned: Path, with_tilde: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    runs.finish(runs.settings(poisoned, with_tilde, out, {"train.on_nonfinite": "skip", "train.steps": 8}))
    steps = happened(out, events.Step)
    skipped = [step.step for step in steps if step.skipped]
    assert [event.step for event in happened(out, events.Warned)] == skipped and 1 <= len(skipped) <= 3
    assert len(steps) == 8
    assert all(torch.isfinite(tensor).all() for tensor in load_file(out / "adapter/adapter_model.safetensors").values())
    assert 0 < happened(out, events.Finished)[0].loss < 100
    report = (out / "README.md").read_text()
    assert "nan" not in report


def test_stopped_at_a_loss_that_is_not_finite_it_goes_on_with_skip(poisoned: Path, with_tilde: Path, tmp_path: Path) -> None:
    """What the error says to do."""
    whole, out = tmp_path / "whole/run", tmp_path / "run"
    runs.finish(runs.settings(poisoned, with_tilde, whole, {"train.on_nonfinite": "skip"}))
    with pytest.raises(UserError):
        runs.finish(runs.settings(poisoned, with_tilde, out))
    text = (out / "run.yaml").read_text()
    (out / "run.yaml").write_text(text.replace("on_nonfinite: stop", "on_nonfinite: skip"))
    list(loop.resume(out, tell=runs.quiet))
    assert runs.contents(out) == runs.contents(whole)


def test_an_evaluation_that_is_not_finite_is_never_the_best(poisoned: Path, with_tilde: Path, data: Path, tmp_path: Path) -> None:
    """Nothing is smaller than NaN: remembered as the best, it would stay that for ever."""
    out = tmp_path / "run"
    runs.finish(runs.settings(poisoned, data, out, {"data.evaluate": str(with_tilde), "evaluate.every": 3}))
    found = happened(out, events.Evaluated)
    assert [event.step for event in found] == [3, 6] and not any(event.best for event in found)
    assert not (out / "best").exists()
    assert json.loads((out / "checkpoints/step-6/state.json").read_text())["best_loss"] is None
    assert "best evaluation loss" not in (out / "README.md").read_text()


# --- an adapter to go on from ---


def test_an_adapter_is_gone_on_from(done: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """The first loss of the new run is that of the adapter on the rows of its first step."""
    run = runs.settings(tiny_llama, data, tmp_path / "run", {"model.adapter": str(done)})
    runs.finish(run)
    setting = decide(run, {}, runs.quiet)
    documents = [d for row in setting.plan.rows(0) for d in row.documents]
    tuned, total, learned = open_tuned(str(done)), 0.0, 0
    for d in documents:
        begin, end = setting.documents.begin_D[d], setting.documents.end_D[d]
        ids = torch.from_numpy(setting.documents.ids_N[begin:end].astype("int64"))
        labels = torch.where(torch.from_numpy(setting.documents.learned_N[begin:end].copy()), ids, -100)
        count = int((labels[1:] != -100).sum())
        with torch.no_grad():
            total += tuned.model(input_ids=ids[None], labels=labels[None]).loss.item() * count
        learned += count
    first = runs.steps_of(tmp_path / "run")[0]
    assert (first["loss"], first["learned_tokens"]) == (pytest.approx(total / learned, rel=1e-5), learned)
    assert first["loss"] < runs.steps_of(done)[0]["loss"] - 0.1


def test_a_head_with_an_adapter_is_not_left_out(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """Our own head would pass by a module that stands beside the class's."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    torch.manual_seed(0)
    prefix = "base_model.model.lm_head.lora_"
    save_file(
        {f"{prefix}A.weight": torch.randn(2, 64) * 0.1, f"{prefix}B.weight": torch.randn(384, 2) * 0.1},
        adapter / "adapter_model.safetensors",
    )
    values = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_llama), "r": 2, "lora_alpha": 4, "target_modules": ["lm_head"]}
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "run", {"model.adapter": str(adapter), "method": {"name": "lora"}}))
    before, after = load_file(adapter / "adapter_model.safetensors"), load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert not torch.equal(before[f"{prefix}A.weight"], after[f"{prefix}A.weight"])


# --- the log ---


def test_an_event_is_in_the_log_before_it_is_handed_out(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for seen, event in enumerate(loop.train(runs.settings(tiny_llama, data, out, {"train.steps": 2}), tell=runs.quiet), 1):
        log = list(events.read_events(out / "events.jsonl"))
        assert len(log) == seen and log[-1] == event


# --- recorded launches, played by a function that is called again ---


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_on_recordings_is_the_plain_one_and_resumes_to_the_bit(
    method: str, tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"method": {"name": method}, "data.share_prefixes": False}
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "plain", settings))
    monkeypatch.setattr(graphs, "impossible", lambda device: "")
    replayed: list[int] = []
    fill = graphs.Graphs._fill

    def counted(*given: Any) -> None:
        replayed.append(1)
        fill(*given)

    monkeypatch.setattr(graphs.Graphs, "_fill", counted)
    with_graphs = settings | {"train.cuda_graphs": True}
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "whole", with_graphs))
    assert len(replayed) > 6
    plan = folder.read_json(tmp_path / "whole" / folder.PLAN)
    assert graphs.NAME in plan["accelerations"]["on"]
    ours, plain = runs.steps_of(tmp_path / "whole"), runs.steps_of(tmp_path / "plain")
    assert [step["loss"] for step in ours] == pytest.approx([step["loss"] for step in plain], rel=1e-4)
    assert [step["computed_tokens"] for step in ours] == [step["computed_tokens"] for step in plain], "padding is no token"
    stopped = runs.settings(tiny_llama, data, tmp_path / "stopped", with_graphs)
    with pytest.raises(Interrupted):
        list(loop.train(stopped, stop=runs.stop_after(2), tell=runs.quiet))
    list(loop.resume(tmp_path / "stopped", tell=runs.quiet))
    assert runs.steps_of(tmp_path / "stopped") == ours
    assert runs.contents(tmp_path / "stopped") == runs.contents(tmp_path / "whole")
