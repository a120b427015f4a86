from tunesmith.data.sample import Sample
from tunesmith.tasks import generate

CHAT = Sample("a:1", ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}))


def test_conversations_only():
    assert not generate.HEAD and generate.misfit(CHAT) == ""
    assert "task.name=text" in generate.misfit(Sample("a:1", text="raw"))
