"""What we learn of a conversation is what TRL's masks say, on the chat templates that TRL ships and on ours of tests/templates.py.

TRL marks the answers inside a template of its own for each family; `apply_chat_template` then gives a mask beside the ids. Three
differences are ours on purpose, and stated for each template:

- in front: TRL's mask may hold what the generation prompt holds (a line end, a header, closed thinking). A server feeds that;
  we do not learn it.
- behind: TRL's mask may hold what stands behind the stop token (a line end, phi's <|endoftext|>). Nobody ever asks for that.
- apart: where the family's own template writes history unlike answers (thinking left out, another stop token), TRL trains on a
  template that is not the family's; we give each turn a document of its own, as a server would feed it, and learn the same answers.
"""

import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.templates import TEMPLATES, make_tokenizer
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import RowError, Sample
from tunesmith.data.sources import load_samples

trl = pytest.importorskip("trl")
SHIPPED = Path(trl.__file__).parent / "chat_templates"


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | more


SYSTEM = {"role": "system", "content": "Be brief."}
CALLS = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}]
TOOLS = ({"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}},)

ONE = (user("Hi"), assistant("Yes."))
TALK = (user("Hi"), assistant("Yes."), user("Why?\n\nSay it."), assistant("So it is:\n- été\n- 北京 😀"), user("And?"), assistant("{}"))
BRIEFED = (SYSTEM, *TALK)
TOOL = (user("Weather?"), assistant("", tool_calls=CALLS), {"role": "tool", "name": "weather", "content": "18"}, assistant("18 degrees."))
THOUGHT = (user("Hi"), assistant("Yes.", reasoning_content="hm"))


class Case(NamedTuple):
    name: str  # of the template in TRL; its own template for training is called NAME_training
    family: str  # whose tokens, in tests/templates.py
    talks: tuple[tuple[dict[str, Any], ...], ...]
    front: str = ""
    behind: str = ""
    last: str = ""  # behind the last answer only
    apart: bool = False
    stops: tuple[str, ...] = ()  # the generation config's, where they are more than the tokenizer's


CASES = [
    Case("llama3", "llama-3.2", (ONE, TALK, BRIEFED)),
    Case("qwen2_5", "qwen2.5", (ONE, TALK, BRIEFED, TOOL), front="\n", behind="\n"),
    Case("qwen2_5_vl", "qwen2.5", (ONE, TALK, BRIEFED), behind="\n"),
    Case("qwen3", "qwen3", (ONE, TALK, BRIEFED, TOOL, THOUGHT), behind="\n", apart=True),
    Case("qwen3_instruct_2507", "qwen3", (ONE, TALK, BRIEFED, TOOL), behind="\n"),
    Case("qwen3_vl", "qwen3", (ONE, TALK, BRIEFED), behind="\n"),
    # the generation prompt closes thinking, so that none can be learned
    Case("qwen3_5_nothink", "qwen3", (ONE, TALK, TOOL), front="<think>\n\n</think>\n\n", behind="\n", apart=True),
    Case("qwen3_5_nothink", "qwen3", (THOUGHT,), front="<think>\nhm\n</think>\n\n", behind="\n", apart=True),
    Case("qwen3_5_think", "qwen3", (THOUGHT,), front="<think>\n", behind="\n"),
    Case("qwen3_6", "qwen3", (THOUGHT,), front="<think>\n", behind="\n"),
    Case("qwen3_8", "qwen3", (THOUGHT,), front="<think>\n", behind="\n"),
    Case("gemma", "gemma-3", (ONE, TALK), behind="\n"),
    Case("gemma3", "gemma-3", (ONE, TALK, BRIEFED), behind="\n"),
    Case("phi3", "phi-3", (ONE, TALK, BRIEFED), last="<|endoftext|>"),
    Case("phi3_5", "phi-3", (ONE, TALK, BRIEFED), last="<|endoftext|>"),
    Case("cohere", "cohere", (ONE, TALK, BRIEFED)),
    Case("cohere2", "cohere2", (ONE, TALK, BRIEFED)),
    Case("glm4moe", "glm", (ONE, TALK, BRIEFED, TOOL, THOUGHT), stops=("<|user|>", "<|observation|>")),
    Case("gptoss", "gpt-oss", (ONE, TOOL, THOUGHT), front="<|start|>assistant", stops=("<|call|>",)),
    Case("muse_glimmer", "muse", (ONE, TALK, BRIEFED, TOOL, THOUGHT), front="<|start|>assistant"),
    Case("diffusion_gemma", "gemma-4", (ONE, THOUGHT), behind="\n", stops=("<turn|>", "<|tool_response>")),
    Case("lfm2", "lfm2", (ONE, TALK, BRIEFED), behind="\n"),
    Case("lfm2_v2", "lfm2", (ONE, TALK), behind="\n"),
    Case("nemotron_3_nano", "qwen3", (THOUGHT,), front="<think>\n", behind="\n"),
    # a server's prompt ends with a line end behind <think>, which the family's own template does not write without thinking
    Case("nemotron_3_nano", "qwen3", (ONE,), front="<think>", behind="\n", apart=True),
]

# Families whose templates TRL does not ship: in ours, how an answer is written, and what ends that line of the template.
OURS = {
    "smollm2": ("message.content + '<|im_end|>'", " + '\n' }}"),
    "mistral": ("' ' + message.content + eos_token", " }}"),
    "llama-3.2": ("message.content | trim + '<|eot_id|>'", " }}"),
}


def marked(family: str) -> str:
    """Our template of a family, with the marks that `return_assistant_tokens_mask` looks for around what the assistant says."""
    said, rest = OURS[family]
    before, after = TEMPLATES[family].split(said + rest)
    answer = f"{{% if message.role == 'assistant' %}}{{% generation %}}{{{{ {said} }}}}{{% endgeneration %}}"
    return f"{before} '' }}}}{answer}{{% else %}}{{{{ {said} }}}}{{% endif %}}{{{{ ''{rest}{after}"


class Theirs(NamedTuple):
    ids: list[int]
    runs: list[tuple[int, int]]  # half-open: what the mask marks


def theirs(tokenizer: Any, template: str, talk: Any, tools: Any) -> Theirs:
    got = tokenizer.apply_chat_template(
        list(talk),
        tools=list(tools) or None,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    mask = [0, *got["assistant_masks"], 0]
    edges = [place for place in range(len(mask) - 1) if mask[place] != mask[place + 1]]
    return Theirs(got["input_ids"], list(zip(edges[::2], edges[1::2], strict=True)))


@pytest.mark.parametrize(("case", "talk"), [pytest.param(case, talk, id=case.name) for case in CASES for talk in case.talks])
def test_the_masks_of_the_templates_that_trl_ships(case, talk):
    own, training = ((SHIPPED / f"{case.name}{kind}.jinja").read_text(encoding="utf-8") for kind in ("", "_training"))
    compare(make_tokenizer(case.family, own), training, talk, case)


@pytest.mark.parametrize("version", ["gemma4_v3", "gemma4_v5"])
def test_a_turn_that_goes_on_behind_a_tool_s_result(version):
    """Gemma 4's: the token that opens the result stops a server; the answer then goes on in the same turn."""
    tokenizer = make_tokenizer("gemma-4", (SHIPPED / f"{version}.jinja").read_text(encoding="utf-8"))
    renderer = Renderer(tokenizer, stop_ids=tokenizer.convert_tokens_to_ids(["<turn|>", "<|tool_response>"]))
    [document] = renderer.documents(Sample("a:1", TOOL, TOOLS))
    assert [tokenizer.decode(document.ids[start:end]) for start, end in document.spans] == [
        '<|tool_call>call:weather{city:<|"|>Paris<|"|>}<tool_call|><|tool_response>',
        "18 degrees.<turn|>",
    ]
    whole = tokenizer.apply_chat_template(list(TOOL), tools=list(TOOLS))["input_ids"]
    assert whole[: len(document.ids)] == document.ids


@pytest.mark.parametrize("family", ["smollm2", "mistral", "llama-3.2"])
def test_the_masks_of_families_that_it_does_not_ship(family):
    case = Case(family, family, ())
    for talk in (ONE, TALK, *([] if family == "mistral" else [BRIEFED])):
        compare(make_tokenizer(family), marked(family), talk, case)


def compare(tokenizer: Any, template: str, talk: Any, case: Case) -> None:
    tools = TOOLS if talk is TOOL else ()
    documents = Renderer(tokenizer, stop_ids=tokenizer.convert_tokens_to_ids(list(case.stops))).documents(Sample("a:1", talk, tools))
    ours = [document.ids[start:end] for document in documents for start, end in document.spans]
    ids, runs = theirs(tokenizer, template, talk, tools)
    assert len(ours) == len(runs) == sum(message["role"] == "assistant" for message in talk)

    places = []
    for number, (learned, (start, end)) in enumerate(zip(ours, runs, strict=True)):
        begin = start + find(learned, ids[start:end])
        places.append((begin, begin + len(learned)))
        last = case.last if number == len(runs) - 1 else ""
        assert (tokenizer.decode(ids[start:begin]), tokenizer.decode(ids[begin + len(learned) : end])) == (case.front, case.behind + last)
    if not case.apart:
        whole = tokenizer.apply_chat_template(list(talk), tools=list(tools) or None, tokenize=True, return_dict=True)["input_ids"]
        assert ids[: len(whole)] == whole, "TRL's template writes what the family's own does not"
        assert tokenizer.decode(ids[len(whole) :]) in ("", *case.stops)  # GLM's own opens no turn behind the last answer
        assert [document.ids for document in documents] == [ids[: places[-1][1]]]
        assert list(documents[0].spans) == places


def find(part: list[int], ids: list[int]) -> int:
    """Where a part begins in ids."""
    found = [place for place in range(len(ids) - len(part) + 1) if ids[place : place + len(part)] == part]
    assert found, "what is learned is not what TRL marks"
    return found[0]


# --- rows with tools and thinking, as people have them ---

DEMO = Path(__file__).parents[2] / "../shared/data/llamafactory_demo"
FILES = {"glaive_toolcall_en_demo.json": 100, "reason_tool_use_demo_50.jsonl": 50}  # name -> how many rows of it
REFUSED = {"llama3_1": "single tool-calls at once"}


@pytest.mark.skipif(not DEMO.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("template", "family", "thinks", "stops"),
    [
        ("qwen2_5", "qwen2.5", False, ()),
        ("qwen3", "qwen3", True, ()),
        ("qwen3_5_think", "qwen3", True, ()),
        ("llama3_1", "llama-3.2", False, ("<|eom_id|>",)),
        ("gemma4_v5", "gemma-4", True, ("<turn|>", "<|tool_response>")),
    ],
)
def test_answers_of_rows_with_tools_stand_where_apply_chat_template_has_them(template, family, thinks, stops, name):
    tokenizer = make_tokenizer(family, (SHIPPED / f"{template}.jinja").read_text(encoding="utf-8"))
    stop_ids = tokenizer.convert_tokens_to_ids(list(stops))
    today = datetime.date.today().isoformat()
    renderer = Renderer(tokenizer, stop_ids=stop_ids, thinking="keep" if thinks else "drop", date=today)
    samples = load_samples(str(DEMO / name))[0][: FILES[name]]
    learned = 0
    for sample, documents in zip(samples, renderer.documents_of(samples), strict=True):
        if isinstance(documents, RowError):
            assert REFUSED[template] in str(documents)
            continue
        messages = [{key: value for key, value in m.items() if thinks or key != "reasoning_content"} for m in sample.messages]
        given: dict[str, Any] = {"tools": list(sample.tools) or None, "tokenize": False}
        for document in documents:
            for turn, (start, end) in zip(document.turns, document.spans, strict=True):
                prompt = tokenizer.apply_chat_template(messages[:turn], add_generation_prompt=True, **given)
                full = tokenizer.apply_chat_template(messages[: turn + 1], **given)
                assert document.ids[:start] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
                assert full.startswith(prompt) and full[len(prompt) :].rstrip() == tokenizer.decode(document.ids[start:end]).rstrip()
                learned += 1
    assert learned >= 50
