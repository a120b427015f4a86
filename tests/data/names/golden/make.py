"""What LLaMA-Factory's own converter makes of small rows of every shape: `python make.py` where `llamafactory` 0.9.5 is installed
writes llamafactory.json beside this file."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ALPACA = {"columns": {"prompt": "ask", "query": "about", "response": "reply", "system": "role", "history": "before"}}
TOOLS = {"columns": {"prompt": "ask", "response": "reply", "tools": "tools"}}
TEXT = {"columns": {"prompt": "body"}}
CHAT = {"formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system", "tools": "tools"}}
TAGGED = {
    "formatting": "sharegpt",
    "columns": {"messages": "turns"},
    "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "U", "assistant_tag": "A", "system_tag": "S"},
}
PAIR = {"ranking": True, "columns": {"prompt": "ask", "query": "about", "chosen": "good", "rejected": "bad", "history": "before"}}
CHAT_PAIR = {
    "ranking": True,
    "formatting": "sharegpt",
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
}
KTO = {"columns": {"prompt": "ask", "response": "reply", "kto_tag": "label"}}
CHAT_KTO = {"formatting": "sharegpt", "columns": {"messages": "conversations", "kto_tag": "label"}}
OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}
OPENAI = {
    "formatting": "openai",
    "columns": {"messages": "messages", "tools": "tools", "system": "system"},
    "tags": OPENAI_TAGS | {"observation_tag": "tool", "function_tag": "function"},
}
WEATHER = [{"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]
CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'


def turns(*said: tuple[str, str], who: str = "from", says: str = "value") -> list[dict[str, str]]:
    return [{who: role, says: text} for role, text in said]


ROWS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"instruction": "Name a colour.", "input": "", "output": "Red"}),
    (ALPACA, {"ask": "Add.", "about": "1 and 2", "reply": "3", "role": "Be brief.", "before": [["Hi", "Hello"], ["How?", "Well"]]}),
    (ALPACA, {"ask": "", "about": "Only this?", "reply": "Yes", "role": "", "before": []}),
    (ALPACA, {"ask": "翻译\n这句话", "about": "你好", "reply": "Hello", "role": None, "before": None}),
    (TOOLS, {"ask": "Weather in Paris?", "reply": "I cannot look.", "tools": json.dumps(WEATHER)}),
    (TEXT, {"body": "Once upon a time", "url": "x"}),
    (CHAT, {"conversations": turns(("human", "Hi"), ("gpt", "Hello")), "system": "", "tools": ""}),
    (CHAT, {"conversations": turns(("system", "Be brief."), ("human", "Hi"), ("gpt", "Hello")), "system": "", "tools": ""}),
    (CHAT, {"conversations": turns(("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")), "system": "Be kind.", "tools": ""}),
    (
        CHAT,
        {
            "conversations": turns(("human", "Weather in Paris?"), ("function_call", CALL), ("observation", "18"), ("gpt", "18 degrees.")),
            "system": "",
            "tools": json.dumps(WEATHER),
        },
    ),
    (TAGGED, {"turns": turns(("S", "Be brief."), ("U", "Hi"), ("A", "Hello"), ("U", "Bye"), ("A", "Ciao"), who="who", says="says")}),
    (PAIR, {"ask": "Add.", "about": "1 and 2", "good": "3", "bad": "4", "before": []}),
    (PAIR, {"ask": "And now?", "about": "", "good": "5", "bad": "6", "before": [["Add 1 and 2.", "3"]]}),
    (
        CHAT_PAIR,
        {
            "conversations": turns(("human", "Hi"), ("gpt", "Hello"), ("human", "Who are you?")),
            "chosen": {"from": "gpt", "value": "A model."},
            "rejected": {"from": "gpt", "value": "A man."},
        },
    ),
    (KTO, {"ask": "Hi", "reply": "Hello", "label": True}),
    (KTO, {"ask": "Hi", "reply": "Go away", "label": False}),
    (CHAT_KTO, {"conversations": turns(("human", "Hi"), ("gpt", "Hello")), "label": False}),
    (OPENAI, {"messages": turns(("user", "Hi"), ("assistant", "Hello"), who="role", says="content"), "tools": "", "system": "Be kind."}),
    (
        OPENAI,
        {
            "messages": [
                {"role": "user", "content": "Weather in Paris?"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
                },
                {"role": "tool", "content": "18"},
                {"role": "assistant", "content": "18 degrees."},
            ],
            "tools": [{"type": "function", "function": WEATHER[0]}],
            "system": "",
        },
    ),
    # rows that they leave out, each with a warning in their log
    (CHAT, {"conversations": turns(("human", "Hi"), ("human", "Are you there?"), ("gpt", "Yes")), "system": "", "tools": ""}),
    (CHAT, {"conversations": turns(("human", "Hi"), ("gpt", "Hello"), ("human", "Bye")), "system": "", "tools": ""}),
    (CHAT, {"conversations": turns(("gpt", "Hello"), ("human", "Hi")), "system": "", "tools": ""}),
]


def main() -> None:
    from llamafactory.data.converter import get_dataset_converter
    from llamafactory.data.parser import DatasetAttr

    golden = []
    for entry, row in ROWS:
        attributes = DatasetAttr("file", dataset_name="mine")
        attributes.join(entry)
        converter = get_dataset_converter(attributes.formatting, attributes, SimpleNamespace(media_dir="."))
        made = {
            key.removeprefix("_"): value for key, value in converter(row).items() if key in ("_prompt", "_response", "_system", "_tools")
        }
        golden.append({"entry": entry, "row": row, "theirs": made})
    lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in golden)
    (Path(__file__).parent / "llamafactory.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
