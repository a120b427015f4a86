"""vLLM is started by an export's own script and asked: token by token, logarithm by logarithm, it must say what the model said while it
was ours; of the base too, so that an adapter that does nothing is seen."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tunesmith.export import agreement
from tunesmith.export.target import ANSWER, Proof, Tell, Truth
from tunesmith.export.vllm_files import SERVE
from tunesmith.serve.external.embeds import Embeds
from tunesmith.serve.external.process import Process, free_port
from tunesmith.serve.external.vllm import ENVIRONMENT, START_SECONDS

TIE = 1e-2  # logits that are as near as this are as good as equal: which of them comes first is rounding
LOGPROB = 5e-3  # nats by which fp32 in another order of sums may differ, at the likeliest tokens
LIKELIEST = 5
PLAIN = ("--dtype", "float32", "--max-num-seqs", "4", "--enforce-eager")  # what is compared are the weights
SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB


@dataclass(frozen=True, slots=True)
class Asked:
    """One name that the folder answers to, and what it is to say."""

    name: str
    truth: Truth
    model: str  # the name that vLLM is asked for
    table: Path | None  # virtual tokens, which are sent as vectors
    renderer: Any


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy tokens, and of each the likeliest with their logarithms of probability."""

    ids: list[int]
    likeliest: list[dict[int, float]]
    finish: str


def proof(folder: Path, python: str, version: str, base: str, asked: Sequence[Asked], tell: Tell) -> Proof:
    """Start, ask, end. `base` is the name under which the base alone answers; "" where there is none. Raises UserError where vLLM does
    not start: its last lines stand in it."""
    tell(f"vLLM {version} opens it")
    port, key = free_port(), secrets.token_hex(16)
    tables = {each.name: Embeds(folder, each.table) for each in asked if each.table is not None}
    longest = max(len(ids) for each in asked for ids in each.truth.prompts) + max([0, *(len(table) for table in tables.values())])
    command = ["sh", str(folder / SERVE.name), *PLAIN, "--max-model-len", str(longest + ANSWER + 1)]
    told = SMALL | ENVIRONMENT | {"PYTHON": python, "HOST": "127.0.0.1", "PORT": str(port), "VLLM_API_KEY": key}
    process = Process("vLLM", command, told)
    headers = {"Authorization": f"Bearer {key}"}
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=600, trust_env=False) as client:
            process.wait(lambda: _is_up(client), START_SECONDS, pause=0.5)
            tell("vLLM answers")
            found = [_compared(client, each, base, tables.get(each.name)) for each in asked]
    finally:
        process.stop()
    figures = {each.name: one.figures for each, one in zip(asked, found, strict=True)}
    only = next(iter(figures.values())) if len(figures) == 1 else {"sources": figures}
    failures = tuple(f"{each.name}: {failure}" for each, one in zip(asked, found, strict=True) for failure in one.failures)
    notes = tuple(f"{each.name}: {note}" for each, one in zip(asked, found, strict=True) for note in one.notes)
    return Proof(f"vLLM {version}", only, failures, notes)


def _is_up(client: httpx2.Client) -> bool:
    try:
        return client.get("/health", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def _compared(client: httpx2.Client, asked: Asked, base: str, table: Embeds | None) -> Proof:
    truth, stops = asked.truth, asked.renderer.stops
    failures: list[str] = []
    notes: list[str] = []
    answers = [_answer(client, asked.model, ids, table, stops) for ids in truth.prompts]
    if refused := [answer for answer in answers if isinstance(answer, str)]:
        return Proof("", {}, (f"vLLM refuses what it is asked: {refused[0]}",))
    given = [answer for answer in answers if isinstance(answer, Answer)]
    equal = 0
    for number, (ours, theirs) in enumerate(zip(truth.answers, given, strict=True)):
        same, said = same_tokens(ours, theirs, f"conversation {number + 1}")
        equal += same
        if said:
            (notes if said.startswith("a tie") else failures).append(said)
    apart = max(
        (abs(theirs - float(row_V[token])) for row_V, answer in zip(_next(truth), given, strict=True) for token, theirs in _first(answer)),
        default=0.0,
    )
    if not apart <= LOGPROB:  # NaN is no agreement
        failures.append(
            f"its logarithms of probability differ by up to {apart:.1e} nats from the model's own, where {LOGPROB:g} is rounding"
        )
    figures = {"greedy_tokens": sum(map(len, truth.answers)), "greedy_tokens_equal": equal, "largest_logprob_difference": apart}
    if base and truth.base_answers:
        failures += _against_base(client, asked, base, given, figures)
    if truth.conversations:
        failures += _talks(client, asked, notes)
    return Proof("", figures, tuple(failures), tuple(notes))


def same_tokens(ours: Sequence[int], theirs: Answer, where: str) -> tuple[int, str]:
    """(how many of ours came, a sentence about the first other one: it begins with "a tie" where both are as likely)."""
    pairs = zip(ours, theirs.ids, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs.ids)))
    if at == len(ours) and at == len(theirs.ids):
        return at, ""
    wanted = ours[at] if at < len(ours) else None
    ranked = theirs.likeliest[at] if at < len(theirs.likeliest) else {}
    # where ours ends there stood a stop token, whichever: the next likeliest decides
    values = sorted(ranked.values(), reverse=True)
    rival = ranked.get(wanted, -math.inf) if wanted is not None else (values[1] if len(values) > 1 else -math.inf)
    if values and values[0] - rival <= TIE:
        return at, f"a tie at token {at} of {where}: two are as likely within {TIE:g}, and vLLM takes the other"
    other = theirs.ids[at] if at < len(theirs.ids) else "the end"
    return at, f"its answer to {where} has {other} at token {at} in place of {'the end' if wanted is None else wanted}"


def _next(truth: Truth) -> list[Any]:
    """[V] logarithms of probability of what follows each prompt."""
    return [logits_TV[-1].double().log_softmax(-1) for logits_TV in truth.logits]


def _first(answer: Answer) -> list[tuple[int, float]]:
    return list(answer.likeliest[0].items()) if answer.likeliest else []


def _against_base(client: httpx2.Client, asked: Asked, base: str, given: Sequence[Answer], figures: dict[str, Any]) -> list[str]:
    """The base answers as the base did; and not as the adapter does, where that is another model."""
    failures = []
    plain = [_answer(client, base, ids, None, asked.renderer.stops) for ids in asked.truth.prompts]
    if refused := [answer for answer in plain if isinstance(answer, str)]:
        return [f"the base ({base}) is not answered for: {refused[0]}"]
    bare = [answer for answer in plain if isinstance(answer, Answer)]
    for number, (ours, theirs) in enumerate(zip(asked.truth.base_answers, bare, strict=True)):
        _, said = same_tokens(ours, theirs, f"conversation {number + 1}, asked of the base,")
        if said and not said.startswith("a tie"):
            failures.append(said)
    figures["answers_unlike_the_bases"] = sum(a.ids != b.ids for a, b in zip(given, bare, strict=True))
    if [a.likeliest for a in given] == [b.likeliest for b in bare]:
        failures.append("it answers as the base does, to the last digit: the adapter does nothing")
    return failures


def _talks(client: httpx2.Client, asked: Asked, notes: list[str]) -> list[str]:
    """What vLLM makes of messages are the tokens that the model was trained with."""
    if asked.renderer.prints_date:
        notes.append("its chat template writes the date, so that vLLM's prompts are today's and were not compared with the trained ones")
        return []
    found, failures = [], []
    for talk in asked.truth.conversations:
        body = {"model": asked.model, "messages": talk, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
        response = client.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            return [f"vLLM refuses a conversation: {response.text[:300]}"]
        value = response.json()
        ids = value.get("prompt_token_ids") or []
        if value["usage"]["prompt_tokens"] != len(ids):
            failures.append(f"it counts {value['usage']['prompt_tokens']} tokens of a prompt of {len(ids)}")
        found.append(list(ids))
    return failures + agreement.same_ids(asked.truth.prompts, found, "vLLM's chat template")


def _answer(client: httpx2.Client, model: str, ids: Sequence[int], table: Embeds | None, stops: set[int]) -> Answer | str:
    """What vLLM says, or why it refuses. It stops where the folder says: nothing is said of stop tokens here."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": ANSWER,
        "temperature": 0,
        "logprobs": LIKELIEST,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
        "add_special_tokens": False,
        # the folder's own defaults would otherwise take part
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    body |= {"prompt": list(ids)} if table is None else {"prompt_embeds": table.text(ids)}
    response = client.post("/v1/completions", json=body)
    if response.status_code != 200:
        return response.text[:300]
    [choice] = response.json()["choices"]
    found = [int(token) for token in choice["token_ids"]]
    ranked = [{int(text.removeprefix("token_id:")): value for text, value in top.items()} for top in choice["logprobs"]["top_logprobs"]]
    if found and found[-1] in stops:
        found.pop()
    return Answer(found, ranked, choice["finish_reason"])
