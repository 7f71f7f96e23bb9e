"""The messages between a slot and its worker: one datagram each way; replies are integers only.

A parsed answer must never cross: unpickling ``9^{9^9}`` evaluates it in the receiver.
"""

from __future__ import annotations

import struct

_REQUEST = struct.Struct("<IBI")  # sequence number, task, bytes of gold
REPLY = struct.Struct("<IBB")  # sequence number, outcome, rule: its number in rules.RULES

# Tasks.
JUDGE, JUDGE_PLAIN, CHECK_REFERENCE, CHECK_REFERENCE_PLAIN, REASONING_GYM = range(5)

# Outcomes other than verdicts (which are below 64).
READY = 64  # a worker is up; the sequence number is its process id
DIED_BUSY = 65  # the worker died on the request with this number by its own fault
KILLED_BUSY = 66  # it was killed from outside (SIGKILL, SIGTERM) while it worked on the request
CANNOT_START = 67  # followed by the reason as text
STANDBY = 68  # with the control socket of a standby keeper; the sequence number is its process id
MAX_MESSAGE_BYTES = 100_000  # well below the default socket buffer, so one send is one message


def encode_request(number: int, task: int, gold: str, answer: str) -> bytes:
    """One request. Lone surrogates pass: a detokeniser can produce any code unit."""
    gold_bytes = gold.encode("utf-8", "surrogatepass")
    return _REQUEST.pack(number, task, len(gold_bytes)) + gold_bytes + answer.encode("utf-8", "surrogatepass")


def decode_request(message: bytes) -> tuple[int, int, str, str]:
    """The inverse of :func:`encode_request`: number, task, gold, answer."""
    number, task, size = _REQUEST.unpack_from(message)
    body = message[_REQUEST.size :]
    return (
        number,
        task,
        body[:size].decode("utf-8", "surrogatepass"),
        body[size:].decode("utf-8", "surrogatepass"),
    )
