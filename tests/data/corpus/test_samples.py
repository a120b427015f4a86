import pytest

from tests.rows import row, write
from tunesmith.data.corpus import blocks
from tunesmith.data.corpus.blocks import open_sources
from tunesmith.data.corpus.samples import samples_of
from tunesmith.data.sources import understand


@pytest.mark.parametrize("block", [100, 1 << 20])
def test_the_usable_rows_of_all_sources_in_order(tmp_path, monkeypatch, block):
    monkeypatch.setattr(blocks, "BLOCK", block)
    one = write(tmp_path / "one.jsonl", [row(0), "{broken", row(1)])
    two = write(tmp_path / "two.jsonl", [{"prompt": "x", "chosen": "y", "rejected": "z"}, row(2), row(3)])
    found = list(samples_of(open_sources([str(one), f"{two}#1"], understand())))
    assert [sample.origin for sample in found[:2]] == [f"{one}:1", f"{one}:3"]
    assert len(found) == 3 and found[2].origin in (f"{two}:2", f"{two}:3")


def test_why_rows_were_passed_over(tmp_path):
    both = write(tmp_path / "both.jsonl", [{"sentence": "s", "label": "1", "label_desc": "one"}])
    bad = write(tmp_path / "bad.jsonl", [row(0), {"prompt": "x"}, {"completion": "y"}])
    lost: list[str] = []
    assert len(list(samples_of(open_sources([str(bad), str(both)], understand()), lost))) == 1
    assert [line.partition(": ")[0] for line in lost] == [f"{bad}:2", f"{both}:1"]
    assert "(label, label_desc): say which, such as data.columns={text: sentence, label: label_desc}" in lost[1]
