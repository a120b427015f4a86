"""The same work on many things by several processes, the results in order.

Processes, since tokenising is half Python; started as programs of their own (`python -m tunesmith.data.corpus.workers`), since
a fork of a process with running threads may hang and a spawned one would import the caller's script again. They speak
pickle over their pipes with this process alone, and end when it ends.
"""

import gc
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Lock
from typing import IO, Any

from tunesmith.errors import UserError

Work = Callable[[Any], Any]
# Ctrl-C in a terminal goes to a whole group of processes; what becomes of the workers is for this process to say.
_APART: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {"creationflags": 0x200}  # CREATE_NEW_PROCESS_GROUP


class Workers:
    """`count` processes that each hold `work`, a callable that can be pickled; none at all where `count` is 0."""

    def __init__(self, work: Work, count: int):
        self._work, self._here = work, Lock()
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        held = pickle.dumps(work, protocol=pickle.HIGHEST_PROTOCOL) if count else b""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads = ThreadPoolExecutor(max(1, count), thread_name_prefix="tokenise")
        try:
            for _ in range(count):
                self._processes.append(_start())
        except OSError as error:
            self.close()
            raise UserError(f"no tokenising process can be started ({error.strerror}); data.workers=0 does without") from None
        for process in self._processes:
            self._threads.submit(self._hand_over, process, held)

    def submit(self, item: Any) -> Future[Any]:
        """`work(item)`, done as soon as a process is free; UserErrors are raised by the future's `result`."""
        return self._threads.submit(self._do if self._processes else self._work, item)

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """`work(item)` of each item, in order. Items are taken as they are needed: what waits does not grow."""
        waiting: deque[Future[Any]] = deque()
        for item in items:
            waiting.append(self.submit(item))
            if len(waiting) > 2 * len(self._processes):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def calm(self) -> None:
        """From now on work only when the machine has nothing else to do."""
        for process in self._processes:
            _yield_to_others(process.pid)

    def close(self) -> None:
        """Stop at once; what is not done is not done."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close(pipe)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _hand_over(self, process: "subprocess.Popen[bytes]", held: bytes) -> None:
        assert process.stdin is not None
        try:
            _send(process.stdin, held)
        finally:
            self._idle.put(process)

    def _do(self, item: Any) -> Any:
        try:
            content = pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
        except RecursionError:  # nested too deeply to be sent
            with self._here:
                return self._work(item)
        process = self._idle.get()
        assert process.stdin is not None and process.stdout is not None
        try:
            _send(process.stdin, content)
            done, result = pickle.loads(_receive(process.stdout))
        except (OSError, EOFError):
            raise UserError(f"a tokenising process ended ({_ending(process)}); data.workers=0 does without") from None
        finally:
            self._idle.put(process)
        if done:
            return result
        raise result


def _start() -> "subprocess.Popen[bytes]":
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    alone = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tunesmith.data.corpus.workers"],  # -P: a random.py in the user's folder is not the library's
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | alone,
        **_APART,
    )


def _ending(process: "subprocess.Popen[bytes]") -> str:
    """Why a process is no more, as far as it is known."""
    try:
        status = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "it closed its pipe"
    if os.name == "posix" and status == -signal.SIGKILL:
        return "killed, most likely for want of memory"
    return f"status {status}; what it last said stands above"


def _yield_to_others(pid: int) -> None:
    try:
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # not Linux, or the process has ended
        import psutil

        try:
            psutil.Process(pid).nice(19 if os.name == "posix" else psutil.IDLE_PRIORITY_CLASS)  # type: ignore[attr-defined]
        except psutil.Error:
            return


def _send(pipe: IO[bytes], content: bytes) -> None:
    pipe.write(len(content).to_bytes(8, "little"))
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    size = pipe.read(8)
    if len(size) < 8:
        raise EOFError
    content = pipe.read(int.from_bytes(size, "little"))
    if len(content) < int.from_bytes(size, "little"):
        raise EOFError
    return content


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:  # what stood in its buffer has nobody to go to
        return


def _serve() -> None:
    """The life of a worker: take the work, then do it on each thing that comes, until the pipe is closed."""
    inlet, outlet = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print, of compiled code too, must not stand among the results
    try:
        work = pickle.loads(_receive(inlet))
        gc.freeze()  # what was imported stays; looking through it for garbage again and again takes a twentieth of the time
        gc.set_threshold(100_000, 20, 20)
        while True:
            item = pickle.loads(_receive(inlet))
            try:
                answer: tuple[bool, Any] = (True, work(item))
            except UserError as error:
                answer = (False, error)
            except Exception:
                answer = (False, RuntimeError(f"in a tokenising process:\n{traceback.format_exc()}"))
            _send(outlet, pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    _serve()
