import argparse
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.fake_tuned import fake_tuned
from tests.headed import headed
from tunesmith import config
from tunesmith.errors import UserError
from tunesmith.evaluate import evaluate as scoring
from tunesmith.generate import Generated
from tunesmith.verbs import evaluate as verb

ROWS = [{"prompt": "2+2?", "completion": "4"}, {"prompt": "3+3?", "completion": "6"}, {"prompt": "4+4?", "completion": "8"}]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def folder(tmp_path, data):
    """A run folder that names its test data."""
    folder = tmp_path / "run"
    folder.mkdir()
    values = {"model": {"source": "base-model"}, "data": {"train": "train.jsonl", "test": data}}
    (folder / "run.yaml").write_text(config.dump(config.parse(values)))
    return folder


@pytest.fixture
def opened(tiny_llama, monkeypatch):
    """The names that were opened; the tuned model answers right, a model without the adapter only the first row."""
    tuned, names = fake_tuned(tiny_llama), []
    intact = float(tuned.model.lm_head.weight.detach().sum())

    def open_tuned(name):
        names.append(name)
        tuned.name = name
        return tuned

    def generate(model, prompts, stop_ids, sampling, *, on_progress=None):
        good = abs(float(model.lm_head.weight.detach().sum()) - intact) < 1e-3
        asked = [tuned.tokenizer.decode(prompt) for prompt in prompts]
        answers = [row["completion"] if good or "2+2" in text else "?" for text in asked for row in ROWS if row["prompt"] in text]
        return [Generated(tuned.tokenizer(text)["input_ids"], True) for text in answers]

    monkeypatch.setitem(sys.modules, "tunesmith.tuned", SimpleNamespace(open_tuned=open_tuned))
    monkeypatch.setattr(scoring, "generate", generate)
    return SimpleNamespace(names=names, tuned=tuned)


def call(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(flag) for flag in flags]))


def test_a_run_is_scored_on_its_own_test_data_and_keeps_the_scores(folder, data, opened, capsys):
    assert call(folder, "--against", "base") == 0
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["scores"]["exact_match"] == 1 and scores["against"]["scores"]["exact_match"] == pytest.approx(1 / 3)
    assert scores["difference"]["exact_match"]["value"] == pytest.approx(2 / 3)
    assert scores["scores"]["loss"] != scores["against"]["scores"]["loss"] and scores["learned_tokens"] == 6
    assert scores["data"]["source"] == data and scores["data"]["rows"] == 3
    assert scores["command"][0] == "tunesmith" and scores["against"]["model"] == "base"
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in lines] == ["4", "6", "8"]
    assert [line["against"]["prediction"] for line in lines] == ["4", "?", "?"]
    assert lines[1]["origin"].endswith("test.jsonl:2")
    table = capsys.readouterr().out
    assert "exact_match" in table and "100.0 %" in table and "33.3 %" in table and "+66.7" in table


def test_json_is_one_document_and_a_base_model_leaves_no_files(data, opened, capsys, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert call("some-model", "--data", data, "--metrics", "exact_match, contains", "--json", "--limit", "2") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["scores"] == {"exact_match": 1, "contains": 1} and result["data"]["rows"] == 2
    assert "against" not in result and sorted(tmp_path.iterdir()) == before


def test_two_models_are_opened_by_name(data, opened, capsys):
    call("one", "--data", data, "--metrics", "exact_match", "--against", "two", "--json")
    assert opened.names == ["one", "two"]
    assert json.loads(capsys.readouterr().out)["difference"]["exact_match"] == {"value": 0, "interval": [0, 0]}


def test_the_base_of_a_fully_tuned_run_is_its_source(folder, opened, capsys):
    opened.tuned.has_adapter, opened.tuned.run = False, config.load(folder / "run.yaml").run
    call(folder, "--against", "base", "--metrics", "exact_match", "--json")
    assert opened.names == [str(folder), "base-model"]


def test_a_base_model_has_no_base(data, opened):
    opened.tuned.has_adapter = False
    with pytest.raises(UserError, match="is a base model itself"):
        call("some-model", "--data", data, "--against", "base", "--metrics", "exact_match")


def test_problems_are_said_before_the_model_loads(folder, data, opened, tmp_path):
    with pytest.raises(UserError, match="give --data FILE"):
        call("some-model")
    with pytest.raises(UserError, match="nowhere"):
        call(folder, "--data", tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match="--limit"):
        call(folder, "--limit", "0")
    with pytest.raises(UserError, match=r"rank=3: `evaluate` takes data\.format"):
        call(folder, "rank=3")
    assert opened.names == []


def test_columns_come_from_the_run_or_the_command(folder, data, opened, tmp_path, capsys):
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text("".join(json.dumps({"q": {"text": row["prompt"]}, "a": row["completion"]}) + "\n" for row in ROWS))
    mapping = "data.columns={prompt: q.text, completion: a}"
    call("some-model", mapping, "--data", theirs, "--metrics", "exact_match", "--json")
    assert json.loads(capsys.readouterr().out)["scores"] == {"exact_match": 1}
    run = config.load(overrides=[("data.columns", {"prompt": "q.text", "completion": "a"}, ""), ("data.test", str(theirs), "")]).run
    (folder / "run.yaml").write_text(config.dump(run))
    call(folder, "--metrics", "exact_match", "--json")
    assert json.loads(capsys.readouterr().out)["scores"] == {"exact_match": 1}


def test_metrics_come_from_the_run(folder, data, opened, capsys):
    run = config.load(overrides=[("evaluate.metrics", ["contains"], ""), ("data.test", data, "")]).run
    (folder / "run.yaml").write_text(config.dump(run))
    call(folder, "--json")
    assert json.loads(capsys.readouterr().out)["scores"] == {"contains": 1}


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(folder, opened):
    (folder / "scores.json").mkdir()
    with pytest.raises(UserError, match=r"scores\.json: cannot be written"):
        call(folder, "--metrics", "exact_match")
    assert not list(folder.glob("*.new"))


def test_the_fingerprint_is_of_what_rows_say_not_of_the_file(tmp_path, data):
    from tunesmith.data.sources import load_samples

    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"instruction": row["prompt"], "output": row["completion"]} for row in ROWS]))
    one, two = load_samples(data)[0], load_samples(str(other))[0]
    assert verb.fingerprint(one) == verb.fingerprint(two) != verb.fingerprint(one[::-1])


def test_a_loss_that_is_not_finite_is_null_and_said(folder, opened, capsys):
    import torch

    with torch.no_grad():
        opened.tuned.model.model.norm.weight.fill_(float("nan"))
    call(folder, "--metrics", "loss")
    assert json.loads((folder / "scores.json").read_text(), parse_constant=pytest.fail)["scores"] == {"loss": None, "perplexity": None}
    assert capsys.readouterr().out.count("not finite") == 2


def test_the_help_names_every_metric():
    from tunesmith.evaluate.metrics import METRICS

    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    told = parser.format_help()
    assert [name for name in ["loss", *METRICS] if name not in told] == []


@pytest.fixture
def labelled(tmp_path):
    path = tmp_path / "labelled.jsonl"
    rows = [{"text": text, "label": label} for text, label in (("fine", "yes"), ("bad", "no"), ("good", "yes"))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def heads(tiny_llama, monkeypatch):
    """Names of models with a head for yes and no; `writer` is one without."""
    made = {"classifier": headed(tiny_llama, "classify", ["no", "yes"]), "writer": fake_tuned(tiny_llama)}
    monkeypatch.setitem(sys.modules, "tunesmith.tuned", SimpleNamespace(open_tuned=made.__getitem__))


def test_a_run_with_a_head_tells_its_labels_apart(labelled, heads, capsys):
    assert call("classifier", "--data", labelled, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["scores"]) == {"loss", "accuracy", "macro_f1"} and result["learned_tokens"] == 3
    told = result["confusion"]
    assert told["labels"] == ["no", "yes"] and [sum(counts) for counts in told["matrix"]] == [1, 2] and told["other"] == [0, 0]
    assert call("classifier", "--data", labelled) == 0
    shown = capsys.readouterr().out
    assert "expected \\ predicted" in shown and "macro_f1" in shown


def test_heads_are_compared_with_heads(labelled, heads, capsys):
    assert call("classifier", "--data", labelled, "--against", "classifier", "--json") == 0
    assert json.loads(capsys.readouterr().out)["difference"]["accuracy"] == {"value": 0, "interval": [0, 0]}
    with pytest.raises(UserError, match="--against base: classifier predicts with the head that it learned"):
        call("classifier", "--data", labelled, "--against", "base")
    with pytest.raises(UserError, match=r"--against writer: it is a model that writes, .* is a run of task\.name=classify"):
        call("classifier", "--data", labelled, "--against", "writer")


def test_a_run_that_learned_label_words_answers_with_the_likeliest(labelled, opened, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "words"
    folder.mkdir()
    values = {
        "model": {"source": "base-model"}, "data": {"train": "x", "test": labelled},
        "task": {"name": "classify", "head": "words", "labels": ["no", "yes"]},
    }  # fmt: skip
    (folder / "run.yaml").write_text(config.dump(config.parse(values)))
    monkeypatch.setattr(scoring, "generate", lambda *given, **named: pytest.fail("nothing is generated"))
    monkeypatch.setattr(scoring, "words_logp", lambda tuned, samples, labels, **_: torch.tensor([[-1.0, -2.0]] * len(samples)))
    assert call(folder, "--json", "--metrics", "accuracy") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["scores"]["accuracy"] == pytest.approx(1 / 3) and result["confusion"]["matrix"] == [[1, 0], [2, 0]]
    line = json.loads((folder / "predictions.jsonl").read_text().splitlines()[0])
    assert line["prediction"] == "no" and line["probabilities"] == {"no": pytest.approx(0.731059), "yes": pytest.approx(0.268941)}
