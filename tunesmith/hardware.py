"""Devices, memory, dtypes, measured speed: asked here and nowhere else."""

import ctypes
import os
import platform
import re
import threading
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch

from tunesmith.errors import UserError

WEIGHT_FILES = (".safetensors", ".gguf")


def device(name: str) -> torch.device:
    """`auto` is the first CUDA GPU where there is one, else the CPU. Raises UserError for a device that is not there."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if gpus else torch.device("cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise UserError(f"model.device: no device is called {name!r}; write auto, cpu, cuda or cuda:1") from None
    if chosen.type == "cuda":
        if not gpus:
            why = "this torch is built for the CPU only" if torch.version.cuda is None else "no CUDA GPU is visible"
            raise UserError(f"model.device: {name}: {why}; `tunesmith doctor` shows what this machine has")
        if (chosen.index or 0) >= gpus:
            raise UserError(f"model.device: {name}: this machine has {gpus} GPU{'s' * (gpus > 1)}, cuda:0 to cuda:{gpus - 1}")
        return torch.device("cuda", chosen.index or 0)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"model.device: {name}: no Apple GPU here")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"model.device: {name}: only cpu, cuda and mps are supported")
    return chosen


def default_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """bfloat16 where the hardware multiplies it fast, else float32; and the reason in words."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, f"bfloat16: CUDA capability {major}.{minor} has bfloat16 matrix units"
        return torch.float32, f"float32: CUDA capability {major}.{minor} has no bfloat16 matrix units (8.0 and later have)"
    if device.type == "mps":
        return torch.float32, "float32: bfloat16 is not proved on Apple GPUs"
    has = sorted(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    if has:
        return torch.bfloat16, f"bfloat16: this CPU multiplies it in hardware ({', '.join(has)})"
    return torch.float32, "float32: this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16, or bf16 on ARM)"


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Instruction sets of the CPU; empty where the system does not list them."""
    for line in _lines(cpuinfo):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    for line in _lines(cpuinfo):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def physical_cores(sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> int:
    """Physical cores that this process may use: of its affinity, hyper-threads once, at most the container's CPU quota.

    More threads than this make matrix products slower.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        topology = sys / f"devices/system/cpu/cpu{cpu}/topology"
        core = _text(topology / "core_id")
        cores.add((_text(topology / "physical_package_id"), core) if core else cpu)
    quota = _cpu_quota(sys, proc)
    return max(1, min(len(cores), int(quota) if quota else len(cores)))


def total_memory(device: torch.device) -> int:
    """Bytes that the device, or the container on a CPU, has altogether."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    limits = [limit for limit, _ in _memory_limits()]
    return min([psutil.virtual_memory().total, *limits])


def give_threads_back() -> None:
    """End the team of threads that this thread's products have used, so that another thread's may be fast.

    GNU's OpenMP counts the threads of all teams, also of those that do nothing. Beyond the number of processors every team sleeps between
    two products in place of waiting a moment, which made steps of an answer twice as long. The next product makes a new team.
    """
    if (library := _openmp()) is not None:
        library.omp_pause_resource_all(1)  # omp_pause_soft


@cache
def _openmp() -> Any:
    """The OpenMP that torch has loaded, where it is one that can pause (OpenMP 5.0); else None."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split(maxsplit=5)[-1].strip() for line in maps if "libgomp" in line}
        torchs = str(Path(torch.__file__).parent)  # other packages bring one of their own
        library = ctypes.CDLL(next(iter(sorted(paths, key=lambda path: not path.startswith(torchs)))))
        library.omp_pause_resource_all  # noqa: B018  AttributeError where it is older
    except (OSError, StopIteration, AttributeError):
        return None
    return library


_UNITS = {"MB": 1e6, "GB": 1e9, "MiB": 2**20, "GiB": 2**30}


def bytes_of(text: str) -> int | None:
    """Bytes of a size such as 8GB or 512 MiB; None for another text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG]i?B)", text)
    return None if found is None else int(float(found[1]) * _UNITS[found[2]])


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated now without pushing others out; on a CPU what the container's limit leaves counts too."""
    if device.type == "cuda":
        # what torch's allocator holds without using it is free for this process
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    left = [limit - used for limit, used in _memory_limits()]
    return max(0, min([psutil.virtual_memory().available, *left]))


def matmul_flops(device: torch.device, dtype: torch.dtype, m: int, n: int, k: int) -> float:
    """Measured FLOP/s of a product (m, k) @ (k, n), the best of several, in under 0.3 s.

    m, the rows, is lowered where one product would take long: the rate hardly depends on it once it is in the hundreds.
    """
    right_KN = torch.randn(k, n, device=device).to(dtype)
    few = min(_seconds(device, torch.randn(16, k, device=device).to(dtype), right_KN) for _ in range(2))
    rows = max(16, min(m, int(16 * 0.04 / few)))
    left_MK = torch.randn(rows, k, device=device).to(dtype)
    best, end = float("inf"), time.perf_counter() + 0.15
    while time.perf_counter() < end:
        best = min(best, _seconds(device, left_MK, right_KN))
    return 2.0 * rows * n * k / best


def _seconds(device: torch.device, left_MK: torch.Tensor, right_KN: torch.Tensor) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    with torch.inference_mode():
        wait()
        start = time.perf_counter()
        torch.mm(left_MK, right_KN)
        wait()
        return time.perf_counter() - start


def describe() -> dict[str, Any]:
    """The machine, for the files of `benchmarks/`: plain values, no host name and no paths."""
    import bitsandbytes
    import transformers

    cpu = torch.device("cpu")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "cpu": cpu_name(),
        "physical_cores": physical_cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": sorted(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}),
        "memory_bytes": total_memory(cpu),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"} for gpu in gpus],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bitsandbytes": bitsandbytes.__version__,
    }


class MemorySampler:
    """Peak memory of a process: `with MemorySampler() as memory: ...; memory.peak_bytes`.

    On a CPU: the largest sum, sampled every 20 ms, of anonymous and shared memory, and at each `mark()` (call it where a
    phase ends) that sum plus the resident pages of mapped weight files. On a GPU: torch's `max_memory_allocated`.
    `process` is another process's id, so that a peer is measured in the same way; `mapped_every` seconds then takes the
    place of the marks that it cannot make.
    """

    def __init__(self, device: torch.device | None = None, process: int | None = None, mapped_every: float | None = None):
        self.device = device or torch.device("cpu")
        self.process = process or os.getpid()
        self.mapped_every = mapped_every
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)

    @property
    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else self._peak

    def mark(self) -> int:
        """Sample now, mapped weight files too; the peak up to now in bytes."""
        if self.device.type != "cuda":
            self._sample(mapped=True)
        return self.peak_bytes

    def __enter__(self) -> "MemorySampler":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._sample(mapped=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.device.type != "cuda":
            self._stop.set()
            self._thread.join()
            self._sample(mapped=True)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(0.02):
            due = self.mapped_every is not None and time.monotonic() - last > self.mapped_every
            last = time.monotonic() if due else last
            self._sample(mapped=due)

    def _sample(self, mapped: bool) -> None:
        self._peak = max(self._peak, private_bytes(self.process) + (mapped_weight_bytes(self.process) if mapped else 0))


def private_bytes(process: int, proc: Path = Path("/proc")) -> int:
    """Anonymous and shared memory of a process in bytes; 0 when it has ended. Without /proc: its unique or resident set."""
    if not (proc / "self").exists():
        return _psutil_bytes(process)
    kilobytes = 0
    for line in _lines(proc / str(process) / "status"):
        if line.startswith(("RssAnon:", "RssShmem:")):
            kilobytes += int(line.split()[1])
    return kilobytes * 1024


def mapped_weight_bytes(process: int, proc: Path = Path("/proc")) -> int:
    """Resident pages of mapped *.safetensors and *.gguf files in bytes; their private copies are anonymous, not counted here."""
    kilobytes, weights = 0, False
    for line in _lines(proc / str(process) / "smaps"):
        if "-" in line.split(" ", 1)[0]:  # 7f00-7f01 r--p 00000000 fd:00 1234   /path
            weights = line.removesuffix(" (deleted)").endswith(WEIGHT_FILES)
        elif weights and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
        elif weights and line.startswith("Anonymous:"):
            kilobytes -= int(line.split()[1])
    return kilobytes * 1024


def _psutil_bytes(process: int) -> int:
    try:
        found = psutil.Process(process)
        return int(getattr(found.memory_full_info(), "uss", 0)) or int(found.memory_info().rss)
    except psutil.Error:
        return 0


def _cpu_quota(sys: Path, proc: Path) -> float | None:
    """CPUs that the container may use at once, from cgroup version 2 or 1; None without a limit."""
    quotas = []
    for folder in _cgroups("", sys, proc):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    for folder in _cgroups("cpu", sys, proc):
        text, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if text.isdigit() and period.isdigit():
            quotas.append(int(text) / int(period))
    return min(quotas, default=None)


def _memory_limits(sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> list[tuple[int, int]]:
    """(limit, used) in bytes for every cgroup with a limit around this process. File cache that can go is not used."""
    limits = []
    for controller, limit_name, used_name, cache_name in [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ]:
        for folder in _cgroups(controller, sys, proc):
            limit, used = _text(folder / limit_name), _text(folder / used_name)
            if limit.isdigit() and used.isdigit() and int(limit) < 1 << 60:  # version 1 writes a huge number for none
                cache = [line.split()[1] for line in _lines(folder / "memory.stat") if line.split()[:1] == [cache_name]]
                limits.append((int(limit), int(used) - int(cache[0] if cache else 0)))
    return limits


def _cgroups(controller: str, sys: Path, proc: Path) -> list[Path]:
    """The folders of this process's cgroup and of those around it. `controller` "" is version 2."""
    folders: list[Path] = []
    for line in _lines(proc / "self/cgroup"):
        _, names, path = line.split(":", 2)
        if controller in names.split(",") or (not controller and not names):
            roots = [sys / "fs/cgroup" / controller] if controller else [sys / "fs/cgroup", sys / "fs/cgroup/unified"]
            inner = Path(path.lstrip("/"))
            folders += [root / part for root in roots for part in [inner, *inner.parents]]
    # inside a container the path may be the host's, while its own limits stand at the root
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _text(path: Path) -> str:
    return " ".join(_lines(path)).strip()


def _lines(path: Path) -> Iterable[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
