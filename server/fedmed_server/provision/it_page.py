"""The page for a hospital's IT: what is opened, what leaves, how it is stopped and removed, whom to call."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version

from jinja2 import PackageLoader

from fedmed_common.consortium import Certificates, Connection
from fedmed_common.signed_requests import SIGNATURE_HEADER, Stamp
from fedmed_common.templates import environment
from fedmed_common.wire import Facts, Order, Reply
from fedmed_server.report.page import FACTS_TOLD, REPLY_TOLD

Told = dict[tuple[str, ...], str]

ORDER_TOLD: Told = {
    ("kind",): "what is asked: counts, a sum over patients, training or evaluation",
    ("run", "round", "attempt"): "which order it is",
    ("experiment",): "the experiment as text: classes, preparation, network, training. No code",
    ("split",): "evaluation: on validation or on test patients",
    ("statistic",): "which sum over training patients is asked for",
    ("best",): "the run's best round so far",
    (
        "receipt",
    ): "for private training: how far the coordinator knows the site's privacy ledger to have come",
    (
        "secure",
    ): "where sums are computed securely: the other sites' public keys, and what they sealed for this site",
    ("parameters",): "the model's numbers",
    ("encoded",): "in their place, where the site has the model before: what has changed since, rounded",
    ("model", "base"): "random names of the model, and of the one that the changes are of",
    ("down",): "what the strategy sends beside them, as sums over all sites",
}
"""Fields of the wire's Order, in words."""

STAMP_TOLD: Told = {
    ("site", "version"): "the site's name, and the version of its fedmed",
    ("instance", "boot"): "random numbers that name the site's folder, and one start of its connection",
    ("time", "nonce"): "when the request was made, and a random number, so that nobody can repeat it",
}
"""Fields of the stamp on each request, in words."""

HEADERS_TOLD: Told = {
    (
        "flwr-package-name",
        "flwr-package-version",
        "flwr-component-name",
    ): "the version of Flower that is used",
    (
        "host",
        "user-agent",
        "accept",
        "accept-encoding",
        "connection",
        "content-type",
        "content-length",
    ): "HTTP's own: the coordinator's address, fixed words, and the request's length",
}
"""The other headers of each request, in words."""


def draw_page(connection: Connection, certificates: Certificates) -> str:
    """The page of one site, in one file that needs nothing else. Everything that people wrote is escaped."""
    pages = environment(PackageLoader("fedmed_server.provision", "."))
    return pages.get_template("it_page.html").render(
        connection=connection,
        host=connection.host,
        port=connection.port,
        fingerprint=[connection.fingerprint[at : at + 4] for at in range(0, 64, 4)],
        certificates=certificates,
        version=version("fedmed"),
        signature=SIGNATURE_HEADER,
        stamp=told(Stamp, STAMP_TOLD),
        headers=[(", ".join(names), words) for names, words in HEADERS_TOLD.items()],
        reply=told(Reply, {**REPLY_TOLD, ("facts",): "once, when a run begins: the three rows below"}),
        facts=told(Facts, FACTS_TOLD),
        order=told(Order, ORDER_TOLD),
    )


def told(record: type, words: Told) -> list[tuple[str, str]]:
    """Each group of a record's fields with its words, in the record's order.

    Raises:
        ValueError: a field has no words, or words are of no field, so that the page would not be true.
    """
    fields = [field.name for field in dataclasses.fields(record)]
    named = [name for names in words for name in names]
    if sorted(named) != sorted(fields):
        odd = sorted(set(named) ^ set(fields))
        raise ValueError(
            f"the page does not tell the fields of {record.__name__} as they are: {', '.join(odd)}"
        )
    ordered = sorted(words, key=lambda names: fields.index(names[0]))
    return [(", ".join(names), words[names]) for names in ordered]
