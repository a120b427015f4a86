"""What every endpoint begins with and ends with: who asks, which model, what is asked for; and the counting of it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse

from tunesmith.serve.ask import Ask, Constraint, End, Engine
from tunesmith.serve.catalog import Catalog, Model
from tunesmith.serve.customers import Admitted, Customers, no_such_model
from tunesmith.serve.http import wire
from tunesmith.serve.http.answers import Answer, Piece
from tunesmith.serve.http.errors import LEFT, Problem, bad, problem_of
from tunesmith.serve.http.flow import Flow, Left, events, unless_left
from tunesmith.serve.http.text import Vocabulary, vocabulary_of
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.metrics import Request as Counted

LONGEST_BODY = 32 * 2**20  # bytes
LARGE_BODY = 2**18  # bytes from which reading the JSON is worth a thread
DRAIN_SECONDS = 5  # after which a client of a server that ends may try the one that takes its place
UNBOUNDED = 2**15  # tokens of an answer where neither the client nor the model sets a limit

Body = TypeVar("Body", bound=wire.Common)
T = TypeVar("T")


@dataclass(eq=False)
class Service:
    """What the endpoints work with."""

    engine: Engine
    catalog: Catalog
    customers: Customers
    metrics: Metrics
    draining: bool = False
    # A tokenizer is told what special tokens are anew for each text: one thread asks it, and the event loop stays free.
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "render"))

    async def render(self, work: Callable[..., T], *arguments: Any) -> T:
        """`work`, which may use tokenizers and templates."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def enter(self, request: Request, kind: type[Body]) -> "Visit[Body]":
        """Raises Problem, Refused, ValidationError; nothing is held then."""
        counted: Counted | None = None
        header = request.headers.get("authorization")
        name = customer = ""
        try:
            if self.draining:
                raise Problem(503, "The server is ending.", code="draining", retry_after=DRAIN_SECONDS)
            customer = self.customers.identify(header).name
            raw = await read_body(request)
            fields = await asyncio.to_thread(wire.read, raw) if len(raw) > LARGE_BODY else wire.read(raw)
            name = fields["model"] if isinstance(fields.get("model"), str) else ""
            asked = kind.model_validate(fields)
            admitted = self.customers.admit(header, asked.model)
        except Exception as error:
            problem = problem_of(error)
            self.metrics.begin(name, customer).end(problem.status)
            raise problem from error
        found = self.catalog.find(asked.model, asked.user or "")
        counted = self.metrics.begin(found.name if found else name, customer)  # of a split name each version by itself
        visit = Visit(asked, found, admitted, counted)
        if visit.found is None:
            visit.finish(404)
            raise no_such_model(asked.model)
        return visit


@dataclass(eq=False)
class Visit(Generic[Body]):
    """A request that was let in."""

    asked: Body
    found: Model | None
    admitted: Admitted
    counted: Counted
    prompt_tokens: int = 0
    answer_tokens: int = 0

    @property
    def model(self) -> Model:
        assert self.found is not None
        return self.found

    @property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_of(self.model.renderer.tokenizer)

    def finish(self, status: int) -> None:
        """Only the first call counts."""
        self.counted.end(status, self.prompt_tokens, self.answer_tokens)
        self.admitted.finish(self.prompt_tokens + self.answer_tokens)

    def left(self, flow: Flow) -> None:
        """Nobody reads the answers any more, or all was sent."""
        flow.close()
        self.finish(LEFT)

    def failed(self, error: BaseException) -> Problem:
        """It ends with this error; what the client is told."""
        if not isinstance(error, Exception):
            self.finish(LEFT)
            raise error
        problem = problem_of(error)
        self.finish(problem.status)
        return problem


def answering(
    service: Service,
    kind: type[Body],
    prepare: Callable[[Service, Visit[Body]], Any],
    whole: Callable[[Visit[Body], Any, Flow], Coroutine[Any, Any, dict[str, Any]]],
    streamed: Callable[[Visit[Body], Any, Flow], AsyncGenerator[dict[str, Any], None]],
) -> Callable[[Request], Any]:
    """An endpoint whose answers an engine writes: `prepare` makes of a body something with `asks`, `n` of each prompt side by side."""

    async def answer(request: Request) -> Any:
        visit = await service.enter(request, kind)
        flow = None
        try:
            prepared = await service.render(prepare, service, visit)
            visit.prompt_tokens = sum(len(ask.prompt_ids) for ask in prepared.asks[:: visit.asked.n])
            flow = Flow(service.engine, prepared.asks)
            await flow.start()
            if visit.asked.stream:
                return events(streamed(visit, prepared, flow), lambda: visit.left(flow))
            return JSONResponse(await unless_left(request, whole(visit, prepared, flow)))
        except Left:
            visit.finish(LEFT)
            return JSONResponse({}, LEFT)
        except BaseException as error:
            raise visit.failed(error) from error
        finally:
            if flow is not None and not visit.asked.stream:
                flow.close()

    return answer


async def pieces_of(visit: Visit[Any], answers: Sequence[Answer], flow: Flow) -> AsyncGenerator[tuple[int, list[Piece]], None]:
    """(choice, pieces) as they come; the last of a choice once its answer has a `finish`. Raises Problem where one fails."""
    async for index, item in flow.items():
        answer = answers[index]
        if isinstance(item, End):
            _check(item)
            yield index, answer.end(item)
            continue
        visit.answer_tokens += 1
        visit.counted.token()
        pieces = answer.add(item)
        if answer.finish:
            flow.drop(index)
            yield index, pieces + answer.end(End("stop"))
        elif pieces:
            yield index, pieces


def _check(end: End) -> None:
    """Raises Problem for an answer that did not end by itself."""
    if end.reason == "error":
        raise Problem(500, end.message or "The engine could not go on with this answer.", code="engine_error")
    if end.reason == "cancelled":
        raise Problem(503, end.message or "The server is ending, or the model was taken away.", code="cancelled", retry_after=1)


async def read_body(request: Request, longest: int = LONGEST_BODY) -> bytes:
    """Raises Problem (413) as soon as it is known to be too long."""
    said = request.headers.get("content-length", "")
    parts, size = [], int(said) if said.isascii() and said.isdigit() else 0
    if size <= longest:
        size = 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > longest:
                break
    if size > longest:
        raise Problem(413, f"The body has more than {longest} bytes, which is what is taken here.", code="request_too_large")
    return b"".join(parts)


def asks_of(
    engine: Engine,
    model: Model,
    asked: wire.Common,
    prompt: list[int],
    *,
    limit: int | None,
    logprobs: int,
    constraint: Constraint | None,
    first_seed: int,
) -> list[Ask]:
    """One for each choice. Raises Problem for tokens that there are not, and where the prompt leaves too little room."""
    words = len(model.renderer.tokenizer)
    for field_name, ids in (("prompt", prompt), ("stop_token_ids", asked.stop_token_ids), ("logit_bias", map(int, asked.logit_bias))):
        if unknown := next((token for token in ids if token >= words), None):
            raise bad(f"{field_name}: there is no token {unknown}; {model.name} has {words}, from 0 on", field_name)
    limit = _room(engine.context(model.name), model, len(prompt), limit)
    if asked.min_tokens > limit:
        raise bad(f"min_tokens is {asked.min_tokens}, and the answer has room for {limit}", "min_tokens")
    stops = frozenset(asked.stop_token_ids) | frozenset(() if asked.ignore_eos else model.renderer.stops)
    shared = {**asked.sampling(), "stop_ids": stops, "logprobs": logprobs, "constraint": constraint, "max_tokens": limit}
    return [Ask(model=model.name, prompt_ids=tuple(prompt), seed=(first_seed + n) % wire.SEEDS, **shared) for n in range(asked.n)]


def check_length(engine: Engine, model: Model, text: str) -> None:
    """Raises Problem for a text that cannot fit, before the one thread that tokenises spends seconds on it."""
    context = engine.context(model.name)
    if context is not None and len(text) > context * vocabulary_of(model.renderer.tokenizer).longest:
        raise bad(
            f"The context of {model.name} is {context} tokens; a prompt of {len(text)} characters has more.",
            "messages",
            "context_length_exceeded",
        )


def _room(context: int | None, model: Model, prompt: int, limit: int | None) -> int:
    if context is None:
        return limit or UNBOUNDED
    if prompt >= context or (limit is not None and prompt + limit > context):
        answer = f" and {limit} are asked for as an answer, together {prompt + limit}" if limit is not None else ""
        raise bad(
            f"The context of {model.name} is {context} tokens; the prompt has {prompt}{answer}. Shorten the prompt or ask for less.",
            "messages" if limit is None else "max_tokens",
            "context_length_exceeded",
        )
    return limit or context - prompt
