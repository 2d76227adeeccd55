"""Connections between the processes that learn together: they agree on decisions, and notice when one of them is gone.

Every process is connected to process 0 by one TCP connection, which carries lines of JSON. In `exchange`, process 0
receives the value of each process and sends all of them back. A connection that ends without a farewell means that its
process is gone, because the kernel closes the connections of a killed process at once. If a machine loses its power or
its network, the kernel of the others ends the connection after about SILENCE seconds. Imports no jax.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dreamer.errors import UserError

SILENCE = 30  # seconds after which the kernel ends a connection to a machine that no longer answers
_CONNECT = 60.0  # seconds in which all processes must have connected


class Meeting(NamedTuple):
    """Where process 0 waits for the others. hosts: its possible names, best first | token: proves who may connect"""

    hosts: tuple[str, ...]
    port: int
    token: str


class Server:
    """The socket on which process 0 waits for the others. `Link` closes it."""

    def __init__(self, hosts: Sequence[str]):
        """hosts: names or addresses under which the other processes may reach this machine, best first."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self.socket = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=1024)
        self.meeting = Meeting(tuple(dict.fromkeys(hosts)), self.socket.getsockname()[1], secrets.token_hex(16))


class Link:
    """Owns the connections of this process and the threads that read from them. Close it at the end of the run.

    index, count: the number of this process, and how many there are | names: a name of each process for messages
    """

    def __init__(self, index: int, name: str, meeting: Meeting | Server, count: int, lost: Callable[[str], None]):
        """Connects to the other processes, and waits for them.

        name: identifies this process in messages. meeting: the Server in process 0, its Meeting in the others.
        lost: called once, in a thread, with a line of text, if another process is gone or has failed.
        Raises UserError if not all processes connect in time.
        """
        self.index, self.count, self._lost = index, count, lost
        self._round = 0
        self._inbox: queue.Queue[tuple[int, Any]] = queue.Queue()  # (process, message); None: it sends no more
        self._early: dict[int, dict[int, Any]] = {}  # values of later rounds: {round: {process: value}}
        self._closing, self._told = False, threading.Lock()
        self._sending = threading.Lock()
        self._peers: dict[int, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self.names: list[str] = []
        try:
            if isinstance(meeting, Server):
                self._accept(meeting, name)
            else:
                self._join(meeting, name)
        except BaseException:
            self.close()
            raise
        for peer, connection in self._peers.items():
            connection.settimeout(None)
            _notice_silence(connection)
            thread = threading.Thread(target=self._read, args=(peer, connection), name=f"link {peer}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def exchange(self, value: Any) -> list[Any]:
        """Gives `value`, a JSON value, to all processes, and returns the values of all, in the order of processes.

        All processes must call it equally often, and by one thread. It waits for the slowest of them.
        Raises UserError if another process has ended.
        """
        self._round += 1
        if self.index:
            self._send(0, {"round": self._round, "value": value})
            return self._wait_for({0})[0]
        values = {0: value, **self._wait_for(set(self._peers))}
        every = [values[process] for process in range(self.count)]
        for peer in self._peers:
            self._send(peer, {"round": self._round, "value": every})
        return every

    def leave(self, line: str = "") -> None:
        """Tells the others that this process ends. line: why it failed, which ends the others too; "": it has not.

        Returns at once. From now on, the end of a connection has no effect here.
        """
        self._closing = True
        for peer in self._peers:
            self._send(peer, {"failed": f"{self.names[self.index]}: {line}"} if line else {"done": True})

    def close(self) -> None:
        """Ends the connections and the threads. May be called again."""
        self._closing = True
        for connection in self._peers.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join()

    def _accept(self, server: Server, name: str) -> None:
        names = {0: name}
        with server.socket as listening:
            listening.settimeout(_CONNECT)
            while len(names) < self.count:
                try:
                    connection, _ = listening.accept()
                    connection.settimeout(_CONNECT)
                    hello = _first_line(connection)
                except TimeoutError:
                    missing = ", ".join(str(i) for i in range(self.count) if i not in names)
                    raise UserError(f"process {missing} did not connect within {_CONNECT:g} seconds") from None
                if not secrets.compare_digest(str(hello.get("token")), server.meeting.token):
                    connection.close()  # a stranger
                    continue
                names[hello["process"]] = str(hello["name"])
                self._peers[hello["process"]] = connection
        self.names = [names[process] for process in range(self.count)]
        for peer in self._peers:
            self._send(peer, {"names": self.names})

    def _join(self, meeting: Meeting, name: str) -> None:
        problem: Exception | None = None
        for host in meeting.hosts:
            try:
                connection = socket.create_connection((host, meeting.port), timeout=_CONNECT)
                break
            except OSError as error:
                problem = error
        else:
            where = " or ".join(meeting.hosts)
            raise UserError(f"process {self.index} cannot reach process 0 at {where}, port {meeting.port}: {problem}")
        self._peers[0] = connection
        self._send(0, {"token": meeting.token, "process": self.index, "name": name})
        self.names = _first_line(connection).get("names", [])
        if len(self.names) != self.count:
            raise UserError(f"process 0 at {host} ended before all processes had connected")

    def _wait_for(self, senders: set[int]) -> dict[int, Any]:
        """Waits for the values that the processes `senders` send in this round. Returns {process: value}."""
        found = self._early.pop(self._round, {})
        while found.keys() < senders:
            sender, message = self._inbox.get()
            if message is None:
                self._inbox.put((sender, None))
                raise UserError(f"{self.names[sender]} has ended, while this process waits for it")
            there = found if message["round"] == self._round else self._early.setdefault(message["round"], {})
            there[sender] = message["value"]
        return found

    def _send(self, peer: int, message: dict[str, Any]) -> None:
        try:
            with self._sending:
                self._peers[peer].sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass  # its thread notices that the process is gone

    def _read(self, peer: int, connection: socket.socket) -> None:
        """Reads the messages of a process until its connection ends."""
        done = False
        try:
            with connection.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line)
                    if "round" in message:
                        self._inbox.put((peer, message))
                    elif "failed" in message:
                        self._alarm(f"{message['failed']}")
                        done = True
                    else:
                        done = True
        except (OSError, ValueError):
            pass
        if not done:
            self._alarm(f"{self.names[peer]} is gone")
        self._inbox.put((peer, None))

    def _alarm(self, line: str) -> None:
        """Reports the first loss to the other processes and to `lost`. Later losses follow from it."""
        if self._closing or not self._told.acquire(blocking=False):
            return
        for peer in self._peers if self.index == 0 else ():
            self._send(peer, {"failed": line})
        self._lost(line)


def _first_line(connection: socket.socket) -> dict[str, Any]:
    """Reads one line of JSON, byte by byte so that nothing after it is lost. Returns {} if it is no JSON object."""
    line = bytearray()
    try:
        while not line.endswith(b"\n") and len(line) < 1 << 20 and (byte := connection.recv(1)):
            line += byte
        message = json.loads(line)
    except (ConnectionError, ValueError):
        return {}
    return message if isinstance(message, dict) else {}


def _notice_silence(connection: socket.socket) -> None:
    """Makes the kernel end a connection to a machine that does not answer for about SILENCE seconds."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": SILENCE // 3, "TCP_KEEPINTVL": SILENCE // 6, "TCP_KEEPCNT": 4}
    for name, value in (options | {"TCP_USER_TIMEOUT": 1000 * SILENCE}).items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
