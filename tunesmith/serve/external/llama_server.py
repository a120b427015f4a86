"""Runs llama.cpp's own server in a process of its own, out of the `xllamacpp` wheel. Started by `llamacpp.py`, as a script.

A process of its own, because a failed assertion in it ends the process that it is in. Settings come as JSON in an environment
variable: a command line can be read by everybody on the machine, and the key is among them.
"""

import json
import os
import signal
import sys
import threading

SETTINGS = "TUNESMITH_LLAMACPP"
ERRORS = 1  # llama.cpp's measure of what is printed; warnings come with every request
SPEAKS = "grammars go to llguidance"


def main() -> int:
    import xllamacpp

    given = json.loads(os.environ.pop(SETTINGS))
    params = xllamacpp.CommonParams()
    params.model.path = given["model"]
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], given["port"], [given["key"]]
    params.n_parallel, params.n_ctx = given["answers"], given["context"] * given["answers"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given["threads"]
    params.n_threads_http = given["answers"] + 8  # a stream holds one for as long as it lasts
    # scale 0: an adapter acts in requests that name it, and in no other
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in given["adapters"]]
    params.verbosity, params.endpoint_metrics, params.endpoint_slots, params.warmup, params.ui = ERRORS, True, False, False, False
    # kept prompts are found by their tokens alone: those of another adapter would be taken
    params.cache_ram_mib, params.cache_idle_slots = 0, False
    params.ctx_shift, params.fit_params, params.kv_unified = False, False, False
    for name, value in given["settings"].items():
        setattr(params, name, value)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = xllamacpp.Server(params)
    print(f"llama.cpp listens on {server.listening_address}{f'; {SPEAKS}' if _speaks_lark(xllamacpp) else ''}", flush=True)
    ended.wait()
    sys.stdout.flush()
    os._exit(0)  # its threads may still be in a long computation


def _speaks_lark(xllamacpp: object) -> bool:
    """Whether this build keeps answers to grammars by llguidance, as the usual wheels do."""
    return str(xllamacpp.json_schema_to_grammar({"type": "object"})).startswith("%llguidance")  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
