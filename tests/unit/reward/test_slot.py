"""A slot against a scripted worker: which replies count, and when a question is sent again."""

import socket
import threading

import pytest

from openrlhf_orz.reward import Verdict
from openrlhf_orz.reward.workers import wire
from openrlhf_orz.reward.workers.slot import OUTSIDE_DEATHS, Slot


class ScriptedKeeper:
    """Gives out sockets to a thread that answers each request by the next entry of ``script``.

    An entry is a list of (offset, outcome, rule), sent as replies to the request's number plus
    the offset; "gone" closes the socket.
    """

    def __init__(self, script: list):
        self.script, self.requests, self.channels = iter(script), [], 0

    def new_channel(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channels += 1
        threading.Thread(target=self.serve, args=(theirs,), daemon=True).start()
        return ours

    def serve(self, channel: socket.socket) -> None:
        with channel:
            channel.send(wire.REPLY.pack(2**31 - 1, wire.READY, 0))  # no process has this id
            while message := channel.recv(2 * wire.MAX_MESSAGE_BYTES):
                self.requests.append(wire.decode_request(message))
                replies = next(self.script)
                if replies == "gone":
                    return
                for offset, outcome, rule in replies:
                    channel.send(wire.REPLY.pack(self.requests[-1][0] + offset, outcome, rule))


RIGHT = [(0, Verdict.RIGHT, 7)]
OWN_DEATH, OUTSIDE_DEATH, OTHER_DEATH = ([(n, o, 0)] for n, o in ((0, 65), (0, 66), (-1, 65)))


@pytest.mark.parametrize(
    "script, outcome, requests, channels",
    [
        ([RIGHT], (Verdict.RIGHT, 7), 1, 1),
        ([[(-1, Verdict.WRONG, 9), (1, Verdict.WRONG, 9), *RIGHT]], (Verdict.RIGHT, 7), 1, 1),  # another question's
        ([OWN_DEATH, RIGHT], (Verdict.RIGHT, 7), 2, 1),
        ([OWN_DEATH, OWN_DEATH], (Verdict.CRASHED, 0), 2, 1),
        ([OTHER_DEATH] * 3 + [OWN_DEATH, RIGHT], (Verdict.RIGHT, 7), 5, 1),  # it died before it took this question
        ([OUTSIDE_DEATH] * 5 + [RIGHT], (Verdict.RIGHT, 7), 6, 1),
        ([OUTSIDE_DEATH] * OUTSIDE_DEATHS, (Verdict.CRASHED, 0), OUTSIDE_DEATHS, 1),
        (["gone", "gone", RIGHT], (Verdict.RIGHT, 7), 3, 3),
    ],
)
def test_replies(script, outcome, requests, channels):
    keeper = ScriptedKeeper(script)
    slot = Slot(keeper, 30.0)
    assert slot.ask(wire.JUDGE, "gold", "answer") == outcome
    assert (len(keeper.requests), keeper.channels) == (requests, channels)
    assert all(request == (1, wire.JUDGE, "gold", "answer") for request in keeper.requests)


def test_a_worker_that_is_silent_twice_is_a_timeout_and_slowness_is_told_once():
    keeper, told = ScriptedKeeper([[], []]), []
    slot = Slot(keeper, 0.2)
    verdict = slot.ask(wire.JUDGE, "1", "2", slow_after=0.05, on_slow=lambda: told.append(1))
    assert (verdict, keeper.channels, told) == ((Verdict.TIMEOUT, 0), 2, [1])


def test_a_quick_answer_is_not_slow():
    told = []
    slot = Slot(ScriptedKeeper([RIGHT]), 30.0)
    slot.ask(wire.JUDGE, "1", "2", slow_after=30.0, on_slow=lambda: told.append(1))
    assert told == []


def test_requests_keep_lone_surrogates():
    assert wire.decode_request(wire.encode_request(9, 3, "\ud800é", "7\udfff")) == (9, 3, "\ud800é", "7\udfff")
