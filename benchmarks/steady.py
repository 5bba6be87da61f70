"""Hits at a constant rate, each sent when its time has come whether earlier ones were answered or not.

A loop on raw sockets: light, and exact to some 50 µs where asyncio's timers are exact to 1 ms. A hit that finds no
idle connection waits, and its latency counts from the time it should have left, so a server that stalls pays for
every hit it held up.
"""

import gc
import math
import select
import socket
import sys
import time
from array import array
from collections import deque

import msgspec

CONNECTIONS = 64
_BODY_BYTES = 43
_STALLED_SECONDS = 10.0


class Measured(msgspec.Struct):
    """How it went. Latencies in ms from the time a hit was to be sent; `late_p99`: how late the sender was, in ms."""

    answered: int
    refused: int
    rate: float
    p50: float
    p99: float
    p999: float
    late_p99: float
    cores: float


def percentile(ordered: "array[float]", share: float) -> float:
    """The smallest of the ordered values that at least `share` (0 to 1) of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def send(port: int, path: str, rate: int, seconds: int) -> Measured:
    """`rate` hits a second on 127.0.0.1. Raises OSError when the server closes or stalls."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    epoll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    for _ in range(CONNECTIONS):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        sockets[connection.fileno()] = connection
        epoll.register(connection.fileno(), select.EPOLLIN)
    idle = deque(sockets)
    due: dict[int, float] = {}
    partial: dict[int, bytes] = {}
    latencies, lateness = array("d"), array("d")
    count, sent, refused = rate * seconds, 0, 0
    clock = time.perf_counter
    cpu = time.process_time()
    began = clock() + 0.01
    now = clock()
    while len(latencies) < count:
        while idle and sent < count and (scheduled := began + sent / rate) <= now:
            fd = idle.popleft()
            sockets[fd].send(request)
            due[fd] = scheduled
            sent += 1
            now = clock()
            lateness.append(now - scheduled)
        wait = began + sent / rate - now if idle and sent < count else _STALLED_SECONDS
        # select, unlike epoll, waits for less than a millisecond; epoll, unlike select, need not be told each socket.
        if not select.select([epoll], [], [], max(0.0, wait))[0]:
            if wait >= _STALLED_SECONDS:
                raise TimeoutError(f"no answer for {_STALLED_SECONDS:.0f} s")
            now = clock()
            continue
        for fd, _ in epoll.poll(0):
            received = sockets[fd].recv(65536)
            if not received:
                raise ConnectionError("the server closed a connection")
            answer = partial.pop(fd, b"") + received
            head, blank, body = answer.partition(b"\r\n\r\n")
            if not blank or len(body) < _BODY_BYTES:
                partial[fd] = answer
                continue
            now = clock()
            latencies.append(now - due.pop(fd))
            idle.append(fd)
            if not head.startswith(b"HTTP/1.1 200 "):
                refused += 1
        now = clock()
    took = now - began
    cores = (time.process_time() - cpu) / took
    for connection in sockets.values():
        connection.close()
    epoll.close()
    ordered, late = array("d", sorted(latencies)), array("d", sorted(lateness))
    p50, p99, p999 = (percentile(ordered, share) * 1000 for share in (0.5, 0.99, 0.999))
    return Measured(count, refused, count / took, p50, p99, p999, percentile(late, 0.99) * 1000, cores)


if __name__ == "__main__":
    # Nothing here makes cycles, and a collection would make hits late.
    gc.disable()
    measured = send(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.buffer.write(msgspec.json.encode(measured))
