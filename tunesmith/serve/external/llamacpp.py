"""llama.cpp as an engine: its server in a process of its own, asked by token ids, each request with the scale of its own adapter.

What it cannot do is refused rather than passed over: a least number of tokens, and grammars that it would not understand (it goes
on without them, silently; so each is checked here before). It reads adapters at its start alone: one that comes or goes means a
new start, for which answers in flight are waited for, and others told to come back.
"""

import importlib.util
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.models.gguf_header import read_header
from tunesmith.serve.ask import Ask, Cancel, Constraint, End, Full, Put, Token
from tunesmith.serve.builtin.constraints import grammar_of, matcher_of
from tunesmith.serve.external import llama_server
from tunesmith.serve.external.pieces import Pieces
from tunesmith.serve.external.process import Process, Tell, free_port
from tunesmith.serve.external.remote import Remote
from tunesmith.serve.external.vllm import check_length, in_older, read_figures

START_SECONDS = 600.0
CONTEXT = 4096  # positions of an answer where nothing is said: memory for all of them is taken at the start
RESTART_PATIENCE = 60.0  # seconds that answers in flight have where adapters come or go
# Ours in vLLM's order: temperature first, cuts behind it.
SAMPLERS = ["penalties", "temperature", "min_p", "top_k", "top_p"]
FIGURES = {
    "llamacpp:requests_processing": "engine_running",
    "llamacpp:requests_deferred": "engine_waiting",
    "llamacpp:prompt_tokens_total": "prompt_tokens_total",
    "llamacpp:tokens_predicted_total": "answer_tokens_total",
}


class LlamaCpp:
    """`ask.Engine` over llama.cpp. The base answers to `base_name`, each adapter to its own name."""

    name = "llamacpp"

    def __init__(
        self,
        model: Path,
        adapters: Mapping[str, Path],
        *,
        base_name: str,
        tokenizer: Any,
        context: int | None = None,
        max_answers: int = 8,
        queue: int = 256,
        threads: int | None = None,
        settings: Mapping[str, Any] | None = None,
        convert: Callable[[Path], Path] | None = None,
        tell: Tell | None = None,
        seconds: float = START_SECONDS,
    ):
        """Start it over a GGUF file and GGUF files of LoRAs by name; return when it answers. `settings` are fields of xllamacpp's
        CommonParams; `convert` makes a GGUF file of an adapter folder, for `load`. Raises UserError."""
        if importlib.util.find_spec("xllamacpp") is None:
            raise UserError("llama.cpp is not installed: pip install 'tunesmith[llamacpp]'")
        self._model, self._adapters, self._base_name, self._tokenizer = Path(model), dict(adapters), base_name, tokenizer
        self._pieces = Pieces(tokenizer)
        self._context = context or min(trained_context(self._model) or CONTEXT, CONTEXT)
        self._max_answers, self._queue, self._settings = max_answers, queue, dict(settings or {})
        self._threads = threads or os.cpu_count() or 1
        self._convert, self._tell, self._seconds = convert, tell, seconds
        self._lock = threading.Lock()  # of what is running now
        self._changing = threading.Lock()  # held while it is exchanged
        self._scraped, self._figures = 0.0, dict[str, float]()
        self._process, self._remote = self._start(self._adapters)

    def submit(self, ask: Ask, put: Put) -> Cancel:
        """See `ask.Engine`."""
        if ask.min_tokens:
            raise ValueError("llama.cpp has no min_tokens; leave it out, or serve with --engine builtin or vllm")
        check_length(ask, self._context)
        if ask.constraint is not None:
            if not self._keeps_to_grammars:
                raise ValueError("this build of llama.cpp has no llguidance, so that it cannot keep an answer to a schema or grammar")
            matcher_of(ask.constraint, self._tokenizer, ask.stop_ids)  # its own reader of grammars lets mistakes pass
        with self._lock:
            if ask.model != self._base_name and ask.model not in self._adapters:
                raise LookupError(ask.model)
            process, remote, names = self._process, self._remote, list(self._adapters)
        if not process.alive and not self._changing.locked():
            threading.Thread(target=self._revive, args=(process,), name="llama.cpp restart", daemon=True).start()
            raise Full
        body = request_of(ask, names, self._tokenizer.eos_token_id)
        return remote.begin(lambda: self._answer(ask, body, remote), put)

    def context(self, model: str) -> int | None:
        """See `ask.Engine`."""
        return self._context

    def load(self, name: str, folder: Any) -> None:
        """See `ask.Engine`. Returns after a new start; what is asked meanwhile is refused as if the queue were full."""
        file = Path(folder)
        if file.is_dir():
            if self._convert is None:
                raise UserError(f"{folder}: llama.cpp takes a LoRA as a GGUF file: `tunesmith export {folder} --to gguf --adapter-only`")
            file = self._convert(file)
        self._exchange(lambda adapters: adapters | {name: file})

    def unload(self, name: str) -> None:
        """See `ask.Engine`."""
        with self._lock:
            if name not in self._adapters:
                raise LookupError(name)
        self._exchange(lambda adapters: {each: file for each, file in adapters.items() if each != name})

    def figures(self) -> dict[str, float]:
        """What is in flight now, and llama.cpp's own figures, some seconds old."""
        with self._lock:
            process, remote, count = self._process, self._remote, len(self._adapters)
        if time.monotonic() - self._scraped > 2.0 and remote.open:
            self._scraped = time.monotonic()
            remote.spawn(self._scrape(remote))
        waiting = max(0, remote.running - self._max_answers)
        ours = {"running": remote.running - waiting, "waiting": waiting, "adapters_in_memory": count, "alive": int(process.alive)}
        return {key: float(value) for key, value in ours.items()} | self._figures

    def close(self, patience: float) -> None:
        """See `ask.Engine`."""
        with self._changing:
            self._remote.close(patience)
            self._process.stop()

    def _start(self, adapters: Mapping[str, Path]) -> tuple[Process, Remote]:
        port, key = free_port(), secrets.token_hex(16)
        given = {
            "model": str(self._model),
            "adapters": [str(file) for file in adapters.values()],
            "port": port,
            "key": key,
            "answers": self._max_answers,
            "context": self._context,
            "threads": self._threads,
            "settings": self._settings,
        }
        command = [sys.executable, str(llama_server.__file__)]
        process = Process("llama.cpp", command, {llama_server.SETTINGS: json.dumps(given)}, self._tell)
        remote = Remote(f"http://127.0.0.1:{port}", key, self._queue, lambda error: process.explain(error))
        try:
            process.wait(lambda: _answers(remote) and bool(process.lines), self._seconds)
        except BaseException:
            remote.close(0)
            raise
        self._keeps_to_grammars = any(llama_server.SPEAKS in line for line in process.lines)
        return process, remote

    def _exchange(self, change: Callable[[dict[str, Path]], dict[str, Path]]) -> None:
        """Start anew with other adapters; with those of before where it does not take them. Raises UserError."""
        with self._changing:
            before = dict(self._adapters)
            self._remote.close(RESTART_PATIENCE)
            self._process.stop()
            wanted = change(before)
            try:
                started = self._start(wanted)
            except UserError:
                self._put(self._start(before), before)
                raise
            self._put(started, wanted)

    def _put(self, started: tuple[Process, Remote], adapters: dict[str, Path]) -> None:
        with self._lock:
            (self._process, self._remote), self._adapters = started, adapters

    def _revive(self, dead: Process) -> None:
        """Start anew where it died."""
        with self._changing:
            if self._process is not dead:
                return
            self._remote.close(0)
            self._put(self._start(self._adapters), self._adapters)

    async def _scrape(self, remote: Remote) -> None:
        self._figures = read_figures(await remote.request("GET", "/metrics", seconds=5.0), FIGURES)

    async def _answer(self, ask: Ask, body: dict[str, Any], remote: Remote) -> AsyncIterator[Token | End]:
        counted = 0
        held: list[Token] = []  # without a text: perhaps the token that ends the answer, which is no part of it
        async for event in remote.events("/completion", body):
            if event.get("stop"):
                reason = event.get("stop_type")
                lost = self._pieces.unknown(event["tokens_predicted"] - counted)  # the limit came within a character
                for token in [*held, *map(Token, lost)] if reason == "limit" else []:
                    yield token
                yield End("length" if reason == "limit" else "stop")
                return
            tokens = self._tokens(event, counted, ask.logprobs)
            counted = event["tokens_predicted"]
            for token in [*held, *tokens]:
                if token.id in ask.stop_ids:
                    yield End("stop")
                    return
                if token not in tokens or event["content"]:
                    yield token
            held = [] if event["content"] else tokens

    def _tokens(self, event: Mapping[str, Any], counted: int, logprobs: int) -> list[Token]:
        """The tokens of one event, those among them whose ids it does not tell."""
        ids = [int(token) for token in event["tokens"]]
        missing = event["tokens_predicted"] - counted - len(ids)
        restored = self._pieces.before(event["content"], ids[0], missing) if missing > 0 and len(ids) == 1 else []
        found = [Token(token) for token in restored]
        said = event.get("completion_probabilities") or [{}] * len(ids)
        for token, each in zip(ids, said, strict=False):
            if logprobs < 0 or not each:
                found.append(Token(token))
            else:
                likeliest = tuple((int(top["id"]), float(top["logprob"])) for top in each["top_logprobs"][:logprobs])
                found.append(Token(token, float(each["logprob"]), likeliest))
        return found


def request_of(ask: Ask, adapters: list[str], eos: int | None) -> dict[str, Any]:
    """The body of /completion. Every adapter is named, with a scale of 0 where it is not asked for."""
    body: dict[str, Any] = {
        "prompt": list(ask.prompt_ids),
        "n_predict": ask.max_tokens,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": True,
        "samplers": SAMPLERS,
        "temperature": ask.temperature,
        "top_k": ask.top_k,
        "top_p": ask.top_p,
        "min_p": ask.min_p,
        "seed": ask.seed % 2**32,
        "repeat_last_n": len(ask.prompt_ids) + ask.max_tokens,
        "repeat_penalty": ask.repetition_penalty,
        "frequency_penalty": ask.frequency_penalty,
        "presence_penalty": ask.presence_penalty,
        "lora": [{"id": place, "scale": float(name == ask.model)} for place, name in enumerate(adapters)],
    }
    if ask.logit_bias:
        body["logit_bias"] = [[token, bias] for token, bias in ask.logit_bias.items()]
    if ask.logprobs >= 0:
        body["n_probs"] = max(1, ask.logprobs)
    if ask.constraint is not None:
        body["grammar"] = lark_of(ask.constraint)
    elif eos not in ask.stop_ids:
        body["ignore_eos"] = True
    return body


def lark_of(constraint: Constraint) -> str:
    """A constraint as a grammar that llama.cpp hands to llguidance."""
    text = grammar_of(constraint)
    if constraint.kind == "json":
        text = f"start: %json {json.dumps(json.loads(text)['grammars'][0]['json_schema'])}"
    text = in_older(text)
    return text if text.startswith("%llguidance") else "%llguidance {}\n" + text


def trained_context(model: Path) -> int | None:
    """How many positions a GGUF file says that its model knows."""
    metadata = read_header(model).metadata
    found = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return int(found) if found else None


def _answers(remote: Remote) -> bool:
    try:
        remote.ask("GET", "/health", seconds=5.0)
    except Exception:
        return False
    return True
