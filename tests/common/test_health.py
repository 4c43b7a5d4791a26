"""Health checks of real gRPC servers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from fedmed_common import health
from fedmed_common.errors import FedmedError


@pytest.fixture
def serving():
    servicer = HealthServicer()
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.servicer = servicer
    yield server
    server.stop(0).wait()


def test_who_serves_is_healthy_over_tcp_and_over_a_socket(serving: grpc.Server, tmp_path: Path) -> None:
    port = serving.add_insecure_port("127.0.0.1:0")
    serving.add_insecure_port(f"unix:{tmp_path}/socket")
    serving.start()
    health.check(f"127.0.0.1:{port}")
    health.check(f"unix:{tmp_path}/socket")


def test_a_proxy_in_the_environment_is_not_asked(
    serving: grpc.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    port = serving.add_insecure_port("127.0.0.1:0")
    serving.start()
    health.check(f"127.0.0.1:{port}")


def test_who_says_that_it_does_not_serve_is_not_healthy(serving: grpc.Server) -> None:
    port = serving.add_insecure_port("127.0.0.1:0")
    serving.servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    serving.start()
    with pytest.raises(FedmedError, match="does not serve now"):
        health.check(f"127.0.0.1:{port}")


def test_who_does_not_answer_is_not_healthy(tmp_path: Path) -> None:
    with pytest.raises(FedmedError, match="no answer to a health check"):
        health.check(f"unix:{tmp_path}/nobody", seconds=0.3)
