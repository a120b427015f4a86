"""POST /v1/chat/completions: messages in, an answer out, whole or as a stream."""

import secrets
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from tunesmith.serve.ask import Ask, Constraint
from tunesmith.serve.http import grammar, wire
from tunesmith.serve.http.answers import Answer, Piece, chat_logprobs
from tunesmith.serve.http.errors import LEFT, bad
from tunesmith.serve.http.flow import Flow
from tunesmith.serve.http.messages import messages_of, tools_of
from tunesmith.serve.http.reading import Reading, begins_thinking, reading_of
from tunesmith.serve.http.service import Service, Visit, answering, asks_of, check_length, pieces_of
from tunesmith.serve.http.text import vocabulary_of

Chat = Visit[wire.ChatRequest]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as the engine gets it, and how its answers are read."""

    asks: list[Ask]
    reading: Reading
    opened: bool
    names: tuple[str, ...]  # of the functions that may be called
    is_named: bool  # the client chose the function itself


def endpoint(service: Service) -> Callable[[Request], Any]:
    return answering(service, wire.ChatRequest, _prepare, _whole, _streamed)


def _prepare(service: Service, visit: Chat) -> Prepared:
    """Raises Problem, RowError."""
    asked, renderer = visit.asked, visit.model.renderer
    if renderer.labelled:
        raise bad(f"{visit.model.name} predicts labels with a head of its own and writes no text", "model")
    messages, tools = messages_of(asked.messages), tools_of(asked.tools)
    choice, chosen = _choice(asked, tools)
    shown = tools if choice != "none" else []
    prompt = renderer.prompt(messages, shown, asked.variables)
    check_length(service.engine, visit.model, prompt.text)
    ids = renderer.begun(prompt.text, renderer.encoder.encode([prompt])[0])
    reading = reading_of(renderer, bool(shown))
    if shown and (reading.form is None or any(tool["function"]["name"] not in prompt.text for tool in shown)):
        raise bad(f"the chat template of {visit.model.name} does not write tools, so that the model would not see them", "tools")
    opened = begins_thinking(prompt.text, renderer.habits(shown))
    constraint = _constraint(asked, reading, chosen, choice, opened, renderer)
    asks = asks_of(
        service.engine,
        visit.model,
        asked,
        ids,
        limit=asked.limit,
        logprobs=asked.wanted_logprobs,
        constraint=constraint,
        first_seed=asked.first_seed(),
    )
    names = tuple(tool["function"]["name"] for tool in (chosen if shown else ()))
    return Prepared(asks, reading, opened, names, isinstance(asked.tool_choice, dict) and asked.tool_choice.get("type") == "function")


def _choice(asked: wire.ChatRequest, tools: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """none, auto or required; and the tools that may be called. Raises Problem."""
    choice = asked.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise bad("tool_choice needs tools", "tool_choice")
        return "none", []
    if choice is None or isinstance(choice, str):
        return choice or "auto", tools
    if choice.get("type") == "function":
        wanted, mode = [choice], "required"
    elif choice.get("type") == "allowed_tools" and isinstance(choice.get("allowed_tools"), dict):
        wanted, mode = choice["allowed_tools"].get("tools") or [], choice["allowed_tools"].get("mode", "auto")
    else:
        raise bad("tool_choice is none, auto, required, or {type: function, function: {name}}", "tool_choice")
    names = [(each.get("function") or {}).get("name") if isinstance(each, dict) else None for each in wanted]
    known = [tool["function"]["name"] for tool in tools]
    if not names or mode not in ("auto", "required") or not set(names) <= set(known):
        raise bad(f"tool_choice names {names}; the tools are {known}", "tool_choice")
    return mode, [tool for tool in tools if tool["function"]["name"] in names]


def _constraint(
    asked: wire.ChatRequest, reading: Reading, tools: list[dict[str, Any]], choice: str, opened: bool, renderer: Any
) -> Constraint | None:
    vocabulary = vocabulary_of(renderer.tokenizer)
    if choice == "required":
        several = asked.parallel_tool_calls and not isinstance(asked.tool_choice, dict)
        return grammar.forced_calls(reading, tools, vocabulary, several=several, opened=opened)
    constraint = asked.constraint()
    if constraint is not None and tools:  # the model decides: calls, or what is asked for
        several = asked.parallel_tool_calls
        return grammar.forced_calls(reading, tools, vocabulary, several=several, opened=opened, otherwise=constraint)
    return grammar.behind_thinking(constraint, reading, vocabulary) if constraint is not None and opened else constraint


def _answers(visit: Chat, prepared: Prepared) -> list[Answer]:
    return [
        Answer(
            visit.vocabulary,
            reading=prepared.reading,
            opened=prepared.opened,
            names=prepared.names,
            stops=visit.asked.stops,
            one_call=not visit.asked.parallel_tool_calls,
        )
        for _ in prepared.asks
    ]


async def _whole(visit: Chat, prepared: Prepared, flow: Flow) -> dict[str, Any]:
    answers = _answers(visit, prepared)
    pieces: list[list[Piece]] = [[] for _ in answers]
    async for index, new in pieces_of(visit, answers, flow):
        pieces[index] += new
    choices = [_choice_of(visit, prepared, index, answer, pieces[index]) for index, answer in enumerate(answers)]
    visit.finish(200)
    return {**_frame(visit, "chat.completion"), "choices": choices, "usage": _usage(visit, answers)}


def _choice_of(visit: Chat, prepared: Prepared, index: int, answer: Answer, pieces: list[Piece]) -> dict[str, Any]:
    """A choice that is sent whole: calls that are none are text again."""
    broken = {piece.index for piece in pieces if piece.kind == "broken"}
    calls: dict[int, dict[str, Any]] = {}
    content = thought = ""
    for piece in pieces:
        match piece.kind:
            case "thought":
                thought += piece.text
            case "content" | "broken":
                content += piece.text
            case "call" if piece.index not in broken:
                calls[piece.index] = {"id": piece.id, "type": "function", "function": {"name": piece.text, "arguments": ""}}
            case "arguments" if piece.index not in broken:
                calls[piece.index]["function"]["arguments"] += piece.text
    message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None, "refusal": None}
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = list(calls.values())
    finish = "stop" if answer.finish == "tool_calls" and (not calls or prepared.is_named) else answer.finish
    logprobs = _logprobs(visit, [piece for piece in pieces if piece.tokens])
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


async def _streamed(visit: Chat, prepared: Prepared, flow: Flow) -> AsyncGenerator[dict[str, Any], None]:
    answers, frame = _answers(visit, prepared), _frame(visit, "chat.completion.chunk")
    counts = visit.asked.stream_options.include_usage
    if counts:
        frame["usage"] = None

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        return {**frame, "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]}

    status = LEFT
    try:
        for index in range(len(answers)):
            yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        async for index, pieces in pieces_of(visit, answers, flow):
            for piece in pieces:
                if (delta := _delta(piece)) is not None:
                    yield chunk(index, delta, logprobs=_logprobs(visit, [piece]) if piece.tokens else None)
            if finish := answers[index].finish:
                yield chunk(index, {}, "stop" if finish == "tool_calls" and prepared.is_named else finish)
        if counts:
            yield {**frame, "choices": [], "usage": _usage(visit, answers)}
        status = 200
    except Exception as error:
        problem = visit.failed(error)
        raise problem from error
    finally:
        visit.finish(status)


def _delta(piece: Piece) -> dict[str, Any] | None:
    """None for a call that turns out to be none: its text has gone out as arguments."""
    match piece.kind:
        case "thought":
            return {"reasoning_content": piece.text}
        case "content":
            return {"content": piece.text}
        case "call":
            function = {"name": piece.text, "arguments": ""}
            return {"tool_calls": [{"index": piece.index, "id": piece.id, "type": "function", "function": function}]}
        case "arguments":
            return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
    return None


def _logprobs(visit: Chat, pieces: list[Piece]) -> dict[str, Any] | None:
    if not visit.asked.logprobs:
        return None
    top = visit.asked.wanted_logprobs
    return {"content": [entry for piece in pieces for entry in chat_logprobs(visit.vocabulary, piece.tokens, top)], "refusal": None}


def _frame(visit: Chat, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": visit.model.name}


def _usage(visit: Chat, answers: list[Answer]) -> dict[str, Any]:
    tokens, thoughts = sum(answer.tokens for answer in answers), sum(answer.thoughts for answer in answers)
    return {
        "prompt_tokens": visit.prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": visit.prompt_tokens + tokens,
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }
