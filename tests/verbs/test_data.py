import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.verbs import data


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    Path("bad.jsonl").write_text('{"prompt": "q", "completion": "a"}\n{"prompt": "q"}\n')
    Path("other.csv").write_text("q,context,a\nwhy,so,because\n")


def run(*words):
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    return data.run(parser.parse_args(words))


def test_check_says_what_is_usable(capsys):
    assert run("check", "good.jsonl") == 0
    assert capsys.readouterr().out == (
        "good.jsonl: 1 of 1 rows usable (prompt, utf-8)\n"
        "good.jsonl: about 12 tokens, 50% of the characters learned; rows of about 12 tokens (median), 12 (90 %), 12 (99 %), 12 (longest)\n"
    )
    assert run("check", "good.jsonl", "bad.jsonl") == 2
    assert "bad.jsonl:2: no 'completion' (the row has prompt)\n" in capsys.readouterr().out


def test_check_json_is_one_document(capsys):
    assert run("check", "good.jsonl", "none.jsonl", "--json") == 2
    good, none = json.loads(capsys.readouterr().out)
    assert (good["good"], none["bad"][0]["line"]) == (1, 0)


def test_check_takes_settings_of_data(capsys):
    assert run("check", "other.csv", "data.columns={completion: a}", "data.prompt={q} ({context})") == 0
    assert "1 of 1 rows usable (prompt, utf-8)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"data.colums: no such setting.*columns"):
        run("check", "other.csv", "data.colums={completion: a}")
    with pytest.raises(UserError, match="no file named"):
        run("check", "data.format=text")


def test_check_in_a_terminal_is_a_table(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert run("check", "bad.jsonl") == 2
    out = capsys.readouterr().out
    assert "usable" in out.splitlines()[0]
    assert "bad.jsonl:2: no 'completion'" in out


def test_show_looks_at_one_source():
    with pytest.raises(UserError, match="one source"):
        run("show", "good.jsonl", "bad.jsonl")


def test_show_prints_the_tokens_of_the_first_rows(tiny_llama, capsys):
    assert run("show", "good.jsonl", "--model", str(tiny_llama), "-n", "1") == 0
    out = capsys.readouterr().out
    assert "good.jsonl:1" in out
    assert "⟦" in out
    assert run("show", "bad.jsonl", "--model", str(tiny_llama)) == 2
    assert "bad.jsonl:2: cannot be used: no 'completion'" in capsys.readouterr().out
    assert run("show", "bad.jsonl", "--model", str(tiny_llama), "-n", "1") == 0
    assert run("show", "bad.jsonl", "--model", str(tiny_llama), "--line", "2") == 2


def test_reading_data_needs_no_heavy_import():
    heavy = "sorted({'torch', 'transformers', 'numpy', 'datasets', 'pandas'} & set(sys.modules))"
    code = f"import sys, tunesmith.verbs.data, tunesmith.data.look.check, tunesmith.data.sources; print({heavy})"
    root = Path(data.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_flags_of_the_other_sub_verb_are_refused_never_ignored():
    with pytest.raises(UserError, match="data show does not take --json"):
        run("show", "good.jsonl", "--json")
    with pytest.raises(UserError, match="data check does not take -n, --served"):
        run("check", "good.jsonl", "--served", "-n", "2")


def test_show_prints_what_a_head_learns(tiny_llama, capsys):
    Path("labels.jsonl").write_text('{"text": "It was good.", "label": "positive"}\n{"text": "Bad", "label": "negative"}\n')
    words, flags = ("show", "labels.jsonl", "task.name=classify"), ("--model", str(tiny_llama))
    assert run(*words, *flags) == 0
    assert "It was good.⟦positive⟧" in capsys.readouterr().out
    assert run(*words, "task.input=chat", *flags) == 0
    assert "⟦positive⟧" in capsys.readouterr().out.partition("assistant")[2]
    assert run(*words, "task.head=words", *flags) == 0
    assert "⟦positive<" in capsys.readouterr().out  # an answer with its end
    with pytest.raises(UserError, match="--served: a server writes answers"):
        run(*words, *flags, "--served")
    with pytest.raises(UserError, match=r"task\.name=tag: data check looks at rows, whatever is learned"):
        run("check", "labels.jsonl", "task.name=tag")
