"""The ClientApp: orders are answered by code and incident when something goes wrong, and nothing else leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from PIL import Image

from fedmed_client.app import INCIDENTS, make_client_app
from fedmed_client.workbench import SiteHome
from fedmed_common import params, wire
from fedmed_common.config import Experiment, Site
from fedmed_common.models import build_model
from fedmed_simulations.grid import LocalGrid

CANARIES = ("Jane^Doe", "1.2.840.99999.1", "/secret/folder")


def _ask(home: SiteHome, order: wire.Order) -> wire.Reply:
    grid = LocalGrid(make_client_app(lambda _context: home), 1)
    (node,) = grid.get_node_ids()
    (message,) = grid.send_and_receive([Message(wire.pack_order(order), node, order.kind.value)])
    template = order.parameters if order.kind is wire.Kind.TRAIN else None
    return wire.unpack_reply(message.content, template)


@pytest.fixture
def experiment() -> Experiment:
    return Experiment.model_validate(
        {
            "name": "discs",
            "rounds": 2,
            "task": {"classes": ["disc"], "dimensions": 2},
            "data": {"patch": [16, 16]},
            "model": {"channels": [4, 8], "residual_units": 0},
            "train": {"steps": 2, "batch_size": 2, "threads": 1},
        }
    )


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(10):
        Image.fromarray(rng.integers(0, 200, (24, 24), np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray((rng.random((24, 24)) > 0.5).astype(np.uint8)).save(root / "labels" / f"{number}.png")
    site = Site.model_validate(
        {
            "name": "alpha",
            "data": {"format": "images", "root": root},
            "labels": {"disc": ["1"]},
            "policy": {"least_patients": 3},
        }
    )
    return SiteHome(site=site, folder=tmp_path / "home")


@pytest.fixture
def order(experiment: Experiment) -> wire.Order:
    return wire.Order(
        kind=wire.Kind.TRAIN,
        run="run",
        round=1,
        attempt=0,
        experiment=experiment.order_text(),
        parameters=params.from_model(build_model(experiment)),
    )


def test_facts_are_counts(home: SiteHome, order: wire.Order) -> None:
    reply = _ask(home, replace(order, kind=wire.Kind.FACTS, parameters={}))
    assert reply.facts is not None
    assert sum(reply.facts.patients.values()) == 10
    assert reply.facts.presence == {"disc": reply.facts.patients["train"]}


def test_training_is_the_same_when_asked_again(home: SiteHome, order: wire.Order) -> None:
    first, second = _ask(home, order), _ask(home, replace(order, attempt=1))
    assert first.code == second.code == ""
    assert first.metrics["loss"].weight == 2
    for name, array in first.delta.items():
        assert array.tobytes() == second.delta[name].tobytes()
    other_round = _ask(home, replace(order, round=2))
    assert any(not np.array_equal(array, other_round.delta[name]) for name, array in first.delta.items())


def test_evaluation_over_too_few_patients_leaves_nothing(home: SiteHome, order: wire.Order) -> None:
    reply = _ask(home, replace(order, kind=wire.Kind.EVALUATE, split="test"))
    assert reply.code == ""
    assert reply.metrics == {}


def test_the_policy_refuses_by_rule(home: SiteHome, order: wire.Order, experiment: Experiment) -> None:
    strict = replace(
        home,
        site=home.site.model_copy(
            update={"policy": home.site.policy.model_copy(update={"maximum_steps": 1})}
        ),
    )
    reply = _ask(strict, order)
    assert (reply.code, reply.rule) == ("policy", "maximum_steps")
    assert not reply.delta
    assert reply.incident in (home.folder / INCIDENTS).read_text()


@pytest.mark.parametrize("kind", list(wire.Kind))
def test_a_refused_order_opens_nothing(home: SiteHome, order: wire.Order, kind: wire.Kind) -> None:
    opened: list[Experiment] = []
    rules = home.site.policy.model_copy(update={"models": ()})
    strict = replace(
        home,
        site=home.site.model_copy(update={"policy": rules}),
        open=opened.append,  # type: ignore[arg-type]
    )
    reply = _ask(strict, replace(order, kind=kind))
    assert (reply.code, reply.rule, opened) == ("policy", "models", [])


def test_the_text_of_an_exception_stays(home: SiteHome, order: wire.Order, experiment: Experiment) -> None:
    def broken(_experiment: Experiment) -> None:
        raise RuntimeError(f"cannot read {' '.join(CANARIES)}")

    hurt = replace(home, folder=home.folder / "hurt", open=broken)  # type: ignore[arg-type]
    grid = LocalGrid(make_client_app(lambda _context: hurt), 1)
    (message,) = grid.send_and_receive([Message(wire.pack_order(order), 100, "train")])
    sent = repr(message.content) + repr(message.metadata.__dict__)
    reply = wire.unpack_reply(message.content, order.parameters)
    assert reply.code == "internal"
    kept = (hurt.folder / INCIDENTS).read_text()
    for canary in CANARIES:
        assert canary not in sent
        assert canary in kept
    assert reply.incident in kept


def test_nothing_leaks_where_no_incident_can_be_written(
    home: SiteHome, order: wire.Order, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "Jane^Doe"
    in_the_way.write_text("a file where the site's folder should be")
    hurt = replace(home, folder=in_the_way)
    reply = _ask(hurt, replace(order, experiment="not an experiment"))
    assert (reply.code, reply.incident) == ("config", "")


def test_an_order_that_is_none_is_answered_by_code(home: SiteHome) -> None:
    grid = LocalGrid(make_client_app(lambda _context: home), 1)
    (message,) = grid.send_and_receive([Message(RecordDict({}), 100, "train")])
    assert wire.unpack_reply(message.content, None).code == "wire"


def test_the_wire_version_is_checked(home: SiteHome, order: wire.Order) -> None:
    record = wire.pack_order(order)
    record.config_records["order"]["version"] = 99
    grid = LocalGrid(make_client_app(lambda _context: home), 1)
    (message,) = grid.send_and_receive([Message(record, 100, "train")])
    assert wire.unpack_reply(message.content, None).code == "wire"


def test_a_context_names_its_partition() -> None:
    seen: list[int] = []

    def find(context: Context) -> SiteHome:
        seen.append(int(context.node_config["partition-id"]))
        raise LookupError

    grid = LocalGrid(make_client_app(find), 3)
    for node in grid.get_node_ids():
        with pytest.raises(LookupError):
            grid.send_and_receive([Message(RecordDict({}), node, "train")])
    assert seen == [0, 1, 2]
