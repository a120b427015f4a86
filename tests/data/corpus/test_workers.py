import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from tunesmith.data.corpus.workers import Workers
from tunesmith.data.files.row import Unreadable
from tunesmith.errors import ProofFailed, UserError

ROOT = Path(__file__).parents[3]


# --- what the workers do; each is found by its name in the other process ---


def later_first(item: tuple[int, float]) -> tuple[int, int]:
    number, seconds = item
    time.sleep(seconds)
    return number, os.getpid()


def fail(kind: str) -> None:
    if kind == "user":
        raise UserError("a.jsonl:3: no answer", "mend it")
    if kind == "proof":
        raise ProofFailed("a.jsonl:4: the mask is wrong")
    if kind == "unreadable":
        raise Unreadable("a.jsonl", 5, "cut short", "utf-8")
    raise ZeroDivisionError(kind)


def speak(text: str) -> str:
    print("a stray print")
    os.write(1, b"one from compiled code")
    subprocess.run([sys.executable, "-c", "print('one from a process of its own')"], check=True)
    return text * 2


def square(number: int) -> int:
    return number * number


def end_if(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def depth(nested: list) -> int:
    count = 0
    while nested:
        nested, count = nested[0], count + 1
    return count


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def pids(workers: Workers) -> list[int]:
    return [process.pid for process in workers._processes]


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends in time; one that has ended but was not fetched yet has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_results_come_in_the_order_of_the_items_from_several_processes():
    items = [(number, 0.1 if number % 3 == 0 else 0.0) for number in range(20)]
    with Workers(later_first, 2) as workers:
        results = list(workers.map(items))
    assert [number for number, _ in results] == list(range(20))
    assert {pid for _, pid in results} == set(pids(workers)) and os.getpid() not in pids(workers)


def test_without_processes_the_work_is_done_here():
    with Workers(later_first, 0) as workers:
        assert list(workers.map([(1, 0.0), (2, 0.0)])) == [(1, os.getpid()), (2, os.getpid())]
        with pytest.raises(UserError) as caught, Workers(fail, 0) as failing:
            failing.submit("user").result()
    assert caught.value.problems == ("a.jsonl:3: no answer", "mend it")


def test_items_are_taken_only_as_they_are_needed():
    taken: list[int] = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    with Workers(square, 2) as workers:
        results = workers.map(items())
        assert next(results) == 0 and len(taken) <= 6
        assert next(results) == 1 and len(taken) <= 7


def test_what_the_user_can_mend_comes_out_as_itself():
    with Workers(fail, 1) as workers:
        with pytest.raises(UserError) as caught:
            workers.submit("user").result()
        assert type(caught.value) is UserError and caught.value.problems == ("a.jsonl:3: no answer", "mend it")
        with pytest.raises(ProofFailed, match="mask is wrong") as proof:
            workers.submit("proof").result()
        assert proof.value.exit_code == 3
        with pytest.raises(Unreadable) as unreadable:
            workers.submit("unreadable").result()
        assert (unreadable.value.line, unreadable.value.encoding, str(unreadable.value)) == (5, "utf-8", "a.jsonl:5: cut short")
        with pytest.raises(RuntimeError, match=r"(?s)in a tokenising process.*in fail.*ZeroDivisionError: ours"):
            workers.submit("ours").result()
        with pytest.raises(UserError):  # and the process goes on
            workers.submit("user").result()


def test_a_stray_print_harms_nothing(capfd):
    with Workers(speak, 1) as workers:
        assert list(workers.map(["a", "b" * 100_000])) == ["aa", "b" * 200_000]
    said = capfd.readouterr()
    assert "a stray print" in said.err and "compiled code" in said.err and "process of its own" in said.err and not said.out


def test_what_is_nested_too_deeply_to_be_sent_is_worked_on_here():
    nested: list = []
    for _ in range(900):
        nested = [nested]
    with Workers(depth, 1) as workers:
        assert list(workers.map([[[]], nested, [[[]]]])) == [1, 900, 2]


def test_a_killed_worker_is_an_error_that_says_what_to_do():
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"killed, most likely for want of memory.*data\.workers=0"), Workers(end_if, 2) as workers:
        list(workers.map(range(10)))
    assert time.monotonic() - begun < 10
    assert all(gone(pid, 1) for pid in pids(workers))


def test_work_that_cannot_be_made_again_is_told_apart_from_memory(capfd, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def work(item): return item\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    workers = Workers(only_here.work, 0)
    workers.close()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    with pytest.raises(UserError, match="status 1"), Workers(only_here.work, 1) as workers:
        workers.submit(1).result()
    assert "No module named 'only_here'" in capfd.readouterr().err


def test_the_users_own_files_do_not_stand_for_the_library(tmp_path, monkeypatch):
    """`random.py` beside the data must not be imported, where the command itself would not import it."""
    for name in ("random", "pickle", "signal", "tunesmith"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working folder')\n")
    monkeypatch.chdir(tmp_path)
    with Workers(square, 1) as workers:
        assert workers.submit(3).result() == 9


def test_closing_with_work_outstanding_does_not_hang():
    workers = Workers(sleep, 2)
    futures = [workers.submit(60.0) for _ in range(6)]
    time.sleep(0.3)
    begun = time.monotonic()
    workers.close()
    assert time.monotonic() - begun < 5 and all(future.done() for future in futures)
    assert all(gone(pid, 1) for pid in pids(workers))
    workers.close()  # twice is as good as once


def test_closing_at_once_does_not_hang():
    begun = time.monotonic()
    for _ in range(3):
        Workers(square, 2).close()
    assert time.monotonic() - begun < 5


def test_nothing_is_left_where_a_process_cannot_be_started(monkeypatch):
    before = {process.pid for process in psutil.Process().children()}
    really, started = subprocess.Popen, list[subprocess.Popen]()

    def second_fails(*arguments, **how):
        if started:
            raise OSError(12, "Cannot allocate memory")
        started.append(really(*arguments, **how))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", second_fails)
    with pytest.raises(UserError, match=r"Cannot allocate memory.*data\.workers=0"):
        Workers(square, 2)
    assert gone(started[0].pid, 5) and {process.pid for process in psutil.Process().children()} <= before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tokenise")]


def test_ctrl_c_does_not_reach_the_workers():
    with Workers(square, 2) as workers:
        assert list(workers.map([1, 2])) == [1, 4]
        if os.name == "posix":
            assert not {os.getpgid(pid) for pid in pids(workers)} & {os.getpgrp()}  # a terminal signals a whole group


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from tests.data.corpus.test_workers import sleep
        from tunesmith.data.corpus.workers import Workers
        workers = Workers(sleep, 2)
        workers.submit(0.0).result()
        workers.submit(1.0)
        print(*[process.pid for process in workers._processes], flush=True)
        time.sleep(60)
    """)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, text=True, cwd=tmp_path)
    assert parent.stdout is not None
    children = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(children) == 2 and all(gone(pid) for pid in children)


def test_calm_workers_still_work():
    with Workers(square, 1) as workers:
        workers.calm()
        if hasattr(os, "SCHED_IDLE"):
            assert os.sched_getscheduler(pids(workers)[0]) == os.SCHED_IDLE
        assert workers.submit(5).result() == 25
