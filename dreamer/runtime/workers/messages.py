"""The messages on the socket that a worker process has for each of its environments. No jax.

A message starts with one byte, its kind. If the kind has a body, the length and the body follow. Rows and actions are
in shared memory, and the byte only signals that they are ready. The two sides take turns on each socket:

    parent                          worker
    STEP                            ROW, or END with the numbers of ended episodes, or FAULT with an Incident
    (the start), or NEW with a seed SPEC with the Spec of the environment made, or FAULT
    GET                             STATE with bytes, or the reason (str) of a failure
    PUT with bytes                  STATE with the reason of a failure ("" if restored) and the numbers of END
    RENDER                          FRAME with an image, None, or the reason (str) of a failure
"""

from __future__ import annotations

import pickle
import socket
from typing import Any

STEP, NEW, GET, PUT, RENDER = b"a", b"n", b"g", b"p", b"d"
ROW, END, SPEC, FAULT, STATE, FRAME = b"r", b"e", b"s", b"f", b"t", b"m"


def send(channel: socket.socket, kind: bytes, body: Any) -> None:
    """Sends a message with a body. Raises OSError if the other side is gone."""
    channel.sendall(kind + framed(pickle.dumps(body)))


def framed(data: bytes) -> bytes:
    """Returns `data`, a pickled body, with its length in front."""
    return len(data).to_bytes(8, "little") + data


def body(channel: socket.socket) -> Any:
    """Reads the body of a message, after `kind` has read the kind. Raises EOFError or OSError if the sender is gone."""
    return pickle.loads(_exactly(channel, int.from_bytes(_exactly(channel, 8), "little")))


def kind(channel: socket.socket, flags: int = 0) -> bytes:
    """Reads the kind of the next message. Returns b"" if the other side is gone.

    With the flag MSG_DONTWAIT it does not wait, and also returns b"" if there is no message.
    """
    try:
        return channel.recv(1, flags)
    except OSError:
        return b""


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
