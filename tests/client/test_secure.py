"""Secure aggregation without a network: the sum comes out whoever drops out, a part tells nothing, and no lie opens it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from secret import SESSION, Sums

from fedmed_client.secure import RULE
from fedmed_common import identity
from fedmed_common.consortium import Consortium
from fedmed_common.errors import PolicyRefusal, WireError
from fedmed_common.secure import circle as messages
from fedmed_common.secure import masks, shares
from fedmed_common.secure.circle import Circle, Wanted, threshold_of
from fedmed_common.secure.fixed_point import Block, Layout
from fedmed_common.site_config import Policy
from fedmed_common.training_config import SecureAggregation
from fedmed_server.provision.authority import Authority, new_authority_certificate


def values(sums: Sums) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.uniform(-0.15, 0.15, sums.length) for name in sums.names}


@pytest.fixture
def five(tmp_path: Path) -> Sums:
    return Sums(tmp_path, 5)


@pytest.mark.parametrize(
    ("count", "every"), [(3, 1), (5, 1), (10, 19), pytest.param(10, 1, marks=pytest.mark.slow)]
)
def test_the_sum_comes_out_for_every_set_of_dropouts_up_to_the_threshold(
    tmp_path: Path, count: int, every: int
) -> None:
    """Of ten sites there are 386 such sets; each nineteenth is quick."""
    sums = Sums(tmp_path / "sites", count)
    plain = values(sums)
    vectors = {name: sums.masked(name, plain[name]) for name in sums.names}
    most = count - sums.circle.threshold
    assert most == (count - 1) // 2
    sets = [dropped for size in range(most + 1) for dropped in combinations(sums.names, size)]
    for number, dropped in enumerate(sets[::every]):
        stayed = [name for name in sums.names if name not in dropped]
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(tmp_path / "sites", copy)
        opened = sums.opened(stayed, sums.names[-sums.circle.threshold :], copy)  # who dropped out may help
        total = sums.sum_of({name: vectors[name] for name in stayed}, opened)
        np.testing.assert_allclose(
            total, sum(plain[name] for name in stayed), rtol=0, atol=sums.layout.error(sums.layout.blocks[0])
        )
        shutil.rmtree(copy)


def test_with_fewer_shares_than_the_threshold_nothing_opens(five: Sums) -> None:
    vectors = all_masked(five)
    few = five.names[: five.circle.threshold - 1]
    refused(lambda: five.opened(five.names, few), "2 sites have agreed on this sum; 3 have to")
    opened = five.opened(five.names, five.names)
    of_few = {name: {n: found[n] for n in sorted(found)[: len(few)]} for name, found in opened.items()}
    with pytest.raises(ValueError, match="could open what"):
        five.sum_of(vectors, of_few)


def test_one_wrong_share_is_told_from_the_right_ones(five: Sums) -> None:
    plain = values(five)
    vectors = {name: five.masked(name, plain[name]) for name in five.names}
    opened = {name: dict(found) for name, found in five.opened(five.names, five.names).items()}
    for found in opened.values():
        found[1] = bytes(32)
    total = five.sum_of(vectors, opened)
    np.testing.assert_allclose(total, sum(plain.values()), rtol=0, atol=1e-8)
    for found in opened.values():
        found[2] = found[3] = bytes(32)
    with pytest.raises(ValueError, match="some site's are wrong"):
        five.sum_of(vectors, opened)


def test_a_masked_vector_is_uniform_and_unlike_what_is_in_it(tmp_path: Path) -> None:
    sums = Sums(tmp_path, 3, length=200_000)
    plain = np.full(sums.length, 0.1)
    vector = sums.masked("site-01", plain)
    assert stats.kstest(vector / 2.0**32, "uniform").pvalue > 1e-6
    counts = np.bincount(vector >> 24, minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6
    assert abs(np.corrcoef(vector[:-1], vector[1:])[0, 1]) < 6 / np.sqrt(len(vector))


def test_asked_again_after_a_crash_a_site_gives_the_same(five: Sums) -> None:
    name = five.names[2]
    first = five.site(name).answer(Wanted(session=SESSION))
    sealed = five.site(name).answer(Wanted(session=SESSION, circle=five.circle))
    vector = five.masked(name, values(five)[name])
    assert five.site(name).answer(Wanted(session=SESSION)) == first
    assert five.site(name).answer(Wanted(session=SESSION, circle=five.circle)) == sealed
    assert sealed.sealed == five.sealed[name]
    np.testing.assert_array_equal(five.masked(name, values(five)[name]), vector)
    (file,) = (five.folder / name / "secure").rglob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600


def test_of_a_run_the_newest_two_sessions_are_kept(five: Sums) -> None:
    site = five.site(five.names[0])
    for number in range(5):
        session = f"{number:032x}"
        type(site)(**{**vars(site), "session": session}).answer(Wanted(session=session))
    assert len(list((site.folder / "secure").rglob("*.json"))) == 2


def refused(ask: Callable[[], object], match: str, rule: str = RULE) -> None:
    with pytest.raises(PolicyRefusal, match=match) as refusal:
        ask()
    assert refusal.value.rule == rule


def all_masked(sums: Sums) -> dict[str, Any]:
    return {name: sums.masked(name, values(sums)[name]) for name in sums.names}


def test_no_site_gives_both_halves_of_anothers_secrets(five: Sums) -> None:
    """A server that is told a site's seed and its key sees what it sent: each honest site opens one set of survivors."""
    all_masked(five)
    first = five.opened(five.names, five.names)
    assert five.opened(five.names, five.names) == first
    others = five.names[1:]
    marks = {name: five.marks[name] for name in others}
    for words in ({"marks": marks}, {"agreed": five.agreed}):
        wanted = five.wanted(others[0], others, **words)
        refused(
            lambda wanted=wanted: five.site(others[0]).answer(wanted),
            "was opened in this session|have agreed on this sum",
        )


def test_sites_that_are_told_of_different_survivors_open_nothing(five: Sums) -> None:
    """Else seeds of some and keys of others would leave the sum over two."""
    all_masked(five)
    lists = [(0, 1, 2), (0, 1, 2), (0, 1, 3), (0, 1, 3), (0, 1, 4)]
    told = {name: [five.names[number] for number in lists[place]] for place, name in enumerate(five.names)}
    for name, survivors in told.items():
        five.agree(survivors, [name])
    for name, survivors in told.items():
        refused(
            lambda name=name, survivors=survivors: five.site(name).answer(
                five.wanted(name, survivors, agreed=five.agreed)
            ),
            "sites have agreed on this sum; 3 have to",
        )


def test_a_survivor_that_masked_with_other_sites_is_opened_by_nobody(five: Sums) -> None:
    """Else the keys of those two that only it knew of would leave its update alone under its own mask, which is opened."""
    victim, *others = five.names
    whole = dict(five.sealed)
    five.sealed = {name: whole[name] for name in five.names[:3]}
    five.masked(victim, values(five)[victim])
    five.sealed = whole
    for name in others:
        five.masked(name, values(five)[name])
    for name in others:
        refused(
            lambda name=name: five.agree([victim, *five.names[3:]], [name]),
            f"'{victim}' has not said that it took part with these sites",
        )
    refused(lambda: five.agree(five.names, [victim]), "has not said that it took part|took part in this")


def test_a_session_that_has_ended_does_not_begin_again(five: Sums) -> None:
    """With new secrets at some sites what others said, and what is known of their secrets, would be taken for this time's."""
    site = five.site(five.names[0])
    for number in range(2, 5):
        session = f"{number:032x}"
        type(site)(**{**vars(site), "session": session}).answer(Wanted(session=session))
    refused(lambda: site.answer(Wanted(session=SESSION)), "the session has ended here")


def test_a_second_vector_or_circle_in_a_session_is_refused(five: Sums) -> None:
    name, plain = five.names[0], values(five)[five.names[0]]
    five.masked(name, plain)
    refused(lambda: five.masked(name, plain + 0.01), "another vector was masked")
    smaller = five.a_circle(offers=five.circle.offers[:3], threshold=2)
    refused(
        lambda: five.site(name).answer(Wanted(session=SESSION, circle=smaller)),
        "the session has another circle",
    )
    five.sealed.pop(five.names[4])
    refused(lambda: five.masked(name, plain), "other sites took part in this session before")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda c, o: {"threshold": c.threshold - 1}, "two groups of sites"),
        (
            lambda c, o: {"offers": (o[0].model_copy(update={"patients": 1}), *o[1:])},
            "other keys or patients",
        ),
        (lambda c, o: {"offers": (o[0].model_copy(update={"mask_key": "ab" * 32}), *o[1:])}, "other keys"),
        (lambda c, o: {"offers": o[1:]}, "without this site"),
        (lambda c, o: {"run": "another"}, "not of this session"),
        (lambda c, o: {"colluding": 1, "threshold": 4}, "fewer could open"),
        (lambda c, o: {"offers": (*o, o[0])}, "sites twice"),
        (
            lambda c, o: {"offers": (o[0], o[1].model_copy(update={"mask_key": o[2].mask_key}), *o[2:])},
            "a key twice",
        ),
    ],
)
def test_a_circle_that_would_tell_more_is_refused(
    tmp_path: Path, spoil: Callable[[Circle, tuple[Any, ...]], dict[str, Any]], match: str
) -> None:
    sums = Sums(tmp_path, 5)
    shutil.rmtree(tmp_path)
    fresh = Sums.__new__(Sums)
    vars(fresh).update(vars(sums))
    offers = tuple(fresh.site(name).answer(Wanted(session=SESSION)).offer for name in fresh.names)
    circle = fresh.a_circle(offers=offers)
    try:
        spoiled = fresh.a_circle(**{"offers": offers, **spoil(circle, offers)})
    except ValueError as problem:
        assert match in str(problem)
        return
    refused(lambda: fresh.site("site-00").answer(Wanted(session=SESSION, circle=spoiled)), match)


@pytest.mark.parametrize("spoil", [lambda box: box[:-1] + "0", lambda box: box[::-1], lambda _box: "abc"])
def test_what_was_not_sealed_for_a_site_is_not_opened_and_the_others_shares_are(
    five: Sums, spoil: Callable[[str], str]
) -> None:
    boxes = five.sealed["site-01"]
    boxes["site-00"] = spoil(boxes["site-02"])
    all_masked(five)
    five.opened(five.names, five.names)
    wanted = five.wanted("site-00", five.names, agreed=five.agreed)
    assert set(five.site("site-00").answer(wanted).opened or {}) == set(five.names) - {"site-01"}


def test_the_sites_own_policy_bounds_how_few_and_how_much(tmp_path: Path) -> None:
    many = {"policy": Policy(least_sites=4, maximum_share=1.0)}
    with pytest.raises(PolicyRefusal, match="3 sites; at least 4"):
        Sums(tmp_path / "few", 3, **many)
    with pytest.raises(PolicyRefusal, match=r"of the sum's patients are here") as refusal:
        Sums(tmp_path / "share", 3, policy=Policy(least_sites=2, maximum_share=0.2))
    assert refusal.value.rule == "maximum_share"
    sums = Sums(tmp_path / "drop", 5, policy=Policy(least_sites=4, maximum_share=1.0))
    all_masked(sums)
    refused(
        lambda: sums.agree(sums.names[:3], ["site-00"]),
        "3 sites; at least 4",
        "least_sites",
    )


def test_a_number_beyond_the_range_is_refused_by_name(five: Sums) -> None:
    for bad in (2.1, np.nan, np.inf):
        refused(
            lambda bad=bad: five.masked("site-00", np.full(five.length, bad)),
            "numbers up to 2",
            "secure_range",
        )


@pytest.mark.parametrize(
    ("sites", "dropouts", "colluding", "threshold"),
    [
        (3, None, 0, 2),
        (3, 0, 0, 3),
        (5, None, 0, 3),
        (10, None, 0, 6),
        (10, 2, 3, 8),
        (10, None, 3, 7),
        (2, None, 0, 2),
    ],
)
def test_how_many_have_to_stay(sites: int, dropouts: int | None, colluding: int, threshold: int) -> None:
    assert threshold_of(sites, dropouts, colluding) == threshold
    assert 2 * threshold > sites + colluding


@pytest.mark.parametrize(("sites", "dropouts", "colluding"), [(3, 2, 0), (10, 5, 0), (10, 4, 3), (1, 0, 0)])
def test_dropouts_that_would_let_two_groups_open_are_refused(
    sites: int, dropouts: int, colluding: int
) -> None:
    with pytest.raises(ValueError, match="have to stay"):
        threshold_of(sites, dropouts, colluding)


@given(
    st.binary(min_size=32, max_size=32),
    st.integers(2, 6).flatmap(lambda t: st.tuples(st.just(t), st.integers(t, 8))),
    st.randoms(),
)
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, sizes: tuple[int, int], random: Any) -> None:
    threshold, count = sizes
    split = shares.split(secret, threshold, count)
    numbers = random.sample(range(count), threshold)
    assert shares.combine({number + 1: split[number] for number in numbers}) == secret
    assert shares.combine({number + 1: split[number] for number in numbers[:-1]}) != secret


@given(
    st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=1, max_size=9),
    st.floats(1e-3, 1e6),
)
def test_sums_of_fixed_point_numbers_are_within_the_stated_error(
    rows: list[list[float]], limit: float
) -> None:
    sites = len(rows)
    layout = Layout((Block(name="x", shape=(3,), limit=limit),), sites)
    arrays = [np.array(row) * limit / sites for row in rows]
    total = np.add.reduce([layout.encode({"x": array}) for array in arrays], dtype=np.uint32)
    error = np.abs(layout.decode(total)["x"] - sum(arrays)).max()
    assert error <= layout.error(layout.blocks[0]) * (1 + 1e-6) + 1e-15 * limit


def test_a_key_of_order_one_is_refused() -> None:
    """All sites' masks with it would be known to whoever put it in."""
    with pytest.raises(ValueError, match="shared key"):
        masks.agreed(bytes(range(32)), bytes(32), b"pair")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"session": "x"}', '{"session": "' + SESSION + '", "survivors": ["a"]}', "null"]
)
def test_what_is_no_message_is_refused(text: str) -> None:
    with pytest.raises(WireError):
        messages.wanted(text)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="range"):
        SecureAggregation(range=0.0)


@pytest.fixture
def certified(tmp_path: Path) -> Path:
    """Folders with three sites whose keys are certified: 'good', or one of them by another name or authority."""
    consortium = Consortium.model_validate(
        {
            "name": "Trial",
            "coordinator": {"address": "127.0.0.1:9443"},
            "sites": [{"name": f"site-{n:02}"} for n in range(4)],
        }
    )

    def home(folder: Path, site: str, authority: Authority, signer: Authority) -> None:
        key = identity.new_key()
        folder.mkdir(parents=True, exist_ok=True)
        identity.save_key(folder / "site.key", key)
        certificate = signer.certify_site(consortium, site, key.public_key())
        (folder / "site.pem").write_text(identity.certificate_text(certificate))
        (folder / "ca.pem").write_text(identity.certificate_text(authority.certificate))

    def authority() -> Authority:
        key = identity.new_key()
        return Authority(key=key, certificate=new_authority_certificate(consortium, key))

    trusted, stranger = authority(), authority()
    for number in range(3):
        home(tmp_path / "good" / f"site-{number:02}", f"site-{number:02}", trusted, trusted)
        home(tmp_path / "named" / f"site-{number:02}", f"site-{(number == 1) + number:02}", trusted, trusted)
        signer = stranger if number == 1 else trusted
        home(tmp_path / "strange" / f"site-{number:02}", f"site-{number:02}", trusted, signer)
    return tmp_path


def test_sites_with_certificates_sum_as_others(certified: Path) -> None:
    sums = Sums(certified / "good", 3)
    plain = values(sums)
    vectors = {name: sums.masked(name, plain[name]) for name in sums.names}
    total = sums.sum_of(vectors, sums.opened(sums.names, sums.names))
    np.testing.assert_allclose(total, sum(plain.values()), rtol=0, atol=1e-8)
    assert all(offer.certificate and offer.signature for offer in sums.circle.offers)


@pytest.mark.parametrize("folder", ["named", "strange"])
def test_keys_that_are_not_certified_are_refused(certified: Path, folder: str) -> None:
    """Of another site's certificate, or of another authority's."""
    refused(lambda: Sums(certified / folder, 3), "the keys of 'site-01' are not signed with its certificate")


@pytest.mark.parametrize(
    "change",
    [{"certificate": "", "signature": ""}, {"seal_key": "ab" * 32}, {"patients": 12}, {"signature": "00"}],
)
def test_a_signed_offer_that_was_changed_on_its_way_is_refused(
    certified: Path, change: dict[str, Any]
) -> None:
    sums = Sums(certified / "good", 3)
    for file in (certified / "good" / "site-00" / "secure").rglob("*.json"):
        state = json.loads(file.read_bytes())
        file.write_text(
            json.dumps({name: state[name] for name in ("seed", "mask_key", "seal_key", "sign_key")})
        )
    one, other, third = sums.circle.offers
    circle = sums.a_circle(offers=(one, other.model_copy(update=change), third))
    refused(
        lambda: sums.site("site-00").answer(Wanted(session=SESSION, circle=circle)),
        "keys of 'site-01' are not",
    )
