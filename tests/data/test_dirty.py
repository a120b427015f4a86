"""The sixty broken files of the shared data sets through `data check --json`: what must be read, what must be named, what must be said."""

import json
from pathlib import Path

import pytest

from tunesmith.data.look.check import as_json, check

DIRTY = Path(__file__).parents[2].parent / "shared" / "data" / "dirty"
MANIFEST = {case["file"]: case for case in json.loads((DIRTY / "manifest.json").read_text(encoding="utf-8"))} if DIRTY.is_dir() else {}

# Usable, and said in a warning: the manifest's `bad_lines` are the lines that the warning must name.
WARNED = {"exact_duplicates.jsonl", "leak_test.jsonl"}

# What the report must say, in lower case, wherever it says it: the loader_must of the manifest in words.
SAID: dict[str, list[str]] = {
    "utf16le_excel.tsv": ["utf-16"],
    "gb18030.csv": ["gb18030"],
    "gbk.jsonl": ["gb18030"],
    "shift_jis.csv": ["shift-jis"],
    "euc_kr.csv": ["euc-kr"],
    "big5.csv": ["big5"],
    "latin1_cp1252.csv": ["windows-1252"],
    "mixed_encoding.csv": ["utf-8", "gb18030"],
    "mojibake.jsonl": ["37 rows of mangled text (utf-8 once read as latin-1", "lines 1-5, 7-12, 14-26, 28-40"],
    "csv_unclosed_quote.csv": ["never closed"],
    "csv_ragged.csv": ["1 fields, but the header has 3", "5 fields, but", "2 fields, but"],
    "csv_no_header.csv": ["no header line"],
    "csv_duplicate_header.csv": ["two columns are called 'text'", "text.1"],
    "label_noise.csv": [
        "no label",
        "7 different: 'positive' 14",
        "differ in case, spaces, width or end punctuation only",
        "'positive' 14, 'positive' 14, 'positive ' 14",
        "' negative' 14, 'negative' 14",
        "'neg' 14 and",
        "one row only: 'neutral'",
    ],
    "csv_na_like_labels.csv": ["10 different"],
    "jsonl_truncated_last.jsonl": ["not valid json"],
    "python_repr.jsonl": ["python dict"],
    "duplicate_keys.jsonl": ["output", "twice"],
    "nan_infinity.jsonl": ["x10", "-infinity is no json number", "nan is no json number", "1e400"],
    "deep_nesting.json": ["nested too deeply"],
    "huge_line.jsonl": ["about 105,025 tokens", "truncate would leave 1.0% of it, the answer and the beginning and the end"],
    "long_example_zh.jsonl": ["tokens, 5", "of an answer of", "without its end"],
    "very_long_word.jsonl": ["1 row over data.max_length 1,024 (longest about 20,015 tokens): line 1"],
    "unicode_weird.jsonl": ["surrogate"],
    "special_tokens_in_text.jsonl": ["8 rows with control strings", "lines 1-6, 9-10", "<|im_end|> 4", "they stay text", "placeholder"],
    "html_entities.csv": ["37 rows with html entities (#39; 45", "nothing is changed"],
    "exact_duplicates.jsonl": ["20 exact duplicates of earlier rows: lines 21-40", "1 row with an earlier row's prompt and another answer"],
    "preference_broken.json": ["26 preference pairs"],
    "empty.jsonl": ["the file is empty"],
    "whitespace_only.jsonl": ["no rows"],
    "nul_tail.jsonl": ["nul"],
    "html_error_page.jsonl": ["html"],
    "lfs_pointer.jsonl": ["lfs pointer"],
    "conll_broken.txt": ["3 columns, but the other lines have 4", "5 columns, but the other lines have 4", "line 209"],
    "conll_bio_illegal.txt": ["o -> i-type", "i- of another type", "e- or l-", "iob2 assumed"],
}

ENCODINGS = {
    "utf16le_excel.tsv": "UTF-16LE",
    "gb18030.csv": "GB18030",
    "gbk.jsonl": "GB18030",
    "shift_jis.csv": "Shift-JIS",
    "euc_kr.csv": "EUC-KR",
    "big5.csv": "Big5",
    "latin1_cp1252.csv": "Windows-1252",
}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    if not MANIFEST:
        pytest.skip("needs the shared data sets")
    monkeypatch.chdir(DIRTY)


def checked(*files):
    """The JSON document of `data check`, and all that it says as one text."""
    documents = json.loads(as_json(check(list(files))))
    return documents, json.dumps(documents, ensure_ascii=False).lower()


@pytest.mark.parametrize("file", list(MANIFEST) or ["absent"])
def test_broken_files(file):
    case = MANIFEST[file]
    [report], said = checked(file)
    bad = [row["line"] for row in report["bad"]]
    if case["rows_good"] is not None:
        assert report["good"] == case["rows_good"], report["bad"]
    if case["bad_lines"] == "all 20":
        assert bad == list(range(1, 21))
    elif case["bad_lines"] == "rows with empty label":
        assert len(bad) == 14 and report["good"] == report["rows"] - 14
    elif file == "preference_broken.json":  # the manifest counts rows, which stand on many lines each
        begins = [number for number, line in enumerate(Path(file).read_text(encoding="utf-8").split("\n"), start=1) if line == " {"]
        assert bad == [begins[row - 1] for row in case["bad_lines"]]
    elif isinstance(case["bad_lines"], list) and file not in WARNED and report["rows"]:
        assert bad == case["bad_lines"], report["bad"]
    assert report["rows"] == report["good"] + len(bad) or not report["rows"]
    assert [words for words in SAID.get(file, ()) if words not in said] == []
    assert all(row["reason"] for row in report["bad"])


@pytest.mark.parametrize("file", ENCODINGS)
def test_encodings_are_named(file):
    [report], _ = checked(file)
    assert report["encoding"] == ENCODINGS[file]


def test_files_that_cannot_be_read_have_no_rows_and_one_reason():
    for file in ("empty.jsonl", "whitespace_only.jsonl", "html_error_page.jsonl", "lfs_pointer.jsonl", "deep_nesting.json"):
        [report], _ = checked(file)
        assert (report["rows"], report["good"], len(report["bad"])) == (0, 0, 1), file
    [report], _ = checked("mixed_encoding.csv")
    assert (report["bad"][0]["line"], report["good"]) == (2, 0)


def test_leaks_between_files_are_named_with_the_lines_of_both_sides():
    (train, test), _ = checked("leak_train.jsonl", "leak_test.jsonl")
    assert train["warnings"] == []
    assert test["warnings"] == [
        "30 rows also in leak_train.jsonl: lines 1-30 (there: lines 71-100); rows for a test must not be learned",
    ]
    assert test["leaks"] == [{"file": "leak_train.jsonl", "how": "exact", "rows": 30, "lines": "1-30", "earlier_lines": "71-100"}]


def test_every_row_of_a_mixed_file_has_its_own_reason():
    [report], _ = checked("mixed_roles.jsonl")
    reasons = {row["line"]: row["reason"].lower() for row in report["bad"]}
    words = {6: "begins with", 7: "both user messages", 8: "nothing answers", 9: "empty", 13: "json", 14: "called no tool", 17: "blank"}
    assert {line: reasons[line] for line, word in words.items() if word not in reasons[line]} == {}
