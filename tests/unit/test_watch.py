"""How ranks find each other and whom they name when one is missing; the store is torch's own."""

from __future__ import annotations

import os
import signal
import socket
import threading
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from launcher.ranks import stop as module_stop
from launcher.ranks import watch as module
from launcher.ranks.rendezvous import Meeting
from launcher.ranks.stop import DRIVER_SIGNALS, Stopped, StopRequest, ask_to_stop
from launcher.ranks.watch import gather_ranks, open_store, watching
from prompt_tuning.errors import UserError

HOSTS = ["a", "b", "c", "d"]


@pytest.fixture
def store():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(module, "_say", lines.append)
    return lines


def test_ranks_learn_each_others_hosts(store):
    found = {}
    threads = [
        threading.Thread(target=lambda rank=rank: found.update({rank: gather_ranks(store.clone(), rank, 3, 20)}))
        for rank in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(3), [socket.gethostname()] * 3)


def test_ranks_that_do_not_come_are_named_by_the_lowest_that_did(store):
    store.set("host/1", "gpu7")
    with pytest.raises(UserError, match=r"rank 2, 3 of 4 did not come within 0 s; the others are on gpu7, "):
        gather_ranks(store, 0, 4, 0.1)
    with pytest.raises(SystemExit):
        gather_ranks(store, 1, 4, 0.1)


def test_a_store_that_goes_while_ranks_gather_is_said():
    class Gone:
        def set(self, key, value):
            pass

        def wait(self, keys, limit):
            raise RuntimeError("connection reset")

        def check(self, keys):
            raise RuntimeError("connection reset")

    with pytest.raises(UserError, match="rank 0, or its launcher, is gone before all ranks have come"):
        gather_ranks(Gone(), 1, 2, 20)


def test_a_meeting_place_where_nobody_listens_is_named():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = Meeting("127.0.0.1", probe.getsockname()[1], is_kept_by_launcher=False)
        with pytest.raises(UserError, match=rf"cannot meet on 127\.0\.0\.1:{place.port} .* look at what rank 0 prints"):
            open_store(place, 1, 0.5)
        with pytest.raises(UserError, match="have to be a free port of the host of rank 0"):
            open_store(place, 0, 0.5)


@pytest.mark.parametrize(
    ("beats", "why"),
    [
        ({2: b"7", 3: b"8"}, "rank 2 on c and rank 3 on d died without a word"),
        ({2: b"ended", 3: b"8"}, "rank 2 on c ended; the message above or below says why"),
    ],
)
def test_a_lost_rank_is_named_once(store, said, beats, why):
    for rank, beat in {0: b"0", 1: b"0", **beats}.items():
        store.set(f"beat/{rank}", beat)
    with watching(store, 0, HOSTS, 0.5) as watch, watching(store.clone(), 1, HOSTS, 0.5) as other:
        threads = [threading.Thread(target=one.explain_loss, args=["connection reset"]) for one in (watch, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(said) == 1 and said[0].startswith(why), said
    assert store.get("beat/0") != b"ended", "who was torn along is not the reason"


def test_a_rank_that_is_alive_but_elsewhere_is_named(store, said):
    done = threading.Event()

    def live():
        own, count = store.clone(), 0
        while not done.wait(0.02):
            count += 1
            own.set("beat/1", str(count))

    store.set("beat/0", "0")
    store.set("beat/1", "0")
    thread = threading.Thread(target=live)
    thread.start()
    with watching(store, 0, HOSTS[:2], 1.0) as watch:
        watch.explain_loss("connection reset")
    done.set()
    thread.join()
    assert said == ["rank 1 on b did not come where the others wait, though alive (connection reset)"]


def test_a_rank_alone_is_watched_by_nobody():
    with watching(None, 0, ["a"], 1.0):
        assert threading.active_count() < 20


def test_requests_in_the_run_folder_are_heeded_from_when_the_job_listens(tmp_path):
    ask_to_stop(tmp_path)
    with StopRequest() as stop:
        stop.listen(tmp_path)
        assert not stop(), "an older request was for an older job"
        ask_to_stop(tmp_path)
        assert stop()
    ask_to_stop(tmp_path / "not there yet")


def test_a_signal_that_comes_twice_at_once_is_one_request(monkeypatch):
    """From whoever signals all processes of a job, and from a launcher that hands its own on."""
    with StopRequest() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        ended = []
        monkeypatch.setattr(module_stop.os, "kill", lambda process, number: ended.append(number))
        monkeypatch.setattr(module_stop, "_SAME_REQUEST_SECONDS", -1)
        signal.raise_signal(signal.SIGTERM)
        assert ended == [signal.SIGTERM], "later it is meant"


def test_a_signal_before_training_ends_as_the_signal_would():
    with pytest.raises(Stopped) as request, StopRequest():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert request.value.exit_code == 138


def test_signals_that_nohup_has_ignored_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(DRIVER_SIGNALS) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_several_ranks_meet_is_said_once_and_what_one_meets_is_said(store):
    with watching(store, 0, HOSTS[:3], 5.0) as first, watching(store.clone(), 1, HOSTS[:3], 5.0) as second:
        assert second.says_first("UserError: no such file") and not first.says_first("UserError: no such file")
        assert first.says_first("UserError: its own")


def test_each_attempt_of_a_launcher_begins_with_a_clean_store():
    keeper = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    attempts = [open_store(Meeting("127.0.0.1", keeper.port, True, number), 0, 5.0) for number in (0, 1)]
    attempts[0].set("verdict", "0: rank 1 died")
    assert attempts[0].clone().check(["verdict"]) and not attempts[1].check(["verdict"])
