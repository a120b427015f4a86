"""`tunesmith serve [NAME=]DIR...`: one base model and adapters over it, behind the OpenAI API."""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from tunesmith.errors import Interrupted, UserError
from tunesmith.verbs.telling import tell

LOCAL = ("127.0.0.1", "::1", "localhost")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "tunesmith serve [NAME=]DIR [[NAME=]DIR ...] [--engine builtin|vllm|llamacpp] [--host ADDRESS] [--port N] [--api-key K]"
    parser.add_argument("models", metavar="[NAME=]DIR", nargs="+", help="run folders, adapter folders, or a model; all of one base")
    parser.add_argument("--model", metavar="M", help="the base, where adapters do not name it or it has moved")
    parser.add_argument("--engine", choices=("builtin", "vllm", "llamacpp"), default="builtin", help="what computes the answers (builtin)")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="8000; 0 takes a free one")
    parser.add_argument("--api-key", action="append", default=[], metavar="K", help="asked of clients; may be given more than once")
    parser.add_argument("--customers", type=Path, metavar="FILE", help="YAML: keys, the models of each, rates (docs/serve/customers.md)")
    parser.add_argument("--registry", type=Path, metavar="FILE", help="SQLite file of versions, and of which one a name points to")
    parser.add_argument("--adapters-from", action="append", type=Path, default=[], metavar="FOLDER", help="adapters below it may be loaded")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="of the base's weights")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--quantize", metavar="Q", help="builtin: nf4; llamacpp: q8_0, q4_k_m ... (f16)")
    parser.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="web pages whose scripts may ask (none)")
    parser.add_argument("--max-answers", type=int, default=32, metavar="N", help="answers that are computed at the same time (32)")
    parser.add_argument("--queue", type=int, default=256, metavar="N", help="answers that may wait; beyond, 429 (256)")
    parser.add_argument("--cache-tokens", type=int, metavar="N", help="tokens that are remembered for answers; auto: what memory is free")
    parser.add_argument("--adapter-memory", metavar="SIZE", help="memory for adapters, 2GB; the rest waits on the disk")
    parser.add_argument("--vllm-python", metavar="PYTHON", help="a Python that has vLLM, for --engine vllm")
    parser.add_argument("--engine-flag", action="append", default=[], metavar="F", help="handed to vLLM as it is: --engine-flag=--seed=1")
    parser.add_argument("--patience", type=float, default=30.0, metavar="SECONDS", help="how long answers may go on after SIGTERM (30)")


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM; then nothing new is taken, and what is being answered may end."""
    if arguments.host not in LOCAL and not arguments.api_key and arguments.customers is None:
        raise UserError(
            f"--host {arguments.host} is reached by other machines, and no key is asked of them",
            "give --api-key K (or --customers FILE), or leave --host at 127.0.0.1",
        )
    _size(arguments.adapter_memory)
    from tunesmith.serve import listening, offers
    from tunesmith.serve.catalog import Catalog
    from tunesmith.serve.customers import Customers
    from tunesmith.serve.http.admin import routes
    from tunesmith.serve.http.app import make_app
    from tunesmith.serve.loading import Loading, follow
    from tunesmith.serve.metrics import Metrics
    from tunesmith.serve.registry import Registry

    listening.needed()
    signal.signal(signal.SIGTERM, _ended)
    customers = Customers(arguments.customers, arguments.api_key)
    registry = Registry(arguments.registry) if arguments.registry else None
    offered = offers.read(arguments.models, arguments.model)
    address = listening.bound(arguments.host, arguments.port)  # a taken port should not cost the loading time
    try:
        engine, fed = _ENGINES[arguments.engine](offered, arguments)
    except BaseException:
        address.close()
        raise
    try:
        catalog = Catalog(fed.base)
        for name, found in offered.adapters.items():
            catalog.add(fed.adapter(name, found))
        metrics = Metrics(engine.figures, lambda name: catalog.find(name) is not None)
        folders = [*arguments.adapters_from, *[Path(found.folder or found.adapter or "") for found in offered.adapters.values()]]
        loading = Loading(engine, catalog, lambda name, folder: fed.adapter(name, offers.found(folder)))
        if registry is not None:
            given = {name: Path(found.folder or found.adapter or "") for name, found in offered.adapters.items()}
            for sentence in follow(loading, registry, given):
                tell(sentence)
        admin = routes(engine, catalog, customers, registry, loading.opened, folders)
        app = make_app(engine, catalog, customers, metrics, admin, origins=arguments.allow_origin)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, lambda *_: _reload(customers))
        names = ", ".join(model.name for model in catalog.every())
        print(f"{names}: http://{listening.spelled(address)}/v1 ({engine.name})", flush=True)
        listening.serve(app, address, arguments.patience, lambda: engine.close(0))
    finally:
        engine.close(arguments.patience)
    return 0


def _builtin(offered: Any, arguments: argparse.Namespace) -> tuple[Any, Any]:
    import torch

    from tunesmith.hardware import physical_cores
    from tunesmith.serve import offers
    from tunesmith.serve.builtin.engine import Builtin
    from tunesmith.tuned import open_tuned

    if arguments.quantize not in (None, "nf4"):
        raise UserError(f"--quantize {arguments.quantize}: the builtin engine takes nf4, or nothing")
    torch.set_num_threads(physical_cores())  # as in training: two threads of one core share what a product needs
    sys.setswitchinterval(0.001)  # seconds: the engine's thread and the one that answers clients take turns
    offers.check(offered)
    tell(f"loading {offered.base.name}")
    nf4 = offered.nf4 or arguments.quantize == "nf4"
    opened = open_tuned(offered.base.base, device=arguments.device, dtype=arguments.dtype, nf4=nf4)
    fed = offers.Feeding(opened.located, opened.tokenizer, opened.model.config, offered.name, offered.base.run)
    engine = Builtin(
        opened.base,
        opened.located,
        base_name=fed.base.name,
        max_answers=arguments.max_answers,
        cache_tokens=arguments.cache_tokens,
        queue=arguments.queue,
        adapter_bytes=_size(arguments.adapter_memory),
        tell=tell,
    )
    try:
        for name, found in offered.adapters.items():
            engine.load(name, found.adapter)
    except BaseException:
        engine.close(0)
        raise
    return engine, fed


def _vllm(offered: Any, arguments: argparse.Namespace) -> tuple[Any, Any]:
    from tunesmith.export.prepared import adapter_for_vllm
    from tunesmith.serve.external.vllm import Vllm

    fed, folder = _located(offered, arguments)
    engine = Vllm(
        folder,
        {name: found.adapter for name, found in offered.adapters.items()},
        base_name=fed.base.name,
        python=arguments.vllm_python,
        flags=arguments.engine_flag,
        dtype=arguments.dtype,
        max_answers=arguments.max_answers,
        queue=arguments.queue,
        prepare=lambda adapter: adapter_for_vllm(adapter, folder),
        tell=tell,
    )
    return engine, fed


def _llamacpp(offered: Any, arguments: argparse.Namespace) -> tuple[Any, Any]:
    from tunesmith.export.prepared import adapter_gguf, base_gguf
    from tunesmith.serve.external.llamacpp import LlamaCpp

    fed, folder = _located(offered, arguments)
    adapters = {name: adapter_gguf(found.adapter, folder) for name, found in offered.adapters.items()}
    engine = LlamaCpp(
        base_gguf(folder, arguments.quantize, tell),
        adapters,
        base_name=fed.base.name,
        tokenizer=fed.tokenizer,
        max_answers=arguments.max_answers,
        queue=arguments.queue,
        convert=lambda adapter: adapter_gguf(adapter, folder),
        tell=tell,
    )
    return engine, fed


def _located(offered: Any, arguments: argparse.Namespace) -> tuple[Any, Path]:
    """How the models are fed, and the base's folder; nothing is loaded by us."""
    from tunesmith.models.source import locate
    from tunesmith.serve import offers

    if offered.nf4:
        tell(f"the adapters were trained over NF4 weights; {arguments.engine} puts them beside the original ones")
    offers.check(offered)
    located = locate(offered.base.base)
    return offers.feeding(located, offered.name, offered.base.run), located.folder


_ENGINES = {"builtin": _builtin, "vllm": _vllm, "llamacpp": _llamacpp}


def _size(text: str | None) -> int | None:
    from tunesmith.hardware import bytes_of

    if text is not None and bytes_of(text) is None:
        raise UserError(f"--adapter-memory {text}: write a size such as 2GB or 512MiB")
    return None if text is None else bytes_of(text)


def _ended(number: int, frame: Any) -> None:
    raise Interrupted(128 + number, "stopped")


def _reload(customers: Any) -> None:
    try:
        customers.reload()
        tell("the customers' file was read again")
    except UserError as error:
        tell("\n  ".join(["the customers' file stays as it was:", *error.problems]))
