"""Orders to one site, through the app that hospitals run."""

from __future__ import annotations

from dataclasses import replace

from flwr.app import Message

from fedmed_client.app import make_client_app
from fedmed_client.workbench import SiteHome
from fedmed_common import wire
from fedmed_simulations.grid import LocalGrid


def ask(home: SiteHome, order: wire.Order) -> wire.Reply:
    """What the site answers."""
    grid = LocalGrid(make_client_app(lambda _context: home), 1)
    message = Message(wire.pack_order(order), grid.get_node_ids()[0], order.kind.value)
    (answer,) = grid.send_and_receive([message])
    return wire.unpack_reply(answer.content, order.parameters if order.kind is wire.Kind.TRAIN else None)


def ruled(home: SiteHome, **rules: object) -> SiteHome:
    """The same site with other rules in its policy."""
    policy = home.site.policy.model_copy(update=rules)
    return replace(home, site=home.site.model_copy(update={"policy": policy}))
