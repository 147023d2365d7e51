"""Runs are started again after a crash, but not after a mistake."""

import os
import signal
import threading
import time

import pytest

from e3d_jax import distributed
from e3d_jax.training import restarts


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    """Supervise a shell command, whose steps are lines in $STEPS; return its status and the number of its starts."""
    monkeypatch.setattr(restarts, "_wait", lambda seconds, received: None)
    (tmp_path / "steps").touch()
    monkeypatch.setenv("STEPS", str(tmp_path / "steps"))
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))

    def lines(name):
        return len((tmp_path / name).read_text().splitlines())

    def supervise(command, limit=3):
        status = restarts.supervise(["sh", "-c", f"echo >> $STARTS; {command}"], limit, lambda: lines("steps"))
        return status, lines("starts")

    return supervise


def test_a_run_that_ends_well_is_not_started_again(supervise):
    assert supervise("exit 0") == (0, 1)


def test_a_run_that_is_killed_is_started_again(supervise, capsys):
    assert supervise("[ $(wc -l < $STARTS) = 3 ] || kill -9 $$") == (0, 3)
    assert "the run was killed by SIGKILL after step 0; restart 2 of 3" in capsys.readouterr().out


def test_a_run_that_fails_before_its_first_step_is_not_started_again(supervise):
    assert supervise("exit 1") == (1, 1)


def test_a_run_that_fails_after_new_steps_is_started_again(supervise):
    assert supervise("[ $(wc -l < $STEPS) = 2 ] && exit 1; echo >> $STEPS; exit 1") == (1, 3)


def test_a_run_that_lost_a_process_is_started_again(supervise):
    assert supervise(f"[ $(wc -l < $STARTS) = 2 ] || exit {distributed.RETRY}") == (0, 2)


def test_restarts_are_limited(supervise):
    assert supervise("kill -9 $$", limit=2) == (-signal.SIGKILL, 3)


def test_restarts_that_get_no_further_take_ever_longer(supervise, capsys):
    supervise("[ $(wc -l < $STARTS) = 8 ] && echo >> $STEPS; kill -9 $$", limit=8)
    waits = [line.rpartition(" in ")[2] for line in capsys.readouterr().out.splitlines()]
    assert waits == ["2 s", "4 s", "8 s", "16 s", "32 s", "60 s", "60 s", "1 s"]


def test_sigterm_is_passed_on_and_ends_the_restarts(supervise):
    threading.Thread(target=lambda: (time.sleep(0.5), os.kill(os.getpid(), signal.SIGTERM))).start()
    before = signal.getsignal(signal.SIGTERM)
    assert supervise("trap 'kill $!; exit 7' TERM; echo >> $STEPS; sleep 60 & wait") == (7, 1)
    assert signal.getsignal(signal.SIGTERM) is before
