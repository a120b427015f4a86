import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from tunesmith.data.names import hub
from tunesmith.data.names.splits import Choice, parse
from tunesmith.errors import UserError

FILES = {"en/train.jsonl": 10, "en/test.jsonl": 10, "zh/train.jsonl": 10, "README.md": 5, "make.py": 5}


class NoRoute(Exception):
    """As HTTP libraries have them: of no kind that Python knows."""


class Hub:
    """A stand-in for the hub: what was asked, and a folder with what was fetched."""

    def __init__(self, folder: Path, files: dict[str, int]):
        self.folder, self.files, self.reached = folder, files, True
        self.fetched: list[tuple[str | None, list[str]]] = []
        self.revisions: dict[str, dict[str, int]] = {}
        self.refuses: Exception | None = None

    def dataset_info(self, name, *, revision=None, files_metadata=False):
        if self.refuses:
            raise self.refuses
        if not self.reached:
            raise NoRoute("no route")
        files = self.files if revision is None else self.revisions.get(revision)
        if files is None:
            raise refusal(errors.RevisionNotFoundError)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=path, size=size) for path, size in files.items()], card_data=None)

    def snapshot_download(self, name, *, repo_type, revision=None, allow_patterns=None, local_files_only=False):
        assert repo_type == "dataset"
        if local_files_only:
            if not any(self.folder.iterdir()):
                raise errors.LocalEntryNotFoundError("nothing kept")
            return str(self.folder)
        self.fetched.append((revision, allow_patterns))
        for pattern in allow_patterns:
            path = self.folder / pattern
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        return str(self.folder)


def fetch(source: str) -> tuple[Path, Choice]:
    named = parse(source)
    assert named is not None
    return hub.fetch(named)


def refusal(kind: type[Exception]) -> Exception:
    return kind("no", response=SimpleNamespace(headers={}, request=None))  # type: ignore[call-arg]


@pytest.fixture
def served(tmp_path, monkeypatch):
    stand_in = Hub(tmp_path, dict(FILES))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.snapshot_download)
    return stand_in


def test_only_what_is_meant_is_fetched(served):
    folder, choice = fetch("o/n:en")
    assert (folder, choice.files) == (served.folder, ("en/train.jsonl",))
    assert served.fetched == [(None, ["en/train.jsonl", "README.md"])]


def test_without_a_network_what_was_fetched_before_is_read(served):
    fetch("o/n:en")
    served.reached = False
    assert fetch("o/n:en")[1].files == ("en/train.jsonl",)
    assert len(served.fetched) == 1


def test_without_a_network_and_without_a_cache(served):
    served.reached = False
    with pytest.raises(UserError, match=r"the hub was not reached: no route\nfetch it where there is a network .hf download o/n"):
        fetch("o/n")


def test_a_data_set_that_is_a_program_is_read_as_the_hub_s_conversion(served):
    served.files = {"make.py": 3, "README.md": 3}
    with pytest.raises(UserError, match="holds no file that can be read"):
        fetch("o/n")
    served.revisions[hub.CONVERTED] = {"default/train/0000.jsonl": 3}
    assert fetch("o/n")[1].files == ("default/train/0000.jsonl",)
    assert served.fetched == [(hub.CONVERTED, ["default/train/0000.jsonl", "README.md"])]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.GatedRepoError, "gives access on request"),
        (errors.RevisionNotFoundError, "no revision 'v9' of it"),
        (errors.RepositoryNotFoundError, "neither a file here nor a data set that you may read"),
    ],
)
def test_refusals_in_words(served, kind, words):
    served.refuses = refusal(kind)
    with pytest.raises(UserError, match=words):
        fetch("o/n@v9")


def test_a_data_set_larger_than_the_disk_is_not_begun(served):
    served.files = {"train.jsonl": 10**18}
    with pytest.raises(UserError, match=r"takes 1,000,000,000\.0 GB, but .* free"):
        fetch("o/n")
    assert not served.fetched


def test_modelscope(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="needs the package modelscope: pip install modelscope"):
        fetch("ms:o/n")
    (tmp_path / "train.jsonl").write_text("{}")
    asked = []

    def download(name, *, allow_file_pattern, **rest):
        asked.append((name, rest))
        if name == "o/none":
            raise RuntimeError("404\nmore")
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(dataset_snapshot_download=download))
    assert fetch("ms:o/n@v1")[1].files == ("train.jsonl",) and asked == [("o/n", {"revision": "v1"})]
    with pytest.raises(UserError, match="ms:o/none: ModelScope did not give it: 404\nfetch it by hand"):
        fetch("ms:o/none")
