from tests.tasks.test_generate import CHAT
from tunesmith.data.sample import Sample
from tunesmith.tasks import text


def test_raw_text_only():
    assert not text.HEAD and text.misfit(Sample("a:1", text="raw")) == ""
    assert "task.name=generate" in text.misfit(CHAT)
