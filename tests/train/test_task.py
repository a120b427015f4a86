"""What a run predicts: settings that would change nothing are refused, labels and heads that do not fit are too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import config
from tunesmith.config import Task
from tunesmith.errors import UserError
from tunesmith.methods.layouts import layout
from tunesmith.methods.method import learning_rates
from tunesmith.methods.rates import rate_at
from tunesmith.models import score
from tunesmith.train.setting import decide
from tunesmith.train.task import has_head, idle


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    labelled = [{"text": f"row {i}", "label": ["bad", "good"][i % 2]} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def classifier(tiny_llama: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned good and bad from the prompts of the chat template."""
    out = tmp_path_factory.mktemp("classifier") / "run"
    runs.finish(runs.settings(tiny_llama, rows, out, {"task.name": "classify", "task.input": "chat", "train.steps": 2}))
    return out


def refusal(run: config.Run) -> list[str]:
    with pytest.raises(UserError) as refused:
        decide(run, {}, runs.quiet)
    return list(refused.value.problems)


@pytest.mark.parametrize(
    ("task", "problems"),
    [
        ({"name": "generate", "class_weights": "balanced"}, ["task.class_weights=balanced is for a head, and task.name=generate has none"]),
        (
            {"input": "chat"},
            ["task.input=chat is for a head, and task.name=auto has none; take task.name=classify or tag, or leave it out"],
        ),
        (
            {"name": "text", "labels": ["a", "b"]},
            ["task.labels is for labels, and task.name=text has none; take task.name=classify or tag"],
        ),
        (
            {"name": "tag", "head": "words"},
            ["task.head=words writes labels, which task.name=tag does not ask for; task.name=generate learns"],
        ),
        ({"head": "words"}, ["task.head=words writes labels, which task.name=auto does not ask for; take task.name=classify"]),
        (
            {"name": "classify", "head": "words", "input": "text", "class_weights": "balanced"},
            [
                "task.input=text is for a head, and task.head=words has none; take task.head=score",
                "task.class_weights=balanced is for a head, and task.head=words has none; take task.head=score",
            ],
        ),
        ({"name": "classify", "input": "chat", "class_weights": "balanced", "labels": ["a", "b"]}, []),
        ({"name": "classify", "head": "words", "labels": ["a", "b"]}, []),
        ({"name": "tag", "input": "chat", "class_weights": "balanced", "labels": ["a"]}, []),
        ({}, []),
    ],
)
def test_settings_that_would_change_nothing_are_refused_with_what_to_do(task: dict[str, Any], problems: list[str]) -> None:
    found = idle(Task(**task))
    assert len(found) == len(problems) and all(said.startswith(begin) for said, begin in zip(found, problems, strict=True))


def test_they_are_refused_before_the_model_is_looked_for(rows: Path) -> None:
    run = config.parse({"model": {"source": "nowhere"}, "data": {"train": str(rows)}, "task": {"class_weights": "balanced"}})
    assert refusal(run) == idle(run.task) != []


def test_a_run_without_a_head_is_fed_in_one_way_only(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """Nothing is decided of task.input, so that what was decided can be decided again."""
    words = runs.settings(tiny_llama, rows, tmp_path / "run", {"task.name": "classify", "task.head": "words"})
    found = decide(words, {}, runs.quiet)
    assert found.run.task.input == "auto" and found.run.task.labels == ["bad", "good"] and not has_head(found.run.task)
    assert decide(found.run, found.origins, runs.quiet).run == found.run


@pytest.mark.parametrize("head", ["score", "words"])
def test_labels_that_lack_one_of_the_data(head: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    changes = {"task.name": "classify", "task.head": head, "task.labels": ["good", "fair"]}
    said = " ".join(refusal(runs.settings(tiny_llama, rows, tmp_path / "run", changes)))
    assert "'bad'" in said and "task.labels" in said


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_raw_text_has_nothing_to_tell_apart(task: str, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("It was a bright cold day.\n" * 5)
    [said, why] = refusal(runs.settings(tiny_llama, tmp_path / "book.txt", tmp_path / "run", {"task.name": task}))
    assert said.startswith(f"task.name={task}: no row has ") and "book.txt:1: " in why and "task.name=" in why + said


# --- an adapter with a head, to go on from ---


@pytest.mark.parametrize(
    "change",
    [{"task.name": "generate"}, {}, {"task.name": "classify", "task.head": "words"}, {"task.name": "classify", "task.labels": ["x", "y"]}],
    ids=str,
)
def test_a_head_is_gone_on_from_with_its_own_task(
    change: dict[str, Any], classifier: Path, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    run = runs.settings(tiny_llama, rows, tmp_path / "run", {"model.adapter": str(classifier)} | change)
    [said] = refusal(run)
    assert f"{classifier} has a head for task.name=classify with the labels bad, good; a run that goes on from it keeps both" in said
    assert "take task.name=classify" in said


def test_a_head_goes_on_with_what_it_was_fed(classifier: Path, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    changes = {"model.adapter": str(classifier), "task.name": "classify", "train.steps": 1}
    found = decide(runs.settings(tiny_llama, rows, tmp_path / "run", changes), {}, runs.quiet)
    assert found.run.task.input == "chat" and found.origins["task.input"] == "auto: of the adapter's head"
    runs.finish(runs.settings(tiny_llama, rows, tmp_path / "other", changes | {"task.input": "text"}))
    assert layout.read(tmp_path / "other" / "adapter").about["head"]["input"] == "text", "what is saved says how it was fed last"


@pytest.mark.parametrize("method", ["full", "lora", "ptuning_v2"])
def test_a_head_learns_at_a_rate_of_its_own(method: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """The rates of methods are a hundred times apart; a matrix on hidden states is the same matrix behind all of them."""
    found = decide(runs.settings(tiny_llama, rows, tmp_path / "run", {"task.name": "classify", "method": method}), {}, runs.quiet)
    ratios = found.tuning.learning_rate_ratios
    default = rate_at(learning_rates(found.run.method), 64)
    assert ratios["score.weight"] * default == pytest.approx(rate_at(score.LEARNING_RATES, 64))


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_counts_in_the_place_of_the_one_that_it_replaces(tied: bool, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, tie_word_embeddings=tied))
    model.save_pretrained(folder)
    setting = decide(runs.settings(folder, rows, tmp_path / "out", {"task.name": "classify", "method": "full"}), {}, runs.quiet)
    decoder = sum(parameter.numel() for parameter in model.model.parameters())
    assert setting.total_parameters == setting.tuning.count == decoder + 2 * model.config.hidden_size


def test_columns_that_may_all_be_the_label_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "news.jsonl"
    news = [{"label": str(i % 2), "label_desc": ["home", "world"][i % 2], "sentence": f"row {i}", "keywords": ""} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in news), encoding="utf-8")
    said, why = refusal(runs.settings(tiny_llama, file, tmp_path / "out", {"task.name": "classify"}))
    assert said.startswith("task.name=classify: no row has a label; say which columns are the text and the label")
    assert why.startswith(f"{file}:1: ") and why.endswith(
        "(label, label_desc): say which, such as data.columns={text: sentence, label: label_desc}"
    )
