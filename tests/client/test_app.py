"""The ClientApp: orders are answered by code and incident when something goes wrong, and nothing else leaves."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from flwr.app import Context, Message, RecordDict
from site_orders import ask

from fedmed_client.app import INCIDENTS, app, make_client_app
from fedmed_client.site.audit import AuditLog
from fedmed_client.work.outbox import Outbox
from fedmed_client.workbench import SiteHome
from fedmed_common import params, wire
from fedmed_common.config import Experiment, Task
from fedmed_common.models import build_model
from fedmed_common.site_config import Device
from fedmed_server.gate import Expected, admit, allowed_metrics
from fedmed_simulations.grid import LocalGrid

CANARIES = ("Jane^Doe", "1.2.840.99999.1", "/secret/folder")


def _packed(reply: wire.Reply) -> list[tuple[str, bytes]]:
    """All bytes of a reply as Flower would send them."""
    return [(name, record.deflate()) for name, record in wire.pack_reply(reply).items()] + [
        (name, array.tobytes()) for name, array in reply.delta.items()
    ]


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
    reply = ask(home, replace(order, kind=wire.Kind.FACTS, parameters={}))
    assert reply.facts is not None
    assert sum(reply.facts.patients.values()) == 10
    assert reply.facts.presence == {"disc": reply.facts.patients["train"]}


def test_training_is_the_same_when_asked_again(home: SiteHome, order: wire.Order) -> None:
    first, second = ask(home, order), ask(home, replace(order, attempt=1))
    assert first.code == second.code == ""
    assert first.metrics["loss"].weight == 2
    assert set(first.seconds) == {"train", "wait", "site"}
    assert 0 < first.seconds["wait"] < first.seconds["train"] < first.seconds["site"]
    for name, array in first.delta.items():
        assert array.tobytes() == second.delta[name].tobytes()
    other_round = ask(home, replace(order, round=2))
    assert any(not np.array_equal(array, other_round.delta[name]) for name, array in first.delta.items())


def test_evaluation_over_too_few_patients_leaves_nothing(home: SiteHome, order: wire.Order) -> None:
    reply = ask(home, replace(order, kind=wire.Kind.EVALUATE, split="test"))
    assert reply.code == ""
    assert reply.metrics == {}


def test_the_policy_refuses_by_rule(home: SiteHome, order: wire.Order, experiment: Experiment) -> None:
    strict = replace(
        home,
        site=home.site.model_copy(
            update={"policy": home.site.policy.model_copy(update={"maximum_steps": 1})}
        ),
    )
    reply = ask(strict, order)
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
    reply = ask(strict, replace(order, kind=kind))
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
    reply = ask(hurt, replace(order, experiment="not an experiment"))
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
        raise LookupError(CANARIES[0])

    grid = LocalGrid(make_client_app(find), 3)
    for node in grid.get_node_ids():
        (message,) = grid.send_and_receive([Message(RecordDict({}), node, "train")])
        reply = wire.unpack_reply(message.content, None)
        assert (reply.site, reply.code, reply.incident) == ("unknown", "internal", "")
        assert CANARIES[0] not in repr(message.content)
    assert seen == [0, 1, 2]


def test_the_deployed_app_reads_its_site_at_each_order(
    home: SiteHome, order: wire.Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = home.site.model_dump(mode="json", exclude_none=True)
    file = tmp_path / "site.toml"
    monkeypatch.setenv("FEDMED_HOME", str(tmp_path))
    replies = []
    for steps in (2, 1):
        settings["policy"]["maximum_steps"] = steps
        file.write_text(tomli_w.dumps(settings))
        (message,) = LocalGrid(app, 1).send_and_receive([Message(wire.pack_order(order), 100, "train")])
        replies.append(wire.unpack_reply(message.content, order.parameters))
    assert [(reply.code, reply.rule) for reply in replies] == [("", ""), ("policy", "maximum_steps")]
    events = [json.loads(line)["event"] for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert events == ["sealed", "refused"]
    assert AuditLog(tmp_path).verify().lines == 2


def test_a_sealed_order_is_not_carried_out_again(home: SiteHome, order: wire.Order, tmp_path: Path) -> None:
    """Asked again, whatever the attempt, the site sends the same bytes, also after a restart without its data."""
    sealing = replace(home, outbox=Outbox(folder=tmp_path / "outbox"))
    evaluation = replace(order, kind=wire.Kind.EVALUATE)
    for asked in (order, evaluation):
        first = ask(sealing, asked)
        opened: list[Experiment] = []
        bare = replace(sealing, open=opened.append)  # type: ignore[arg-type]
        again, later = ask(bare, asked), ask(bare, replace(asked, attempt=3))
        assert opened == []
        assert _packed(again) == _packed(first)
        assert _packed(later) == _packed(replace(first, attempt=3))
        expected = Expected(
            site="alpha",
            run="run",
            round=1,
            attempt=3,
            kind=asked.kind,
            classes=("disc",),
            metrics=allowed_metrics(asked.kind, Task(classes=("disc",))),
            template=order.parameters if asked is order else None,
        )
        assert admit(wire.pack_reply(later), expected).attempt == 3


def test_a_reply_that_cannot_be_sealed_is_not_sent(home: SiteHome, order: wire.Order, tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("a file where the folder should be")
    reply = ask(replace(home, outbox=Outbox(folder=tmp_path / "outbox")), order)
    assert (reply.code, dict(reply.delta)) == ("internal", {})


def test_a_disk_that_fills_up_is_told_as_one_that_is_full(
    home: SiteHome, order: wire.Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes, as the full disk that is noticed before an order is let in: the order is asked again, not given up."""

    def write(_path: Path, _content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/folder")

    monkeypatch.setattr("fedmed_client.work.outbox.write_atomically", write)
    reply = ask(replace(home, outbox=Outbox(folder=tmp_path / "outbox")), order)
    assert (reply.code, reply.rule, dict(reply.delta)) == ("policy", "disk", {})
    assert reply.rule in wire.WAITING_RULES


def test_metrics_that_are_not_permitted_stay(home: SiteHome, order: wire.Order) -> None:
    def ruled(**rules: object) -> SiteHome:
        kept = home.site.policy.model_copy(update=rules)
        return replace(home, site=home.site.model_copy(update={"policy": kept}))

    assert set(ask(ruled(metrics=("dice",)), order).metrics) == set()
    evaluation = replace(order, kind=wire.Kind.EVALUATE)
    metrics = ask(ruled(metrics=("dice",), least_patients=1), evaluation).metrics
    assert set(metrics) == {"dice/disc"}
    facts = replace(order, kind=wire.Kind.FACTS, parameters={})
    few = ask(ruled(statistics=("patients",)), facts)
    assert few.facts is not None
    assert few.facts.presence == {}
    assert ask(ruled(statistics=()), facts).rule == "statistics"


def test_a_gpu_is_not_taken_where_none_is_given(home: SiteHome, order: wire.Order) -> None:
    frugal = replace(home, site=home.site.model_copy(update={"device": Device(gpu="none", threads=1)}))
    assert ask(frugal, order).code == ""
    text = order.experiment.replace('"device":"auto"', '"device":"cuda"')
    assert ask(frugal, replace(order, experiment=text)).rule == "gpu"
