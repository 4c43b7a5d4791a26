"""Sites of a secure sum without a network: each in a folder of its own, and what passes between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_client.secure import Sum
from fedmed_common.secure.circle import Circle, Party, Wanted, threshold_of
from fedmed_common.secure.fixed_point import Block, Layout
from fedmed_common.site_config import Policy
from fedmed_common.training_config import SecureAggregation
from fedmed_server.secure import unmask

SESSION = "0" * 31 + "1"
ABOUT = ("train", "")


@dataclass
class Sums:
    """``count`` sites of one session, that have agreed on a circle and sealed their shares."""

    folder: Path
    count: int
    settings: SecureAggregation = field(default_factory=SecureAggregation)
    policy: Policy = field(default_factory=lambda: Policy(least_sites=2, maximum_share=1.0))
    length: int = 7
    marks: dict[str, str] = field(default_factory=dict)
    agreed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [f"site-{number:02}" for number in range(self.count)]
        self.layout = Layout((Block(name="x", shape=(self.length,), limit=2.0),), self.count)
        offers = [self.site(name).answer(Wanted(session=SESSION)).offer for name in self.names]
        self.circle = self.a_circle(offers=tuple(offers))
        self.sealed = {
            name: self.site(name).answer(Wanted(session=SESSION, circle=self.circle)).sealed or {}
            for name in self.names
        }

    def a_circle(self, **fields: Any) -> Circle:
        """The circle of all, or with other fields."""
        settings = self.settings
        threshold = threshold_of(self.count, settings.dropouts, settings.colluding)
        document = {
            "run": "run",
            "round": 1,
            "session": SESSION,
            "threshold": threshold,
            "colluding": settings.colluding,
        }
        return Circle.model_validate({**document, **fields})

    def site(self, name: str, folder: Path | None = None) -> Sum:
        """A site as it comes back from a crash: all that it knows is in its folder."""
        return Sum(
            folder=(folder or self.folder) / name,
            site=name,
            run="run",
            session=SESSION,
            patients=10 + self.names.index(name),
            policy=self.policy,
            settings=self.settings,
            about=ABOUT,
        )

    def wanted(self, name: str, survivors: Collection[str] | None = None, **words: Any) -> Wanted:
        """What the site's order says, for its work or, with survivors and ``marks`` or ``agreed``, for opening."""
        received = {sender: sealed[name] for sender, sealed in self.sealed.items() if sender != name}
        over = None if survivors is None else tuple(sorted(survivors))
        return Wanted(session=SESSION, circle=self.circle, shares=received, survivors=over, **words)

    def agree(self, survivors: Collection[str], helpers: Collection[str], folder: Path | None = None) -> None:
        """Let the helpers say over whom the sum is."""
        marks = {name: mark for name, mark in self.marks.items() if name in survivors}
        for helper in helpers:
            given = self.site(helper, folder).answer(self.wanted(helper, survivors, marks=marks))
            self.agreed[helper] = given.agreed or ""

    @property
    def party(self) -> Party:
        """All of them."""
        return Party(circle=self.circle, names=tuple(self.names))

    def masked(self, name: str, values: NDArray[np.float64]) -> NDArray[np.uint32]:
        """The site's masked vector, whose mark is kept."""
        site = self.site(name)
        party = site.taking_part(self.wanted(name))
        vector = site.mask(party, self.layout, {"x": values})
        self.marks[name] = site.mark(party).mark or ""
        return vector

    def opened(
        self, survivors: Collection[str], helpers: Collection[str], folder: Path | None = None
    ) -> Mapping[str, Mapping[int, bytes]]:
        """By site the shares that the helpers give."""
        found: dict[str, dict[int, bytes]] = {name: {} for name in self.names}
        self.agree(survivors, helpers, folder)
        for helper in helpers:
            wanted = self.wanted(helper, survivors, agreed=self.agreed)
            given = self.site(helper, folder).answer(wanted)
            for name, share in (given.opened or {}).items():
                found[name][self.circle.number(helper)] = bytes.fromhex(share)
        return found

    def sum_of(
        self,
        vectors: Mapping[str, NDArray[np.uint32]],
        opened: Mapping[str, Mapping[int, bytes]],
    ) -> NDArray[np.float64]:
        """What the server makes of the survivors' vectors."""
        total = np.add.reduce([*vectors.values()], dtype=np.uint32)
        context = self.party.context(*ABOUT, self.layout.described())
        unmask(total, self.party, vectors.keys(), opened, context)
        return self.layout.decode(total)["x"]
