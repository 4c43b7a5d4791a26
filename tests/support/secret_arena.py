"""A round in secret in which one of four sites is hostile: the sites' keys, shares, masks and what opens the sum are real."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from arena import SMALL
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import strategies as st
from scripted import Sites, channel_of, experiment, update

from fedmed_client.secure import Sum, Summing
from fedmed_common import wire
from fedmed_common.errors import PolicyRefusal, QuorumError
from fedmed_common.params import Parameters
from fedmed_common.secure import circle
from fedmed_common.secure.circle import Given
from fedmed_common.site_config import Policy
from fedmed_common.training_config import SecureAggregation
from fedmed_server.rounds import run_round
from fedmed_server.state import RunState
from fedmed_strategies import secure
from fedmed_strategies.presets import RECIPES

STAGES = ("keys", "shares", "vector", "agreeing", "opening")
PATIENTS = {"a": 9, "evil": 7, "m": 6, "z": 8}
SETTINGS = SecureAggregation(range=8.0)
_EXPERIMENT = experiment(2, evaluate_every=2, quorum=0.5, update_norm_limit=10.0).model_copy(
    update={"secure_aggregation": SETTINGS}
)
_RECIPE = RECIPES["fedavg"].model_copy(update={"secure": True})
Spoil = Callable[[wire.Reply], RecordDict]


def stage_of(order: wire.Order) -> str:
    """What the order asks of a site."""
    wanted = circle.wanted(order.secure)
    if order.kind is wire.Kind.TRAIN:
        return "vector"
    if wanted.survivors is not None:
        return "agreeing" if wanted.agreed is None else "opening"
    return "keys" if wanted.circle is None else "shares"


@dataclass
class SecretSites(Sites):
    """Sites that sum what they train in secret; in ``stage`` the hostile one answers with what ``spoil`` makes of its reply."""

    folder: Path = Path()
    stage: str = ""
    with_what: Spoil = wire.pack_reply

    def app(self) -> ClientApp:
        """With the messages of secure sums."""
        app = super().app()
        app.query("secure")(lambda message, context: self._answer(message, context, wire.Kind.SECURE))
        return app

    def _answer(self, message: Message, context: Context, kind: wire.Kind) -> Message:
        order, site = wire.unpack_order(message.content, kind), self.name(context.node_id)
        try:
            reply = self._summing(site, order)
        except PolicyRefusal as refusal:
            reply = replace(_blank(site, order), code="policy", rule=refusal.rule, incident="01")
        hostile = site == "evil" and stage_of(order) == self.stage
        return Message(self.with_what(reply) if hostile else wire.pack_reply(reply), reply_to=message)

    def _summing(self, site: str, order: wire.Order) -> wire.Reply:
        reply, wanted = _blank(site, order), circle.wanted(order.secure)
        of_site = Sum(
            folder=self.folder / site,
            site=site,
            run=order.run,
            session=wanted.session,
            patients=self.patients[site],
            policy=Policy(least_sites=2, maximum_share=1.0),
            settings=SETTINGS,
            about=(wire.Kind.TRAIN.value, ""),
        )
        if order.kind is wire.Kind.SECURE:
            return replace(reply, secure=circle.to_text(of_site.answer(wanted)))
        party, recipe = of_site.taking_part(wanted), _RECIPE
        delta = update(site, order.round, order.parameters)
        layout = secure.layout(recipe, SETTINGS, delta, {}, {}, 1, 1.0, len(party.names))
        arrays = secure.of_site(recipe, party, site, delta, {}, {}, np.zeros(1, np.int64), 1)
        fields = Summing(of_site, party).reply(layout, arrays)
        return replace(reply, **fields)  # type: ignore[arg-type]


def _blank(site: str, order: wire.Order) -> wire.Reply:
    return wire.Reply(site=site, run=order.run, round=order.round, attempt=order.attempt)


def play_secret(stage: str, spoil: Spoil) -> tuple[Parameters | None, str]:
    """The round's parameters, or None where nothing was opened; and what became of the hostile site, or of the round."""
    with tempfile.TemporaryDirectory() as folder:
        sites = SecretSites(PATIENTS, folder=Path(folder), stage=stage, with_what=spoil)
        channel = channel_of(sites.grid(), _EXPERIMENT)
        try:
            done = run_round(channel, _RECIPE, sites.roster(), RunState(round=0, parameters=SMALL))
        except QuorumError as problem:
            return None, str(problem)
    (result,) = [result for result in done.record.train if result.site == "evil"]
    return (
        done.state.parameters,
        result.outcome if result.outcome == "ok" else f"{result.outcome}: {result.code}",
    )


def _absent(reply: wire.Reply) -> RecordDict:
    return wire.pack_reply(replace(reply, secure="", masked=None, code="internal", incident="01"))


LOST = {stage: play_secret(stage, _absent)[0] for stage in STAGES}
"""What the round comes to where the site is lost in a stage: without it, or, in the last one, with it."""
ALL = play_secret("", wire.pack_reply)[0]


def said(change: Callable[[Given], Given]) -> Spoil:
    """Another message of the protocol in the place of the good one."""
    return lambda reply: wire.pack_reply(
        replace(reply, secure=circle.to_text(change(circle.given(reply.secure))))
    )


def _offer(**changes: object) -> Spoil:
    return said(lambda given: given.model_copy(update={"offer": given.offer.model_copy(update=changes)}))  # type: ignore[union-attr]


def _sealed(change: Callable[[dict[str, str]], dict[str, str]]) -> Spoil:
    return said(lambda given: given.model_copy(update={"sealed": change(given.sealed or {})}))


def _opened(change: Callable[[dict[str, str]], dict[str, str]]) -> Spoil:
    return said(lambda given: given.model_copy(update={"opened": change(given.opened or {})}))


def _text(text: str) -> Spoil:
    return lambda reply: wire.pack_reply(replace(reply, secure=text))


def _vector(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return lambda reply: wire.pack_reply(replace(reply, masked=change(reply.masked)))  # type: ignore[arg-type]


def _undeclared(reply: wire.Reply) -> RecordDict:
    return wire.pack_reply(replace(reply, delta=update("evil", 1, SMALL)))


ANYWHERE: dict[str, Spoil] = {
    "no text": _text(""),
    "not JSON": _text("{"),
    "another message": _text('{"offer": null}'),
    "a deep text": _text('{"offer": ' * 50_000),
    "a long text": _text("x" * 3_000_000),
    "an update beside it": _undeclared,
    "another site's name": lambda reply: wire.pack_reply(replace(reply, site="a")),
}
SECRET: dict[str, dict[str, Spoil]] = {
    "keys": {
        **ANYWHERE,
        "a key of order one": _offer(mask_key="0" * 64),
        "its own key twice": said(
            lambda given: Given(offer=given.offer.model_copy(update={"sign_key": given.offer.seal_key}))  # type: ignore[union-attr]
        ),
        "a seal of order one": _offer(seal_key="01" + "0" * 62),
        "more patients than it has": _offer(patients=1_000_000),
        "another name in it": _offer(site="a"),
        "keys nobody has": _offer(mask_key="09" + "0" * 62, seal_key="02" + "0" * 62),
        "a signature that is none": _offer(signature="0f", certificate="-----BEGIN"),
        "no offer": said(lambda _given: Given()),
    },
    "shares": {
        **ANYWHERE,
        "nobody's": _sealed(lambda _sealed: {}),
        "one less": _sealed(lambda sealed: {"a": sealed["a"]}),
        "for somebody else too": _sealed(lambda sealed: {**sealed, "nobody": "00"}),
    },
    "vector": {
        **ANYWHERE,
        "another's mark": said(lambda _given: Given(mark="0f" * 64)),
        "no mark": said(lambda _given: Given()),
        "a number less": _vector(lambda vector: vector[:-1]),
        "of another kind": _vector(lambda vector: vector.astype(np.float32)),
        "in columns": _vector(lambda vector: vector[:, None]),
    },
    "agreeing": {
        **ANYWHERE,
        "another's word": said(lambda _given: Given(agreed="0f" * 64)),
        "no word": said(lambda _given: Given()),
    },
    "opening": {
        **ANYWHERE,
        "wrong ones": _opened(lambda opened: dict.fromkeys(opened, "0" * 64)),
        "of one site alone": _opened(lambda opened: {"a": opened["a"]}),
        "of a stranger": _opened(lambda opened: {**opened, "nobody": "0" * 64}),
    },
}
"""By stage: none of these may change what the others' sum is."""

POISON: dict[str, tuple[str, Spoil, str]] = {
    "shares that nobody can open": (
        "shares",
        _sealed(lambda sealed: dict.fromkeys(sealed, "abc")),
        "could open what 'evil' had sealed for them; 3 have to",
    ),
    "shares for another site": (
        "shares",
        _sealed(lambda sealed: dict(zip(sealed, reversed(sealed.values()), strict=True))),
        "what 'evil' had sealed for them; 3 have to",
    ),
    "random numbers": (
        "vector",
        _vector(lambda vector: np.random.default_rng(1).integers(0, 2**32, vector.shape, np.uint32)),
        "longer than federation.update_norm_limit",
    ),
}
"""What spoils a sum that cannot be opened without the site: the round ends with an error that says so."""
CASES = [(stage, name) for stage in STAGES for name in SECRET[stage]]


# Drawn answers

_TEXTS = st.text(max_size=60) | st.from_regex(
    r'\{"(offer|sealed|opened)": \{"(a|evil|m|z|site)": .{0,20}\}\}'
)
_RECORDS = ("secure", "masked", "parameters", "metrics", "privacy", "more")


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, Spoil]:
    """A stage, and what the hostile site answers in it."""
    stage, place = draw(st.sampled_from(STAGES)), draw(st.floats(0, 1, exclude_max=True))
    kinds = (
        ["number", "letter", "text", "record", "drop"]
        if stage == "vector"
        else ["text", "letter", "letter", "record", "drop"]
    )
    kind = draw(st.sampled_from(kinds))
    text, letter = draw(_TEXTS), draw(st.sampled_from('0f"{}:,zé'))
    name, other = (
        draw(st.sampled_from(_RECORDS)),
        draw(st.sampled_from([ConfigRecord({"x": 1}), MetricRecord({"x": 1}), ArrayRecord()])),
    )
    flipped = np.uint32(draw(st.integers(1, 2**32 - 1)))

    def spoil(reply: wire.Reply) -> RecordDict:
        record = wire.pack_reply(reply)
        if kind == "text":
            record["secure"] = ConfigRecord({"text": text})
        elif kind == "letter":
            at = int(place * len(reply.secure))
            record["secure"] = ConfigRecord({"text": reply.secure[:at] + letter + reply.secure[at + 1 :]})
        elif kind == "drop":
            del record[sorted(record)[int(place * len(record))]]
        elif kind == "record":
            record[name] = other
        else:
            vector = np.array(reply.masked)
            vector[int(place * len(vector))] ^= flipped
            record = wire.pack_reply(replace(reply, masked=vector))
        return record

    return stage, spoil


def play_answer(answer: tuple[str, Spoil]) -> str:
    """What became of a drawn answer; that it changed no sum but by another vector, which nobody can tell from an update's."""
    stage, spoil = answer
    parameters, what = play_secret(stage, spoil)
    if parameters is None:
        assert "secure sum" in what
        return "the round ended: " + ("too long" if "longer" in what else "not to be opened")
    assert all(np.isfinite(array).all() for array in parameters.values())
    if (stage, what) != ("vector", "ok"):
        references = [reference for reference in (ALL, *LOST.values()) if reference is not None]
        assert any(all(np.array_equal(one[name], parameters[name]) for name in one) for one in references)
    return what
