"""The server's own side of Flower: starting and ending its runs, taking their tasks, and one task's life.

A SuperLink that is away is :class:`SuperLinkAway`, which every caller survives; nothing here waits longer than a few seconds,
and nothing ends the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import httpx
from flwr.app import Context
from flwr.common.config import flatten_dict, get_fab_config
from flwr.common.constant import SubStatus
from flwr.common.serde import (
    context_from_proto,
    fab_to_proto,
    run_from_proto,
    user_config_to_proto,
)
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from fedmed_common.bundle import RUN_KEY
from fedmed_server.deployment.flower_client import Refused, SuperLinkAway, named_faults, private_client
from fedmed_server.deployment.home import ServerHome, read_secret

Outcome = Literal["completed", "stopped", "failed"]

_MOST_RUNS = 200
_FINISHED = "finished"
_PENDING = "pending"
_SUB_STATUS: dict[Outcome, str] = {
    "completed": SubStatus.COMPLETED,
    "stopped": SubStatus.STOPPED,
    "failed": SubStatus.FAILED,
}


class TaskGone(Exception):
    """The task is no longer ours: its run was stopped, or was given up for want of a heartbeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerRun:
    """What Flower says about one of its runs. ``outcome`` is empty until it is finished."""

    identifier: int
    run: str
    status: str
    outcome: str

    @property
    def finished(self) -> bool:
        """Whether Flower does nothing more for it."""
        return self.status == _FINISHED

    @property
    def pending(self) -> bool:
        """Whether nobody has taken its task yet."""
        return self.status == _PENDING


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A ServerApp that Flower wants started. The token lets its holder speak for the run."""

    identifier: int
    flower_run: int
    token: str

    def __repr__(self) -> str:
        return f"Task({self.identifier} of run {self.flower_run})"


class _BearerToken:
    """Says to the Control API who is asking."""

    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the header."""
        context.request.headers["authorization"] = self._header
        return call_next(context)


class FlowerControl:
    """Starts, looks at and stops Flower's runs."""

    def __init__(self, home: ServerHome) -> None:
        interceptor = _BearerToken(read_secret(home.control_token))
        self._client = private_client(ControlHttpClient, home, interceptor)

    def start(self, bundle: bytes, run: str) -> int:
        """Start a Flower run for our run; its id.

        Raises:
            SuperLinkAway: it was not started.
        """
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
            override_config=user_config_to_proto({RUN_KEY: run}),
        )
        with named_faults():
            response = self._client.StartRun(request)
        if not response.HasField("run_id"):
            raise SuperLinkAway("Flower did not start the run")
        return int(response.run_id)

    def find(self, identifier: int) -> FlowerRun | None:
        """The run; None where Flower does not know it."""
        try:
            with named_faults():
                response = self._client.ListRuns(ListRunsRequest(run_id=identifier))
        except Refused as refused:
            if refused.status == httpx.codes.NOT_FOUND:
                return None
            raise
        runs = _runs(response.run_dict)
        return runs[0] if runs else None

    def unfinished(self) -> list[FlowerRun]:
        """The runs that are not finished, of the newest few hundred."""
        with named_faults():
            response = self._client.ListRuns(ListRunsRequest(limit=_MOST_RUNS))
        return [run for run in _runs(response.run_dict) if not run.finished]

    def stop(self, identifier: int) -> None:
        """End the run; one that is finished stays as it is."""
        try:
            with named_faults():
                self._client.StopRun(StopRunRequest(run_id=identifier))
        except Refused as refused:
            if refused.status not in {httpx.codes.NOT_FOUND, httpx.codes.PRECONDITION_FAILED}:
                raise

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()


class TaskSource:
    """Takes the tasks of ServerApps, and of nothing else that Flower can run."""

    def __init__(self, home: ServerHome) -> None:
        self._home = home
        secret = read_secret(home.superexec_secret).encode()
        self._client = private_client(
            RuntimeHttpClient,
            home,
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
            ),
        )

    def acquire(self) -> Task | None:
        """The next task, where there is one."""
        with named_faults():
            response = self._client.AcquireTask(
                AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
            )
        if not response.HasField("task") or not response.token:
            return None
        return Task(
            identifier=int(response.task.task_id),
            flower_run=int(response.task.run_id),
            token=str(response.token),
        )

    def fail(self, task: Task) -> None:
        """Say that the task's process is gone, so that its run ends now and not when its time is up."""
        session = TaskSession(self._home, task.token)
        try:
            session.push("failed", "the process ended")
        finally:
            session.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()


class TaskSession:
    """One task, as the process that carries it out sees it."""

    def __init__(self, home: ServerHome, token: str) -> None:
        self._client = private_client(
            RuntimeHttpClient,
            home,
            RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
            RuntimeTokenHttpInterceptor(token=token),
        )

    def pull(self) -> tuple[Context, Run, bytes]:
        """Begin: what the task is given, its Flower run and its bundle.

        Raises:
            TaskGone: the run was stopped before it began.
        """
        with _of_a_task():
            response = self._client.PullTaskInput(PullTaskInputRequest())
        context, run = context_from_proto(response.context), run_from_proto(response.run)
        bundle = bytes(response.fab.content)
        context.run_config = {
            **flatten_dict(get_fab_config(bundle)["tool"]["flwr"]["app"].get("config")),
            **run.override_config,
        }
        TaskIdentity.task_id = response.task_id
        TaskIdentity.run_id = run.run_id
        TaskIdentity.node_id = context.node_id
        return context, run, bundle

    def heartbeat(self) -> None:
        """Say that the process lives.

        Raises:
            TaskGone: it may stop working.
        """
        with _of_a_task():
            response = self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        if not response.success:
            raise TaskGone("the Flower run has ended")

    def push(self, outcome: Outcome, details: str) -> None:
        """Say how it ended. A task that is gone needs no end."""
        request = PushTaskOutputRequest(sub_status=_SUB_STATUS[outcome], details=details)
        try:
            with _of_a_task():
                self._client.PushTaskOutput(request)
        except TaskGone:
            return

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()


@contextmanager
def _of_a_task() -> Iterator[None]:
    """A task's token that is refused belongs to a task that is over."""
    try:
        with named_faults():
            yield
    except Refused as refused:
        if refused.status < httpx.codes.INTERNAL_SERVER_ERROR:
            raise TaskGone(str(refused)) from None
        raise


def _runs(run_dict: object) -> list[FlowerRun]:
    runs = [run_from_proto(proto) for proto in run_dict.values()]  # type: ignore[attr-defined]
    return [
        FlowerRun(
            identifier=run.run_id,
            run=str(run.override_config.get(RUN_KEY, "")),
            status=run.status.status,
            outcome=run.status.sub_status,
        )
        for run in runs
    ]
