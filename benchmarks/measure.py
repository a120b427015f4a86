"""What the benchmarks share: a program run and measured from outside, a run folder's figures, a results file.

Nothing here knows who is measured: peers and Tunesmith are started, timed and sampled in the same way.
"""

import datetime
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import events, hardware

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
WORK = ROOT / "build" / "bench"
MODEL = "builtin:smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class Measured:
    """One process from its start to its end."""

    seconds: float
    peak_memory_bytes: int  # of the process on the host
    output: str  # stdout; stderr goes to `log`
    begun: float = 0.0  # wall clock
    device_bytes: int = 0  # the most that the GPU had in use, by whomever


class Failed(SystemExit):
    """A program that ended with an error, with the end of its log."""


class TooLong(Failed):
    """A program that was stopped at its limit."""


def run(command: Sequence[str], *, cwd: Path, threads: int, log: Path, limit: float | None = None, gpu: bool = False) -> Measured:
    """Run a program with `threads` threads and sample its memory every 20 ms; on a GPU also what the device has in use.

    Raises Failed, a SystemExit, with the log's end where it fails, and TooLong after `limit` seconds.
    """
    numbers = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_NUM_THREADS")}
    path = {"PYTHONPATH": str(ROOT)} if command[0] == sys.executable else {}  # ours; a peer must not see our packages
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **numbers, **path, "HF_HUB_OFFLINE": "1"}
    with open(log, "w", encoding="utf-8") as stderr:
        begun, clock = time.time(), time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        )
        # reading a process's mappings stops its page faults meanwhile: twice a second took a fifth of the speed away
        with hardware.MemorySampler(process=process.pid, mapped_every=10) as memory, DeviceSampler(gpu) as device:
            try:
                output, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                _end(process)
                raise TooLong(f"stopped after {limit:.0f} s") from None
            except BaseException:
                _end(process)
                raise
        seconds = time.perf_counter() - clock
    if process.returncode:
        tail = "".join(log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-20:])
        raise Failed(f"{' '.join(command)}\nended with exit code {process.returncode}; {log} ends with\n{tail}")
    return Measured(seconds, memory.peak_bytes, output, begun, device.peak_bytes)


def _end(process: subprocess.Popen[str]) -> None:
    """The program and what it started: they are a session of their own."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


class DeviceSampler:
    """The most memory in use on the first GPU, asked of the driver twice a second: a context of our own would count too."""

    def __init__(self, wanted: bool):
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True) if wanted else None

    def __enter__(self) -> "DeviceSampler":
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        words = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
        while not self._stop.wait(0.5):
            asked = subprocess.run(words, capture_output=True, text=True)
            if asked.returncode == 0 and asked.stdout.strip().isdigit():
                self.peak_bytes = max(self.peak_bytes, int(asked.stdout) * 1024**2)


def tunesmith(*words: str) -> list[str]:
    """The command line of a verb, with the Python that runs this script."""
    return [sys.executable, "-m", "tunesmith", *words]


def first_rows(data: Path, count: int, target: Path) -> int:
    """The first rows of a JSON list as a file of their own, which everyone measured reads; how many there were."""
    rows = json.loads(data.read_text(encoding="utf-8"))[:count]
    target.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return len(rows)


def figures(folder: Path) -> dict[str, float]:
    """What a run folder says of its speed. `loop_seconds` is from the first step's beginning to the last one's end, so that it
    compares with the training time that trainers report."""
    happened = list(events.read_events(folder / "events.jsonl"))
    started = next(event for event in happened if isinstance(event, events.Started))
    steps = [event for event in happened if isinstance(event, events.Step)]
    finished = next(event for event in happened if isinstance(event, events.Finished))
    return {
        "steps": finished.steps,
        "tokens": finished.tokens,
        "learned_tokens": finished.learned_tokens,
        "loss": finished.loss,
        "loop_seconds": steps[-1].time - started.time,
        "tokens_per_second": finished.tokens_per_second,
        "seconds_to_first_step": finished.seconds_to_first_step,
        "peak_memory_bytes": finished.peak_memory_bytes,
        "matmul_flops": started.matmul_flops,
        "training_flops": finished.tokens_per_second * started.flops_per_token,
    }


def medians(rounds: Iterable[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over the rounds."""
    found = list(rounds)
    return {key: statistics.median(each[key] for each in found) for key in found[0]}


def write(name: str, content: dict[str, Any], folder: Path = RESULTS) -> Path:
    """benchmarks/results/NAME.json, with the machine and the day. Paths of this machine have no place in it."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.json"
    whole = {"measured": datetime.date.today().isoformat(), "machine": hardware.describe(), **content}
    text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    assert str(ROOT) not in text and str(Path.home()) not in text, "a path of this machine in a results file"
    target.write_text(text, encoding="utf-8")
    return target


def fresh(name: str) -> Path:
    """An empty folder below build/bench for one benchmark's files."""
    folder = WORK / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True)
    return folder
