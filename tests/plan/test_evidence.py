import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args, get_type_hints

from tunesmith.methods.settings import SETTINGS
from tunesmith.plan import evidence
from tunesmith.plan.evidence import Row

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = evidence.load()
PUBLISHED = [row for row in ROWS if row.source.startswith("peft method_comparison")]


def test_values_are_of_their_columns_types() -> None:
    kinds = {name: get_args(kind) or (kind,) for name, kind in get_type_hints(Row).items() if name != "settings"}
    for row in ROWS:
        wrong = {name: asdict(row)[name] for name, kind in kinds.items() if type(asdict(row)[name]) not in kind}
        assert not wrong, row
        assert row.task_kind in evidence.TASK_KINDS and row.learning_rate > 0 and row.examples > 0
        assert row.seconds is None or row.seconds > 0
        assert 10**8 < row.memory_bytes < 10**12 and row.model_parameters > 10**6
        assert row.score_name != "accuracy" or 0 <= row.score <= 1


def test_settings_of_our_methods_are_ours() -> None:
    """Where a published run began as ours cannot (with zeros, say), its settings may say so."""
    for row in ROWS:
        if row.method in SETTINGS:
            assert set(row.settings) <= set(SETTINGS[row.method].model_fields), row
        if row.method in SETTINGS and row not in PUBLISHED:
            SETTINGS[row.method](**row.settings)


def test_the_published_runs() -> None:
    assert len(PUBLISHED) == 63 and {row.model for row in PUBLISHED} == {"meta-llama/Llama-3.2-3B"}
    ours = {row.source.rpartition(" ")[2]: row for row in PUBLISHED if row.method in SETTINGS}
    best = max(PUBLISHED, key=lambda row: row.score)
    assert (best.method, best.score, best.seconds) == ("lily", 0.526, 1324.0)
    full = ours["full-finetuning--lr_0.00001"]
    assert (full.method, full.learning_rate, full.score, full.forgetting, full.memory_bytes) == ("full", 1e-5, 0.472, 0.03, 38869454029)
    prefix = [ours[name].score for name in ("prefixtuning--lr_0.001", "prefixtuning--tokens50-init_prefix-lr_0.005")]
    prompt = [ours[name].score for name in ("prompt_tuning--default", "prompt_tuning--sample_vocab-lr_0.001")]
    assert (prefix, prompt) == ([0.186, 0.416], [0.057, 0.343]), "how much rate and first values decide"
    assert {row.method for row in ours.values()} == {"full", "lora", "dora", "prompt", "ptuning", "prefix"}


def test_rows_are_added_behind_and_replaced_where_they_are_measured_anew(tmp_path: Path) -> None:
    file = tmp_path / "evidence.jsonl"
    first, other = ROWS[0], ROWS[1]
    evidence.add([first, other], file)
    assert evidence.load(file) == [first, other]
    evidence.add([replace(first, score=0.5)], file)
    assert evidence.load(file) == [other, replace(first, score=0.5)]
    evidence.add([replace(first, dataset="another")], file)
    assert len(evidence.load(file)) == 3


def test_which_way_is_better() -> None:
    assert replace(ROWS[0], score_name="loss").lower_is_better and not replace(ROWS[0], score_name="accuracy").lower_is_better


def test_the_page_explains_every_column() -> None:
    text = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == evidence.columns()
    assert all(f"`{kind}`" in text for kind in evidence.TASK_KINDS)
