import pytest

from tunesmith.data.look.traces import ENTITY, MARKER, Traces
from tunesmith.data.sample import Sample


def traced(*texts, special=None):
    traces = Traces(special)
    for row, text in enumerate(texts, start=1):
        traces.add(row, row, Sample("a:1", text=text), text, text)
    return [finding.said() for finding in traces.findings()]


@pytest.mark.parametrize(
    "marker",
    [
        *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<｜User｜>", "<｜end▁of▁sentence｜>"),
        *(
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "<<SYS>>",
            "<</SYS>>",
            "<bos>",
            "<eos>",
            "<unk>",
            "<pad>",
            "<start_of_turn>",
            "<end_of_turn>",
        ),
        *("[CLS]", "[SEP]", "[PAD]", "[gMASK]", "<sop>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]"),
    ],
)
def test_well_known_control_strings(marker):
    assert MARKER.findall(f"before {marker} after") == [marker]


@pytest.mark.parametrize(
    "text", ["a < b | c > d", "[1] and [x]", "<think>so</think>", "<b>bold</b> <span>", "a <| b", "list[int]", "[INSTALL]"]
)
def test_text_that_is_none(text):
    assert MARKER.findall(text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a &lt;b&gt; &amp; c", ["&lt;", "&gt;", "&amp;"]),
        ("world #39;s &#39; &#x27;", ["#39;", "&#39;", "&#x27;"]),
        ("if (a & b) f(x); #1 priority; color: #333;", ["#333;"]),
        ("AT&T; &copyright", []),
    ],
)
def test_html_entities(text, found):
    assert ENTITY.findall(text) == found


def test_control_strings_are_counted_with_their_lines_and_the_tokenizers_own_too():
    import re

    own = re.compile("<unused5>|<s>")
    find = lambda text: (match.span() for match in own.finditer(text))  # noqa: E731
    assert traced("<s>[INST] a [/INST]", "plain", "<s>", "<unused5>", special=find) == [
        "3 rows with control strings of models or chat templates in the text (<s> 2, [INST] 1, [/INST] 1, <unused5> 1): lines 1, 3-4; "
        "they stay text here and never become control tokens, other trainers and servers may read them as such"
    ]
    assert traced("<unused5>") == []


def test_lost_and_mangled_characters():
    mangled = "It costs 5 €, and the café is open".encode().decode("cp1252")
    assert [said.partition(" (")[0].partition(",")[0] for said in traced(mangled, "a \ufffd b", "ça va, voilà – 5 €")] == [
        "1 row of mangled text",
        "1 row with \ufffd",
    ]


def test_placeholders_and_template_syntax_in_answers():
    assert traced("I am {{ name }}", "{% for x in y %}", "{{...}} {x} {{ 1 + 1 }}") == [
        "2 answers with a placeholder ({{ name }}, {% for x in y %}), which would be learned as it stands: lines 1-2"
    ]


def test_empty_system_prompts():
    traces = Traces()
    for row, system in enumerate(("", "  ", "Be brief."), start=1):
        messages = ({"role": "system", "content": system}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
        traces.add(row, row, Sample("a:1", messages), "q a", "a")
    assert [finding.said() for finding in traces.findings()] == [
        "2 rows with an empty system prompt: lines 1-2; with many chat templates that is not the same as none: leave the message out"
    ]
    assert traces.as_json() == {"empty_system": {"rows": 2, "lines": "1-2", "seen": {"empty": 2}}}


def test_kinds_of_control_strings_that_are_kept_are_bounded():
    traces = Traces()
    for row in range(1, 2001):
        traces.add(row, row, Sample("a:1", text="x"), f"<|token_{row}|>", "")
    assert len(traces.markers.seen) == 1000 and traces.markers.where.count == 2000
