import os
import signal

import pytest

from tunesmith.verbs.signals import stopping


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noted_and_the_step_goes_on(number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with stopping() as asked:
        assert asked() == 0
        os.kill(os.getpid(), number)
        assert asked() == code
    assert "stopping after this step, a checkpoint will be saved (Ctrl-C again: at once)" in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stopping() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked() == 130
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_sigterm_waits_for_the_checkpoint_too() -> None:
    """Schedulers send it several times before they kill."""
    with stopping() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() == 143
