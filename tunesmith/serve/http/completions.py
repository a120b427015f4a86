"""POST /v1/completions: texts or token ids go on as they are, without a chat template."""

import secrets
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from tunesmith.serve.ask import Ask, Token
from tunesmith.serve.http import wire
from tunesmith.serve.http.answers import Answer, finite
from tunesmith.serve.http.errors import LEFT, bad
from tunesmith.serve.http.flow import Flow
from tunesmith.serve.http.service import Service, Visit, answering, asks_of, check_length, pieces_of
from tunesmith.serve.http.text import text_of
from tunesmith.serve.http.tokens import plain_ids

Completion = Visit[wire.CompletionRequest]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as the engine gets it: the asks of all prompts, `n` of each side by side."""

    asks: list[Ask]


def endpoint(service: Service) -> Callable[[Request], Any]:
    return answering(service, wire.CompletionRequest, _prepare, _whole, _streamed)


def _prepare(service: Service, visit: Completion) -> Prepared:
    """Raises Problem."""
    asked = visit.asked
    if asked.echo and asked.logprobs is not None:
        raise bad("echo with logprobs is not served here: prompts have no probabilities", "echo", "unsupported_parameter")
    asks: list[Ask] = []
    seed = asked.first_seed()
    for number, prompt in enumerate(asked.prompts):
        if isinstance(prompt, str):
            check_length(service.engine, visit.model, prompt)
        asks += asks_of(
            service.engine,
            visit.model,
            asked,
            plain_ids(visit.model.renderer, prompt) if isinstance(prompt, str) else list(prompt),
            limit=asked.max_tokens,
            logprobs=asked.wanted_logprobs,
            constraint=asked.constraint(),
            first_seed=seed + number * asked.n,
        )
    return Prepared(asks)


def _answers(visit: Completion, asks: list[Ask]) -> list[Answer]:
    return [Answer(visit.vocabulary, stops=visit.asked.stops, fresh=False) for _ in asks]


def _echo(visit: Completion, ask: Ask, index: int) -> str:
    if not visit.asked.echo:
        return ""
    prompt = visit.asked.prompts[index // visit.asked.n]
    return prompt if isinstance(prompt, str) else text_of(visit.vocabulary, ask.prompt_ids)


async def _whole(visit: Completion, prepared: Prepared, flow: Flow) -> dict[str, Any]:
    asks = prepared.asks
    answers = _answers(visit, asks)
    texts, tokens = [_echo(visit, ask, index) for index, ask in enumerate(asks)], [list[Token]() for _ in asks]
    offsets = list(map(len, texts))
    async for index, pieces in pieces_of(visit, answers, flow):
        for piece in pieces:
            texts[index] += piece.text
            tokens[index] += piece.tokens
    choices = [
        {"index": index, "text": texts[index], "logprobs": _logprobs(visit, tokens[index], offsets[index]), "finish_reason": answer.finish}
        for index, answer in enumerate(answers)
    ]
    visit.finish(200)
    return {**_frame(visit), "choices": choices, "usage": _usage(visit, answers)}


async def _streamed(visit: Completion, prepared: Prepared, flow: Flow) -> AsyncGenerator[dict[str, Any], None]:
    asks = prepared.asks
    answers, frame = _answers(visit, asks), _frame(visit)
    counts = visit.asked.stream_options.include_usage
    if counts:
        frame["usage"] = None

    def chunk(index: int, text: str, finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        return {**frame, "choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}]}

    offsets = [0] * len(asks)
    status = LEFT
    try:
        for index, ask in enumerate(asks):
            if text := _echo(visit, ask, index):
                offsets[index] = len(text)
                yield chunk(index, text)
        async for index, pieces in pieces_of(visit, answers, flow):
            for piece in pieces:
                yield chunk(index, piece.text, logprobs=_logprobs(visit, piece.tokens, offsets[index]))
                offsets[index] += len(piece.text)
            if finish := answers[index].finish:
                yield chunk(index, "", finish)
        if counts:
            yield {**frame, "choices": [], "usage": _usage(visit, answers)}
        status = 200
    except Exception as error:
        problem = visit.failed(error)
        raise problem from error
    finally:
        visit.finish(status)


def _logprobs(visit: Completion, tokens: list[Token], offset: int) -> dict[str, Any] | None:
    if visit.asked.logprobs is None:
        return None
    spelled = [visit.vocabulary.bytes_of(token.id).decode(errors="replace") for token in tokens]
    offsets = [offset + sum(map(len, spelled[:place])) for place in range(len(spelled))]
    top = [
        {visit.vocabulary.bytes_of(other).decode(errors="replace"): finite(logprob) for other, logprob in token.top[: visit.asked.logprobs]}
        for token in tokens
    ]
    return {
        "tokens": spelled,
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": top if visit.asked.logprobs else None,
        "text_offset": offsets,
    }


def _frame(visit: Completion) -> dict[str, Any]:
    return {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()), "model": visit.model.name}


def _usage(visit: Completion, answers: list[Answer]) -> dict[str, Any]:
    tokens = sum(answer.tokens for answer in answers)
    return {"prompt_tokens": visit.prompt_tokens, "completion_tokens": tokens, "total_tokens": visit.prompt_tokens + tokens}
