"""The link as a real process between a real SuperLink and a real worker."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnosed import at

from fedmed_client.link import approvals
from fedmed_client.site.audit import AuditLog
from fedmed_client.site.home import SiteFolder
from fedmed_client.site.joining import join, rotate
from fedmed_common import bundle, identity
from fedmed_common.config import Experiment
from fedmed_common.errors import IdentityRefused, KeyInUse, Revoked, Unreachable
from fedmed_server.provision import certify
from fedmed_simulations.rehearsal.machines import Machine, wait_for
from fedmed_simulations.rehearsal.relay import Relay

Start = Callable[[SiteFolder], Machine]


def standing(home: SiteFolder) -> dict[str, Any]:
    try:
        return dict(json.loads(home.status_file.read_bytes()))
    except (OSError, ValueError):
        return {"standing": {"state": ""}, "order": None}


def is_(state: str, home: SiteFolder) -> Callable[[], bool]:
    return lambda: standing(home)["standing"]["state"] == state


def connected(home: SiteFolder, start: Start) -> Machine:
    home.status_file.unlink(missing_ok=True)
    link = start(home)
    wait_for(is_("connected", home), "the link connects", 60, [link])
    return link


def events(home: SiteFolder, run: str = "run-1") -> list[str]:
    AuditLog(home.path).verify()
    lines = [json.loads(line) for line in home.audit_file.read_text().splitlines()]
    return [line["event"] for line in lines if line.get("run") == run]


def ended(link: Machine, kind: type[Exception]) -> str:
    """The link's last words, once it has ended with the kind's exit code."""
    wait_for(lambda: link.exit_code is not None, "the link ends", 60)
    assert link.exit_code == kind.exit_code  # type: ignore[attr-defined]
    return link.log.read_text()


@pytest.fixture(scope="module")
def trainer(_serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteFolder]:
    """A hospital whose worker runs, for all tests of this module."""
    home = _serving.join()
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    command = [sys.executable, "-m", "fedmed_client.work.worker", str(home.path)]
    worker = Machine(command, log=log, environment={"OMP_NUM_THREADS": "1"})
    yield home
    worker.kill()


def test_the_link_never_imports_torch() -> None:
    listed = "link, line, orders, flower, messages, reach, problems, diagnose, approvals, status, cli"
    code = f"from fedmed_client.link import {listed}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_orders_are_answered(
    coordinator: Any, trainer: SiteFolder, start: Start, experiment: Experiment
) -> None:
    connected(trainer, start)
    run, site = coordinator.run(experiment), trainer.path.name
    facts = run.answer(run.ask(site, "query.facts"))
    assert (facts.site, facts.code, facts.facts.patients["train"]) == (site, "", 6)
    update = run.answer(run.ask(site))
    assert (update.code, len(update.delta) > 0) == ("", True)
    again = run.answer(run.ask(site, attempt=1))
    assert replace(again, attempt=0, delta={}) == replace(update, delta={})
    assert all(np.array_equal(again.delta[name], update.delta[name]) for name in update.delta)
    wait_for(lambda: events(trainer).count("sent") == 3, "the last answer is noted", 20)
    assert events(trainer) == ["received", "sent", "received", "sealed", "sent", "received", "sent"]
    assert coordinator.state(trainer).refusal is None


def test_a_person_approves_and_rejects(
    coordinator: Any, trainer: SiteFolder, start: Start, experiment: Experiment
) -> None:
    asked = experiment.model_copy(update={"name": "asked"})
    text = trainer.site_file.read_text()
    trainer.site_file.write_text(text.replace("consortium-signed", "ask"))
    try:
        connected(trainer, start)
        run, site = coordinator.run(asked), trainer.path.name
        rules = [run.answer(run.ask(site, "query.facts")).rule]
        hash = approvals.find(trainer, bundle.approval_hash(asked, bundle.installed_version())).hash
        approvals.approve(trainer, hash)
        rules.append(run.answer(run.ask(site, "query.facts", attempt=1)).rule)
        approvals.reject(trainer, hash)
        rules.append(run.answer(run.ask(site, "query.facts", attempt=2)).rule)
    finally:
        trainer.site_file.write_text(text)
    assert rules == ["approval_pending", "", "approval"]


def test_what_the_consortium_did_not_sign_is_refused(
    coordinator: Any, start: Start, experiment: Experiment
) -> None:
    home = coordinator.join()
    connected(home, start)
    run = coordinator.run(experiment)
    other = experiment.model_copy(update={"seed": 2}).order_text()
    answer = run.answer(run.ask(home.path.name, experiment=other))
    assert (answer.code, answer.rule, answer.site) == ("policy", "bundle", home.path.name)
    assert run.answer(run.ask(home.path.name, round=experiment.rounds + 1)).rule == "bundle"
    run.end()
    coordinator.runs.pop()
    stranger = bundle.build(experiment, identity.new_signing_key())
    run = coordinator.run(experiment, stranger)
    assert run.answer(run.ask(home.path.name)).rule == "bundle"
    wait_for(lambda: events(home).count("sent") == 3, "the last answer is noted", 20)
    reasons = [json.loads(line).get("reason") for line in home.audit_file.read_text().splitlines()]
    assert [reason for reason in reasons if reason] == [
        "another experiment", "more rounds than the experiment has", "another signer",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "settings"),
    [("window", {"schedule": {"window": "{now}"}}), ("disk", {"limits": {"least_free_gb": 1e9}})],
)
def test_an_order_that_comes_at_a_bad_time_is_told_why(
    coordinator: Any, start: Start, experiment: Experiment, rule: str, settings: dict[str, Any]
) -> None:
    from datetime import datetime, timedelta

    later = [f"{datetime.now() + timedelta(hours=hours):%H:%M}" for hours in (2, 3)]
    if rule == "window":
        settings = {"schedule": {"window": "-".join(later)}}
    home = coordinator.join(**settings)
    connected(home, start)
    run = coordinator.run(experiment)
    answer = run.answer(run.ask(home.path.name, "query.facts"))
    assert (answer.code, answer.rule) == ("policy", rule)


def test_a_worker_that_is_not_there_is_told_as_a_failure(
    coordinator: Any, start: Start, experiment: Experiment, tmp_path: Path
) -> None:
    home = coordinator.join(limits={"least_free_gb": 0.0, "order_seconds": 1.0})
    connected(home, start)
    run = coordinator.run(experiment)
    assert run.answer(run.ask(home.path.name)).code == "worker"
    wait_for(lambda: "sent" in events(home), "the answer is noted", 20)
    assert events(home) == ["received", "worker-lost", "sent"]


def test_a_reply_outlives_a_cut_network(
    coordinator: Any, trainer: SiteFolder, start: Start, experiment: Experiment
) -> None:
    slow = experiment.model_copy(update={"train": experiment.train.model_copy(update={"steps": 400})})
    with Relay(coordinator.port) as relay:
        at(trainer, relay.port)
        try:
            link = connected(trainer, start)
            run, site = coordinator.run(slow), trainer.path.name
            asked, before = run.ask(site), events(trainer).count("sealed")
            wait_for(lambda: standing(trainer)["order"] is not None, "the order is at work", 30, [link])
            relay.cut()
            wait_for(lambda: events(trainer).count("sealed") > before, "the work is done", 60, [link])
            wait_for(is_("waiting", trainer), "the link sees that the network is away", 30, [link])
            assert standing(trainer)["standing"]["code"] == Unreachable.code
            relay.restore()
            assert run.answer(asked).code == ""
        finally:
            at(trainer, coordinator.port)


def test_a_killed_link_is_back_at_once_and_the_server_knows_to_ask_again(
    coordinator: Any, trainer: SiteFolder, start: Start, experiment: Experiment
) -> None:
    link, run, site = connected(trainer, start), coordinator.run(experiment), trainer.path.name
    first = run.answer(run.ask(site, "query.facts"))
    before = run.activated(site)
    link.kill()
    connected(trainer, start)
    assert run.activated(site) > before
    assert replace(run.answer(run.ask(site, "query.facts")), seconds={}) == replace(first, seconds={})


def test_what_nobody_waits_for_is_left(
    coordinator: Any, trainer: SiteFolder, start: Start, experiment: Experiment
) -> None:
    endless = experiment.model_copy(
        update={"train": experiment.train.model_copy(update={"steps": 100_000, "optimizer": "sgd"})}
    )
    link, run, site = connected(trainer, start), coordinator.run(endless), trainer.path.name
    run.ask(site)
    wait_for(lambda: standing(trainer)["order"] is not None, "the order is at work", 30, [link])
    run.end()
    coordinator.runs.pop()
    run = coordinator.run(experiment)
    assert run.answer(run.ask(site, "query.facts")).code == ""
    assert "cancelled" in events(trainer)


def test_a_run_that_goes_on_as_another_flower_run_gets_the_work_that_was_begun(
    coordinator: Any, trainer: SiteFolder, start: Start, experiment: Experiment
) -> None:
    slow = experiment.model_copy(
        update={"train": experiment.train.model_copy(update={"steps": 800}), "seed": 3}
    )
    link, run, site = connected(trainer, start), coordinator.run(slow), trainer.path.name
    before = events(trainer)
    run.ask(site, run="begun")
    wait_for(lambda: standing(trainer)["order"] is not None, "the order is at work", 30, [link])
    run.end()
    coordinator.runs.pop()
    run = coordinator.run(slow)
    assert run.answer(run.ask(site, run="begun", attempt=1)).code == ""
    wait_for(lambda: "sent" in events(trainer, "begun"), "the answer is noted", 20)
    assert events(trainer, "begun") == ["received", "sealed", "received", "sent"]
    assert events(trainer) == before


def test_a_rejection_stops_work(
    coordinator: Any, trainer: SiteFolder, start: Start, experiment: Experiment
) -> None:
    endless = experiment.model_copy(
        update={"train": experiment.train.model_copy(update={"steps": 99_999, "optimizer": "sgd"})}
    )
    link, run, site = connected(trainer, start), coordinator.run(endless), trainer.path.name
    asked = run.ask(site)
    wait_for(lambda: standing(trainer)["order"] is not None, "the order is at work", 30, [link])
    approvals.reject(trainer, bundle.approval_hash(endless, bundle.installed_version()))
    assert run.answer(asked).code == "interrupted"


def test_an_order_whose_parts_do_not_come_is_left_for_the_next(
    coordinator: Any, trainer: SiteFolder, start: Start, experiment: Experiment
) -> None:
    link = connected(trainer, start)
    run, site = coordinator.run(experiment), trainer.path.name
    run.begin_to_ask(site, "query.facts")
    assert run.answer(run.ask(site, "query.facts")).code == ""
    assert "a message is left: a part of the message does not come" in link.tail()


def test_a_server_that_is_killed_does_not_hand_out_orders_that_it_has_not_whole(
    coordinator: Any, trainer: SiteFolder, start: Start, experiment: Experiment
) -> None:
    link = connected(trainer, start)
    run, site = coordinator.run(experiment), trainer.path.name
    link.kill()
    run.begin_to_ask(site, "query.facts")
    coordinator.stop(hard=True)
    coordinator.start()
    link = connected(trainer, start)
    assert run.answer(run.ask(site, "query.facts")).code == ""
    assert "a message is left" not in link.tail()


def test_one_link_runs_in_a_home(coordinator: Any, start: Start) -> None:
    home = coordinator.join()
    connected(home, start)
    second = start(home)
    wait_for(lambda: second.exit_code is not None, "the second link ends", 30)
    assert second.exit_code == 2
    assert "another process is at work here as 'link'" in second.log.read_text()
    assert is_("connected", home)()


def test_a_copy_of_a_home_on_another_machine_is_refused(
    coordinator: Any, start: Start, tmp_path: Path
) -> None:
    home = coordinator.join()
    connected(home, start)
    copy = SiteFolder(tmp_path / home.path.name)
    shutil.copytree(home.path, copy.path, ignore=shutil.ignore_patterns("instance", "run", "status.json"))
    said = ended(start(copy), KeyInUse)
    assert "another machine is connected as" in said
    assert is_("connected", home)()


def test_a_site_that_is_revoked_while_it_works_says_so_and_ends(
    coordinator: Any, start: Start, experiment: Experiment
) -> None:
    home = coordinator.join()
    link = connected(home, start)
    coordinator.revoke(home)
    said = ended(link, Revoked)
    assert f"error: the consortium has revoked the site '{home.path.name}'\n  fix: " in said
    assert standing(home)["standing"]["state"] == "refused"


def test_a_certificate_that_is_renewed_is_taken_up_without_a_restart(coordinator: Any, start: Start) -> None:
    home = coordinator.join()
    link = connected(home, start)
    join(certify.renew(coordinator.folder, home.path.name).file, home)
    wait_for(lambda: "a new certificate is in use" in link.tail(), "the link takes it up", 30, [link])
    before = coordinator.state(home).last_seen
    wait_for(lambda: coordinator.state(home).last_seen > before, "the site is seen again", 30, [link])
    assert link.exit_code is None


def test_a_new_key_shuts_nobody_out(coordinator: Any, start: Start) -> None:
    home = coordinator.join()
    link = connected(home, start)
    answer = certify.sign(coordinator.folder, rotate(home)).file
    wait_for(is_("waiting", home), "the present key is refused, and the link waits", 30, [link])
    assert standing(home)["standing"]["code"] == IdentityRefused.code
    assert join(answer, home).new_key
    wait_for(is_("connected", home), "the link connects with the new key", 30, [link])


def test_a_site_that_was_never_connected_says_why_and_ends_and_one_that_was_waits(
    coordinator: Any, start: Start
) -> None:
    home = coordinator.join()
    with Relay(coordinator.port) as relay:
        at(home, relay.port)
        relay.cut()
        said = ended(start(home), Unreachable)
        assert "fix: permit TCP from this machine" in said
        relay.restore()
        connected(home, start).stop()
        relay.cut()
        link = start(home)
        wait_for(is_("waiting", home), "the link waits", 30, [link])
        relay.restore()
        wait_for(is_("connected", home), "the link connects", 30, [link])


def test_a_link_that_is_told_to_stop_says_goodbye(coordinator: Any, start: Start) -> None:
    home = coordinator.join()
    assert connected(home, start).stop() == 0
    assert is_("stopped", home)()
    wait_for(lambda: coordinator.state(home).state == "away", "the server knows", 20)


def test_the_servers_restart_is_waited_for(coordinator: Any, start: Start) -> None:
    home = coordinator.join()
    link = connected(home, start)
    coordinator.stop()
    wait_for(is_("waiting", home), "the link waits", 30, [link])
    coordinator.start()
    wait_for(is_("connected", home), "the link connects", 30, [link])
    wait_for(lambda: coordinator.state(home).state == "connected", "the server sees it", 30, [link])
