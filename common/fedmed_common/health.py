"""Asking a process how it is, by the standard gRPC health protocol, as Kubernetes and container engines do."""

from __future__ import annotations

from fedmed_common.errors import FedmedError


def check(address: str, *, seconds: float = 5.0) -> None:
    """Return when the process at ``address`` (``host:port`` or ``unix:path``) says that it serves.

    Raises:
        FedmedError: it says something else, or nothing within ``seconds``.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    # A proxy that the environment names is for the way out, never for this machine.
    options = (("grpc.enable_http_proxy", 0),)
    with grpc.insecure_channel(address, options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds, wait_for_ready=True)
        except grpc.RpcError as error:
            raise FedmedError(
                f"{address}: no answer to a health check ({error.code().name.lower()})"
            ) from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise FedmedError(f"{address}: answers, but does not serve now")
