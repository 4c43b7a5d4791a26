"""Secure aggregation in whole runs: the sum is the plain one, whoever drops out, and no site's update is ever in the open."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from numpy.typing import NDArray
from secret import Sums

from fedmed_client.app import make_client_app
from fedmed_client.ledger import Ledger
from fedmed_client.workbench import SiteHome
from fedmed_common import wire
from fedmed_common.errors import ConfigError, PolicyRefusal, QuorumError
from fedmed_common.loading import load_experiment
from fedmed_common.secure import circle as messages
from fedmed_common.secure.fixed_point import Layout, blocks_of
from fedmed_common.training_config import SecureAggregation
from fedmed_server import history
from fedmed_server.app import RunRequest, run_federation
from fedmed_server.history import RoundDone, RunEnded
from fedmed_server.secure import FILE
from fedmed_server.state import RunState, load_state
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.federation import make_homes
from fedmed_simulations.grid import LocalGrid
from fedmed_strategies.central_privacy import CentralPrivacy
from fedmed_strategies.presets import RECIPES
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.secure import check_ranges, layout, of_site

SECURE = "[secure_aggregation]\n"
SITES = 4


class Watched(LocalGrid):
    """A grid that shows each reply to ``see``, which may give another one in its place."""

    def __init__(self, homes: list[SiteHome], see: Callable[[wire.Order, Message], Message | None]) -> None:
        app = make_client_app(lambda context: homes[int(context.node_config["partition-id"])])
        super().__init__(app, len(homes))
        self._see = see

    def _carry_out(self, message: Message) -> Message:
        order = wire.unpack_order(message.content, wire.Kind(message.metadata.message_type))
        node = message.metadata.dst_node_id
        reply = super()._carry_out(message)
        return self._see(replace(order, best=node - 100), reply) or reply


def run(
    write_experiment: Callable[..., Path],
    folder: Path,
    extra: str = "",
    see: Callable[[wire.Order, Message], Message | None] = lambda _order, _reply: None,
    **fields: Any,
) -> tuple[RunState, list[Any], list[SiteHome]]:
    """The state after a run, its history, its sites."""
    file = write_experiment(**{"rounds": 2, "sites": SITES, "extra": extra, **fields})
    experiment = load_experiment(file)
    homes = list(make_homes(experiment, check_experiment(experiment, file), folder / "sites"))
    (folder / "run").mkdir(parents=True, exist_ok=True)
    request = RunRequest(experiment=experiment, folder=folder / "run", command="test", sites=len(homes))
    run_federation(Watched(homes, see), request)
    state = load_state(folder / "run")
    assert state is not None
    return state, list(history.read(folder / "run" / history.FILE)), homes


def bound(state: RunState, rounds: int) -> float:
    """By how much the fixed-point numbers of so many rounds can move a parameter."""
    layout = Layout(tuple(blocks_of({"x": np.zeros(1)}, 2.0)), SITES)
    return rounds * layout.error(layout.blocks[0])


@pytest.mark.parametrize(
    "extra",
    [
        "",
        '[recipe]\nname = "fedavg"\nalso = ["equal"]\n',
        '[recipe]\nname = "fedavg"\nalso = ["holders"]\n',
        '[recipe]\nname = "fedprox"\nalso = ["fedavgm"]\n',
    ],
    ids=["fedavg", "equal", "holders", "prox and momentum"],
)
def test_the_first_round_in_secret_is_the_plain_one_but_for_the_fixed_point(
    write_experiment: Callable[..., Path], tmp_path: Path, extra: str
) -> None:
    plain, _, _ = run(write_experiment, tmp_path / "plain", extra, rounds=1)
    secret, records, _ = run(write_experiment, tmp_path / "secret", SECURE + extra, rounds=1)
    for name, array in plain.parameters.items():
        np.testing.assert_allclose(secret.parameters[name], array, rtol=2e-7, atol=bound(plain, 1) + 1e-8)
    assert isinstance(records[-1], RunEnded)
    assert records[-1].status == "completed"


def test_no_reply_holds_an_update_and_two_runs_look_nothing_alike(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    seen: list[NDArray[np.uint32]] = []

    def see(order: wire.Order, reply: Message) -> None:
        if order.kind is wire.Kind.TRAIN:
            records = reply.content
            assert "parameters" not in records
            assert "sums" not in records
            (vector,) = records.array_records["masked"].values()
            seen.append(vector.numpy())

    for folder in ("a", "b"):
        run(write_experiment, tmp_path / folder, SECURE, see, rounds=1)
    first, again = seen[0], seen[SITES]
    assert first.shape == again.shape
    assert (first == again).mean() < 0.01
    high = np.unpackbits(first.view(np.uint8)).mean()
    assert high == pytest.approx(0.5, abs=6 * 0.5 / np.sqrt(32 * first.size))


def dropping(kind: wire.Kind, stage: str, sites: set[int]) -> Callable[[wire.Order, Message], Message | None]:
    """These sites fail in the stage: 'keys', 'shares', 'vector' or 'opening'."""

    def see(order: wire.Order, reply: Message) -> Message | None:
        wanted = messages.wanted(order.secure) if order.secure else None
        found = "vector"
        if wanted is None or order.kind is not kind:
            return None
        if order.kind is wire.Kind.SECURE:
            after = "opening" if wanted.agreed else "agreeing"
            found = after if wanted.survivors else "shares" if wanted.circle else "keys"
        if found != stage or order.best not in sites:
            return None
        record = RecordDict(dict(reply.content))
        for name in set(record) - {"reply"}:
            del record[name]
        record["reply"]["code"] = "internal"
        reply.content = record
        return reply

    return see


@pytest.mark.parametrize("stage", ["keys", "shares", "vector", "agreeing", "opening"])
def test_a_site_that_is_lost_in_any_stage_costs_itself_alone(
    write_experiment: Callable[..., Path], tmp_path: Path, stage: str
) -> None:
    """The model is that of the others; of one that is lost after its vector came, that of all."""
    federation = "[federation]\nretries = 0\nquorum = 0.5\n"
    kind = wire.Kind.TRAIN if stage == "vector" else wire.Kind.SECURE
    lost = dropping(kind, stage, {1})

    def lost_in_training(order: wire.Order, reply: Message) -> Message | None:
        if stage in {"agreeing", "opening"} or order.kind is not wire.Kind.TRAIN or order.best != 1:
            return None
        record = RecordDict({"reply": reply.content["reply"]})
        record["reply"]["code"] = "internal"
        reply.content = record
        return reply

    plain, _, _ = run(write_experiment, tmp_path / "plain", federation, lost_in_training, rounds=1)
    secret, records, _ = run(write_experiment, tmp_path / "secret", SECURE + federation, lost, rounds=1)
    for name, array in plain.parameters.items():
        np.testing.assert_allclose(secret.parameters[name], array, rtol=2e-7, atol=4 * bound(plain, 1) + 1e-8)
    ended = records[-1]
    if stage in {"agreeing", "opening"}:
        assert ended.status == "completed"
    else:
        assert ended.status.startswith("degraded: site-1 ")
        (done,) = [record for record in records if isinstance(record, RoundDone)]
        assert sorted((r.site, r.outcome) for r in done.train) == [
            ("site-0", "ok"), ("site-1", "failed"), ("site-2", "ok"), ("site-3", "ok")
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "match"),
    [
        ("keys", "of 2 sites|have to stay|2 of 4"),
        ("shares", "gave shares for a secure sum, 3 have to"),
        ("vector", "2 of 4 sites"),
        ("agreeing", "2 sites agree on who is in the secure sum; 3 have to"),
        ("opening", "2 sites help to open the secure sum; 3 have to"),
    ],
)
def test_with_too_few_left_nothing_is_opened_and_the_run_says_why(
    write_experiment: Callable[..., Path], tmp_path: Path, stage: str, match: str
) -> None:
    federation = "[federation]\nretries = 0\nquorum = 0.6\n"
    kind = wire.Kind.TRAIN if stage == "vector" else wire.Kind.SECURE
    with pytest.raises(QuorumError, match=match):
        run(write_experiment, tmp_path, SECURE + federation, dropping(kind, stage, {0, 2}), rounds=1)


@pytest.mark.parametrize("stage", ["vector", "agreeing", "opening"])
def test_a_run_that_crashes_goes_on_with_the_same_sum(
    write_experiment: Callable[..., Path], tmp_path: Path, stage: str
) -> None:
    """The vectors that sites have masked are asked for again, and no site opens another set."""
    whole, _, _ = run(write_experiment, tmp_path / "whole", SECURE)
    crashed: list[bool] = []

    def crash(order: wire.Order, _reply: Message) -> None:
        wanted = messages.wanted(order.secure) if order.secure else None
        after = (
            "" if wanted is None or wanted.survivors is None else "opening" if wanted.agreed else "agreeing"
        )
        in_stage = order.kind is wire.Kind.TRAIN if stage == "vector" else after == stage
        if order.round == 2 and order.best == 2 and in_stage and not crashed:
            crashed.append(True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(write_experiment, tmp_path / "crashed", SECURE, crash)
    before = (tmp_path / "crashed" / "run" / FILE).read_bytes()
    state, _, homes = run(write_experiment, tmp_path / "crashed", SECURE)
    after = json.loads((tmp_path / "crashed" / "run" / FILE).read_bytes())
    assert after["circle"] == json.loads(before)["circle"]
    for name, array in whole.parameters.items():
        np.testing.assert_array_equal(state.parameters[name], array)
    for home in homes:
        assert len(list((home.folder / "secure").rglob("*.json"))) == 2


def test_statistics_are_sums_alone_and_the_same(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    """Counts are whole numbers, so that what is rounded is exact."""
    recipe = '[recipe]\nname = "logit_adjustment"\n'
    kinds: list[set[str]] = []

    def see(order: wire.Order, reply: Message) -> None:
        if order.kind is wire.Kind.STATISTICS:
            kinds.append(set(reply.content))

    plain, _, _ = run(write_experiment, tmp_path / "plain", recipe, rounds=1)
    secret, _, _ = run(write_experiment, tmp_path / "secret", SECURE + recipe, see, rounds=1)
    assert kinds == [{"reply", "masked", "secure", "seconds"}] * SITES
    for name in plain.memory:
        if name.startswith("counts/"):
            np.testing.assert_allclose(secret.memory[name], plain.memory[name], atol=1e-4)
    assert any(name.startswith("counts/") for name in secret.memory)


def test_scaffolds_variates_are_summed_in_secret_too(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    extra = '[recipe]\nname = "scaffold"\n'
    states = []
    for name, more in (("plain", ""), ("secret", SECURE)):
        file = write_experiment(rounds=2, sites=SITES, extra=more + extra)
        text = file.read_text().replace(
            "learning_rate = 1e-2", 'learning_rate = 1e-2\noptimizer = "sgd"\nmomentum = 0.0'
        )
        states.append(
            run(lambda text=text, file=file, **_: (file.write_text(text), file)[1], tmp_path / name)[0]
        )
    plain, secret = states
    for name, array in plain.parameters.items():
        np.testing.assert_allclose(secret.parameters[name], array, atol=1e-5)


def test_with_privacy_each_site_is_charged_and_the_sum_is_what_leaves(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    extra = SECURE + "[privacy]\nepsilon = 8.0\nsampling_rate = 0.5\n"
    state, records, homes = run(write_experiment, tmp_path, extra, rounds=1)
    assert records[-1].status == "completed"
    assert all(np.isfinite(array).all() for array in state.parameters.values())
    for home in homes:
        (row,) = Ledger(home.folder).read()
        assert row.noise_multiplier > 0
    (done,) = [record for record in records if isinstance(record, RoundDone)]
    assert all(result.epsilon_spent for result in done.train)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ('[recipe]\nname = "krum"\n', "'krum' cannot be in it"),
        ('[recipe]\nname = "qffl"\n', "a site weighs its update itself"),
        ('[recipe]\nname = "fedrdn"\n', "nobody sees a site's own statistics"),
        (
            "[secure_aggregation]\ndistributed_noise = true\n[privacy]\nepsilon = 8.0\nsampling_rate = 0.5\n",
            "set train.steps = 1",
        ),
    ],
)
def test_what_needs_single_updates_is_refused_before_a_run(
    write_experiment: Callable[..., Path], extra: str, said: str
) -> None:
    file = write_experiment(sites=SITES, extra=extra if "[secure" in extra else SECURE + extra)
    with pytest.raises(ConfigError) as refused:
        check_experiment(load_experiment(file), file)
    assert said in str(refused.value)


def test_a_site_that_demands_it_answers_no_training_without(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    policy = "least_patients = 1, require_secure_aggregation = true"
    _, records, _ = run(write_experiment, tmp_path / "with", SECURE, policy=policy, rounds=1)
    assert records[-1].status == "completed"
    with pytest.raises(QuorumError, match="require_secure_aggregation"):
        run(write_experiment, tmp_path / "without", policy=policy, rounds=1)


SHARED = """[secure_aggregation]
distributed_noise = true
[privacy]
epsilon = 8.0
sampling_rate = 1.0
noise_multiplier = 50.0
"""


def test_shared_noise_makes_the_sum_as_noisy_as_one_site_s_own_would_be(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    """Each of four sites adds a third of the variance: three stay at least. The ledger is charged for all of it."""

    def plain_sgd(**fields: Any) -> Path:
        file = write_experiment(**fields)
        sgd = 'learning_rate = 1e-2\noptimizer = "sgd"\nmomentum = 0.0\nweight_decay = 0.0'
        file.write_text(file.read_text().replace("learning_rate = 1e-2", sgd))
        return file

    states = []
    for folder in ("a", "b"):
        state, _, homes = run(plain_sgd, tmp_path / folder, SHARED, steps=1, rounds=1)
        states.append(np.concatenate([array.ravel() for array in state.parameters.values()]))
    (row,) = Ledger(homes[0].folder).read()
    assert (row.noise_multiplier, row.sharing) == (50.0, 3)
    patients = sum(home.cohort(load_experiment(tmp_path / "discs.toml")).patients("train") for home in homes)
    expected = 1e-2 * 50.0 * np.sqrt(4 / 3) / patients
    spread = float(np.std(states[0] - states[1])) / np.sqrt(2)
    assert spread == pytest.approx(expected, rel=6 / np.sqrt(2 * states[0].size))


def test_central_privacy_in_secret_has_its_noise_from_the_sites_that_stay(tmp_path: Path) -> None:
    sums = Sums(tmp_path, 5, length=60_000)
    party, recipe = sums.party, RECIPES["central_privacy"] + RECIPES["equal"]
    assert recipe.central_privacy is not None
    zeros = {"x": np.zeros(sums.length, np.float32)}
    added = [
        of_site(recipe, party, name, zeros, {}, {}, np.zeros(1, np.int64), 1)["delta/x"]
        for name in party.names
    ]
    of_those_who_stay = np.sum(added[: party.honest], axis=0)
    expected = recipe.central_privacy.noise_multiplier * recipe.central_privacy.clipping_norm / 5
    assert of_those_who_stay.std() == pytest.approx(expected, rel=6 / np.sqrt(2 * sums.length))
    long = {"x": np.full(sums.length, 1.0, np.float32)}
    quiet = RECIPES["equal"] + Recipe(central_privacy=CentralPrivacy(noise_multiplier=0.0))
    clipped = of_site(quiet, party, party.names[0], long, {}, {}, np.zeros(1, np.int64), 1)["delta/x"]
    assert 0.999 / 5 < np.linalg.norm(clipped) <= 1.0 / 5


def test_a_change_beyond_the_range_is_refused_though_its_share_is_within(tmp_path: Path) -> None:
    """The sum over sites that all change so much would begin anew at the other end."""
    settings = SecureAggregation(range=2.0)
    check_ranges(RECIPES["fedavg"], settings, {"x": np.array([-2.0, 2.0])}, {"c": np.array([20.0])}, 0.1)
    for delta, sums in (({"x": np.array([2.5])}, {}), ({}, {"c": np.array([-20.5])})):
        with pytest.raises(PolicyRefusal, match="secure_range"):
            check_ranges(RECIPES["fedavg"], settings, delta, sums, 0.1)
    party = Sums(tmp_path, 3).party
    for recipe in (RECIPES["fedavg"], RECIPES["equal"] + RECIPES["central_privacy"]):
        delta = {"x": np.full(3, 2.0 if recipe.central_privacy is None else 50.0, np.float32)}
        made = layout(recipe, settings, delta, {}, {}, 1, 1.0, 3)
        parts = [
            of_site(recipe, party, name, delta, {}, {}, np.zeros(1, np.int64), 1) for name in party.names
        ]
        total = np.add.reduce([made.encode(part) for part in parts], dtype=np.uint32)
        np.testing.assert_allclose(
            made.decode(total)["delta/x"], sum(part["delta/x"] for part in parts), atol=1e-6
        )


@pytest.mark.parametrize(
    ("statistics", "presence"),
    [('["patients", "counts", "presence"]', True), ('["patients", "counts"]', False)],
)
def test_holder_rows_know_of_a_site_what_its_policy_lets_out(
    write_experiment: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    statistics: str,
    presence: bool,
) -> None:
    seen: list[int] = []

    def note(*arguments: Any) -> Any:
        seen.extend(arguments[6])
        return of_site(*arguments)

    monkeypatch.setattr("fedmed_strategies.secure.of_site", note)
    extra, policy = SECURE + '[recipe]\nname = "holders"\n', f"least_patients = 1, statistics = {statistics}"
    run(write_experiment, tmp_path, extra, rounds=1, policy=policy)
    assert len(seen) == SITES
    assert all((count > 0) == presence for count in seen)


def test_a_site_that_takes_anothers_keys_costs_itself_alone(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    seen: list[messages.Offer] = []

    def steal(order: wire.Order, reply: Message) -> Message | None:
        if order.kind is not wire.Kind.SECURE or messages.wanted(order.secure).circle is not None:
            return None
        offer = messages.given(str(reply.content.config_records["secure"]["text"])).offer
        assert offer is not None
        seen.append(offer)
        if order.best == 2:
            stolen = seen[0].model_copy(update={"site": offer.site, "patients": offer.patients})
            reply.content.config_records["secure"]["text"] = messages.to_text(messages.Given(offer=stolen))
            return reply
        return None

    federation = "[federation]\nretries = 0\nquorum = 0.5\n"
    _, records, _ = run(write_experiment, tmp_path, SECURE + federation, steal, rounds=1)
    assert records[-1].status.startswith("degraded: site-2 ")
    (done,) = [record for record in records if isinstance(record, RoundDone)]
    assert [(r.site, r.outcome, r.code) for r in done.train if r.outcome != "ok"] == [
        ("site-2", "rejected", "secure aggregation")
    ]
