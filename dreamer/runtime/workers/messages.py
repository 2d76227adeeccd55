"""The messages on the socket that a worker process has for each of its environments. Imports no jax.

A message starts with one byte, its kind. If the kind has a body, the length and the body follow. Rows and actions are
in shared memory, and the byte only signals that they are ready. The two sides take turns on each socket:

    parent               worker
    nothing, at start    SPEC with the Spec of the environment made, or FAULT with an Incident
    NEW with a seed      the same, after replacing the environment by a new one
    STEP                 ROW; END, if an episode with the environment's own metrics has ended: {agent: {name: value}};
                         or FAULT with an Incident
    GET                  STATE with the state (bytes), or the reason (str) for a failure
    PUT with a state     STATE with (the reason for a failure or "", the metrics as in END)
    RENDER               FRAME with an image, None if the environment does not render, or the reason (str) for a failure
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
    """Returns `data`, a pickled body, with its length as 8 bytes in front."""
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
