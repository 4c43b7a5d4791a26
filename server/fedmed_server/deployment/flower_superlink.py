"""Flower's SuperLink as this server runs it; with ``flower_fleet`` all that knows Flower's private SuperLink modules.

``FLWR_HOME`` and what switches Flower's calls home off must be in the environment before this module is imported.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from flwr.common.constant import ACCESS_TOKEN_KEY, ISOLATION_MODE_PROCESS, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.common.constant import TRANSPORT_TYPE_GRPC_RERE as FLEET_API_TYPE
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.server.superlink.linkstate import LinkStateFactory, SqlLinkState
from flwr.supercore import constant, sql_mixin
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.constant import NodeStatus
from flwr.supercore.corestate.sql_corestate import SqlCoreState
from flwr.supercore.http_logging import get_uvicorn_log_config as log_config
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.routers.runtime.tracing import RuntimeTracingMiddleware
from flwr.supercore.state.schema.corestate_models import ObjectPushSessionRoot
from flwr.supercore.state.schema.linkstate_models import MessageIns
from flwr.supercore.state.schema.linkstate_models import Node as NodeModel
from flwr.superlink import config_loader
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from flwr.superlink.routers.control import middlewares as control
from flwr.superlink.routers.fleet.middlewares import FleetEventLogMiddleware
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sqlalchemy import create_engine, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from fedmed_common.errors import ConfigError
from fedmed_server.deployment.admission import Claims
from fedmed_server.deployment.flower_fleet import FleetCalls
from fedmed_server.deployment.home import PRIVATE_HOST, ServerHome, read_secret

__all__ = ["FlowerNodes", "TokenAuthentication", "build", "log_config"]

BUSY_MILLISECONDS = 60_000
JOURNAL_BYTES = 64 * 2**20


class TokenAuthentication(NoOpControlAuthnPlugin):
    """Admits who holds the token. Flower's own plugin admits everybody."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token.encode()

    def validate_tokens_in_metadata(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[bool, AccountInfo | None]:
        """The one account that Flower's open edition knows, for the holder of the token."""
        given = dict(metadata).get(ACCESS_TOKEN_KEY, "")
        given = given.encode() if isinstance(given, str) else given
        if not hmac.compare_digest(given, self._token):
            return False, None
        return True, AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)


def build(home: ServerHome) -> tuple[ASGIApp, FleetCalls, FlowerNodes]:
    """Flower's whole SuperLink over the home's database, what of it sites reach, and the sites."""
    make_database_patient()
    if home.settings().state.database:
        permit_postgresql()
    app = flower_app(home)
    app.user_middleware = [
        _only_where_meant(layer) for layer in app.user_middleware if layer.cls not in _IDLE
    ]
    state = app.state.linkstate_factory.state()
    _forget_begun_orders(state)
    return app, FleetCalls(app, state), FlowerNodes(state)


def _forget_begun_orders(state: SqlLinkState) -> None:
    """Forget orders of which the server, when it ended, did not have all parts: they are sent anew, under other names.

    Flower hands such an order out, and its site would wait for the rest until Flower's push session ends, three minutes later.
    """
    begun = select(ObjectPushSessionRoot.session_id).join(
        MessageIns, MessageIns.message_id == ObjectPushSessionRoot.root_object_id
    )
    with state.session() as session:
        for push in set(session.scalars(begun)):
            state._cleanup_push_session(push, cleanup_messages=True)


def flower_app(home: ServerHome) -> Starlette:
    """Flower's application as it comes, with this server's settings.

    No process of Flower's own is started for a run, nothing is installed for one, and nothing is reported to anyone.
    """
    settings = home.settings()
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host=PRIVATE_HOST,
        port=settings.private.port,
        insecure=False,
        certificates=None,
        superexec_auth_secret=read_secret(home.superexec_secret).encode(),
        authn_plugin=TokenAuthentication(read_secret(home.control_token)),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=FLEET_API_TYPE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=str(home.authority),
        ssl_certfile=str(home.certificate),
        ssl_keyfile=str(home.key),
        database=settings.state.database.replace("postgresql:", f"{_DIALECT}+psycopg:", 1)
        or str(home.database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    return create_app(config, SuperLinkLifespan)


_IDLE: frozenset[object] = frozenset({FleetEventLogMiddleware, NodeAuthMiddleware})
"""Flower's layers for what :func:`build` leaves out, and for what does not come this way."""

_MEANT_FOR: dict[object, str] = {
    control.ControlSensitiveResponseMiddleware: "/v1/control/",
    control.ControlAuthenticationMiddleware: "/v1/control/",
    control.ControlLicenseMiddleware: "/v1/control/",
    control.ControlEventLogMiddleware: "/v1/control/",
    RuntimeTracingMiddleware: "/v1/runtime/",
}
"""The paths at which Flower's layers do something; at all others they hand the request on."""


class _OnlyWhereMeant:
    """A layer around an application, which requests of other paths go past.

    Each of Flower's layers is Starlette's ``BaseHTTPMiddleware``. Ten of them, one within the other, take ten times the work
    of all the rest, because each waits anew, within all those around it, for what a request may still bring.
    """

    def __init__(self, app: ASGIApp, layer: Middleware, prefix: str) -> None:
        self._app, self._layered, self._prefix = app, layer.cls(app, *layer.args, **layer.kwargs), prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_meant = scope["type"] == "http" and scope["path"].startswith(self._prefix)
        await (self._layered if is_meant else self._app)(scope, receive, send)


def _only_where_meant(layer: Middleware) -> Middleware:
    prefix = _MEANT_FOR.get(layer.cls)
    return layer if prefix is None else Middleware(_OnlyWhereMeant, layer, prefix)


class FlowerNodes:
    """The sites as Flower's nodes. A node is found by its public key and carries its site's name."""

    def __init__(self, state: SqlLinkState) -> None:
        self._state = state

    def register(self, keys: Mapping[str, EllipticCurvePublicKey]) -> dict[str, int]:
        """Make exactly these sites nodes: add who is missing, remove who is not among them; node by site."""
        wanted = {public_key_to_bytes(key): site for site, key in keys.items()}
        found = {}
        for node in self._state.get_node_info(statuses=_REGISTERED):
            if node.public_key in wanted and node.name == wanted[node.public_key]:
                found[node.name] = node.node_id
            else:
                self._state.delete_node(node.owner_aid, node.node_id)
        return found | {site: self._add(site, key) for key, site in wanted.items() if site not in found}

    def online(self) -> frozenset[int]:
        """The nodes whose link is there: it was activated, and its heartbeats arrive."""
        return frozenset(node.node_id for node in self._state.get_node_info(statuses=[NodeStatus.ONLINE]))

    def is_online(self, node: int) -> bool:
        """Whether the node's link is there."""
        return bool(self._state.get_node_info(node_ids=[node], statuses=[NodeStatus.ONLINE]))

    def deactivate(self, node: int) -> None:
        """Take the node's link as gone, so that it can be activated again at once."""
        self._state.deactivate_node(node)

    def claims(self, path: str, body: bytes) -> Claims:
        """Whose node, or which key, a request says it is; nothing where the body is not what the path takes."""
        if ("POST", path) not in PROTOBUF_REQUEST_TYPES:
            return Claims()
        message = PROTOBUF_REQUEST_TYPES["POST", path]()
        try:
            message.ParseFromString(body)
        except DecodeError:
            return Claims()
        nodes: set[int] = set()
        if hasattr(message, "node"):
            nodes.add(message.node.node_id)
        if hasattr(message, "node_id"):
            nodes.add(message.node_id)
        if isinstance(message, PushMessagesRequest):
            nodes.update(reply.metadata.src_node_id for reply in message.messages_list)
        keys = {message.public_key} if hasattr(message, "public_key") else set()
        return Claims(nodes=frozenset(nodes), keys=frozenset(keys))

    def key_text(self, key: EllipticCurvePublicKey) -> bytes:
        """A public key as requests carry it."""
        return public_key_to_bytes(key)

    def _add(self, site: str, key: bytes) -> int:
        """A new node, or the one that had the key before: Flower keeps the keys of removed nodes and takes none twice."""
        again = (
            update(NodeModel)
            .where(NodeModel.public_key == key, NodeModel.status == NodeStatus.UNREGISTERED)
            .values(status=NodeStatus.REGISTERED, unregistered_at=None, name=site)
        )
        with self._state.session() as session:
            session.execute(again)
        node = self._state.get_node_id_by_public_key(key)
        return node or self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0, name=site)


_REGISTERED = [NodeStatus.REGISTERED, NodeStatus.ONLINE, NodeStatus.OFFLINE]


def make_database_patient() -> None:
    """Let the threads of this process take turns at Flower's database, before it is opened.

    Flower gives each thread a connection and lets SQLite sort out who writes: whoever does not get its turn within five
    seconds fails with "database is locked", and the journal grows without bound while there is always a reader. Here one
    transaction follows the other, and another process (a backup) is waited for.
    """
    own = {"busy_timeout": str(BUSY_MILLISECONDS), "journal_size_limit": str(JOURNAL_BYTES)}
    pragmas = tuple((dict(constant.SQLITE_PRAGMAS) | own).items())
    sql_mixin.SQLITE_PRAGMAS = pragmas  # type: ignore[attr-defined, assignment]
    sql_mixin.SqlMixin.session = _session_in_turn  # type: ignore[method-assign, assignment]


def permit_postgresql() -> None:
    """Let Flower keep its state in PostgreSQL. Its statements and its schema are for both; its open edition takes SQLite alone.

    Raises:
        ConfigError: the driver is not installed.
    """
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ConfigError(
            "PostgreSQL needs its driver", field="state.database", fix="pip install 'fedmed[postgresql]'"
        ) from None
    both: Any = frozenset({"sqlite", _DIALECT})
    for kind in (sql_mixin.SqlMixin, SqlCoreState):
        kind.allowed_dialects = both
        kind.dialect_insert = _insert_of_its_dialect  # type: ignore[method-assign, assignment]
    config_loader.get_ee_objectstore_factory = ObjectStoreFactory  # type: ignore[attr-defined]
    config_loader.get_ee_linkstate_factory = LinkStateFactory  # type: ignore[attr-defined]
    sql_mixin.create_engine = partial(create_engine, pool_pre_ping=True)  # type: ignore[attr-defined]


def _insert_of_its_dialect(state: sql_mixin.SqlMixin, table: Any) -> Any:
    insert = postgresql.insert if state.database_backend == _DIALECT else sqlite.insert
    return insert(table)


_DIALECT = "postgresql"
_turn = threading.Lock()
_flower_session = sql_mixin.SqlMixin.session


@contextmanager
def _session_in_turn(state: sql_mixin.SqlMixin) -> Iterator[Session]:
    inside = bool(sql_mixin._current_sessions.get())
    with nullcontext() if inside else _turn, _flower_session(state) as session:
        yield session
