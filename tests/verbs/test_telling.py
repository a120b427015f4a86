import pytest

from tunesmith.verbs.telling import tell


def test_results_are_kept_apart_from_what_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    tell("loading a model")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "… loading a model\n"
