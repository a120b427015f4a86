"""POST /tokenize and /detokenize, with vLLM's names: what a model is fed, before it is fed."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tunesmith.serve.ask import Engine
from tunesmith.serve.catalog import Model
from tunesmith.serve.customers import no_such_model
from tunesmith.serve.http import wire
from tunesmith.serve.http.errors import bad
from tunesmith.serve.http.messages import messages_of, tools_of
from tunesmith.serve.http.service import UNBOUNDED, Service, check_length, read_body
from tunesmith.serve.http.text import text_of, vocabulary_of


class TokenizeRequest(BaseModel):
    """A text, or messages."""

    model_config = ConfigDict(strict=True)
    model: str
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=wire.MOST_MESSAGES)] | None = None
    tools: list[dict[str, Any]] = Field(default_factory=list)
    add_special_tokens: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: wire.Variables = Field(default_factory=dict)


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True)
    model: str
    tokens: list[wire.Id]


async def tokenize(service: Service, request: Request) -> Response:
    """{count, max_model_len, tokens}."""
    asked = TokenizeRequest.model_validate(await _fields(service, request))
    model = _model(service, request, asked.model)
    ids = await service.render(_ids, service.engine, asked, model)
    answer = {"count": len(ids), "max_model_len": service.engine.context(model.name), "tokens": ids}
    strings = model.renderer.tokenizer.convert_ids_to_tokens(ids) if asked.return_token_strs else None
    return JSONResponse(answer | ({"token_strs": strings} if strings is not None else {}))


async def detokenize(service: Service, request: Request) -> Response:
    """{prompt}."""
    asked = DetokenizeRequest.model_validate(await _fields(service, request))
    model = _model(service, request, asked.model)
    context = service.engine.context(model.name) or UNBOUNDED
    if len(asked.tokens) > context:  # as /tokenize: one thread does this for all who ask
        raise bad(
            f"The context of {model.name} is {context} tokens, and these are {len(asked.tokens)}.", "tokens", "context_length_exceeded"
        )
    return JSONResponse({"prompt": await service.render(text_of, vocabulary_of(model.renderer.tokenizer), asked.tokens)})


def _ids(engine: Engine, asked: TokenizeRequest, model: Model) -> list[int]:
    if (asked.prompt is None) == (asked.messages is None):
        raise bad("either prompt or messages", "prompt")
    if asked.messages is not None:
        renderer = model.renderer
        prompt = renderer.prompt(messages_of(asked.messages), tools_of(asked.tools), asked.chat_template_kwargs)
        check_length(engine, model, prompt.text)
        ids: list[int] = renderer.begun(prompt.text, renderer.encoder.encode([prompt])[0])
        return ids
    check_length(engine, model, asked.prompt or "")
    return plain_ids(model.renderer, asked.prompt or "", begins=asked.add_special_tokens)


def plain_ids(renderer: Any, text: str, *, begins: bool = True) -> list[int]:
    """A text without a chat template, behind the token that documents begin with. Special tokens in it are meant, as they are by
    whoever sends a prompt that was rendered elsewhere."""
    [ids] = renderer.encoder.batch([text])
    bos: list[int] = renderer.bos if begins else []
    return ids if ids[: len(bos)] == bos else [*bos, *ids]


async def _fields(service: Service, request: Request) -> dict[str, Any]:
    service.customers.identify(request.headers.get("authorization"))
    return wire.read(await read_body(request))


def _model(service: Service, request: Request, name: str) -> Model:
    sees: Callable[[str], bool] = service.customers.sees(request.headers.get("authorization"))
    model = service.catalog.find(name)
    if model is None or not sees(name):
        raise no_such_model(name)
    return model
