"""The same bytes without a framework: from one server to many processes at once, and back, on loopback.

    python transfer.py HTTP --clients 8 --bytes 124146184

A server process holds the model. Each client gets all of it, then sends as much back: over HTTP (Python's own server and
client), and over gRPC in pieces of 1 MiB, both without TLS.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Barrier
from typing import Any

_SPAWN = multiprocessing.get_context("spawn")
_PIECE = 1 << 20
_DOWN, _UP = "/peers.Transfer/Down", "/peers.Transfer/Up"
_PATIENCE_SECONDS = 600.0


def serve_http(told: Any, size: int) -> None:
    """A model at ``/``, and a place to post one to, until it is ended; a thread for each client."""
    model = bytes(size)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(model)

        def do_POST(self) -> None:
            got = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(b"%d" % len(got))

        def log_message(self, *_: object) -> None:
            return

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.put(server.server_port)
    server.serve_forever()


def get_and_post(port: int, size: int) -> None:
    """What a client does over HTTP."""
    model = _asked(port, "GET")
    told = _asked(port, "POST", model)
    if (len(model), told) != (size, b"%d" % size):
        raise ValueError(f"{len(model)} bytes came and {told!r} arrived of {size}")


def _asked(port: int, method: str, body: bytes | None = None) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
    connection.request(method, "/", body)
    answer = connection.getresponse().read()
    connection.close()
    return answer


def serve_grpc(told: Any, size: int) -> None:
    """The same over gRPC."""
    import grpc

    model = bytes(size)

    def down(_request: bytes, _call: grpc.ServicerContext) -> Iterator[bytes]:
        return _pieces(model)

    def up(pieces: Iterator[bytes], _call: grpc.ServicerContext) -> bytes:
        return b"%d" % len(b"".join(pieces))

    handlers = {
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
    }
    server = grpc.server(ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("peers.Transfer", handlers),))
    told.put(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


def stream_both_ways(port: int, size: int) -> None:
    """What a client does over gRPC."""
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        model = b"".join(channel.unary_stream(_DOWN)(b"", wait_for_ready=True))
        told = channel.stream_unary(_UP)(_pieces(model))
    if (len(model), told) != (size, b"%d" % size):
        raise ValueError(f"{len(model)} bytes came and {told!r} arrived of {size}")


WAYS = {"HTTP": (serve_http, get_and_post), "gRPC": (serve_grpc, stream_both_ways)}


def seconds_of(way: str, clients: int, size: int) -> float:
    """From the moment at which all clients are told to begin until the last is done; their start is not counted."""
    serve, work = WAYS[way]
    told, barrier = _SPAWN.Queue(), _SPAWN.Barrier(clients)
    server = _SPAWN.Process(target=serve, args=(told, size), daemon=True)
    server.start()
    port = told.get(timeout=_PATIENCE_SECONDS)
    processes = [
        _SPAWN.Process(target=_client, args=(work, port, size, barrier, told), daemon=True)
        for _ in range(clients)
    ]
    for process in processes:
        process.start()
    times = [told.get(timeout=_PATIENCE_SECONDS) for _ in processes]
    server.kill()
    return max(ended for _, ended in times) - min(began for began, _ in times)


def _client(work: Callable[[int, int], None], port: int, size: int, barrier: Barrier, told: Any) -> None:
    import grpc  # noqa: F401

    barrier.wait(_PATIENCE_SECONDS)
    began = time.time()
    work(port, size)
    told.put((began, time.time()))


def _pieces(model: bytes) -> Iterator[bytes]:
    view = memoryview(model)
    return (bytes(view[start : start + _PIECE]) for start in range(0, len(model), _PIECE))


def main() -> None:
    """Print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    options = parser.parse_args()
    print(seconds_of(options.way, options.clients, options.bytes))


if __name__ == "__main__":
    main()
