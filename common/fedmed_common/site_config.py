"""``site.toml``: one hospital's data, labels, policy and machine."""

from __future__ import annotations

import re
from datetime import time
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fedmed_common.fields import Fraction, Model, Name, Positive

ImageLabel = Literal["mask", "instances", "values"]
_TIME = r"((?:[01]\d|2[0-3]):[0-5]\d)"
_WINDOW = re.compile(rf"{_TIME}-{_TIME}", re.ASCII)


def _compiled(pattern: str | None) -> str | None:
    """The pattern, once it is known to be one."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


UNLABELLED_NAME = "unlabelled"
"""In a site's ``labels``: no class, but what nobody looked at."""
UNLABELLED = 255
"""In a label map: nobody looked at this voxel. More than there can be classes."""


class SeriesOf(Model):
    """Which of a patient's series, or files, is of a modality."""

    modality: str | None = Field(None, description="format dicom: of this DICOM modality")
    series_description: str | None = Field(
        None, description="format dicom: regular expression that a series description must match"
    )
    suffix: str | None = Field(
        None, description="format nifti: what stands behind the case in the file's name, as '_t1'"
    )
    required: bool = Field(True, description="leave a case out that lacks it; false: take it as missing")

    @field_validator("series_description")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return _compiled(pattern)


class SiteData(Model):
    """Where a site's data lie and how they are told apart.

    dicom: any mixture of series, SEG, RTSTRUCT (and NIfTI labels named after a series' folder or UID) below ``root``.
    nifti: ``root``/``images`` and ``root``/``labels`` with equal file names. images: the same with PNG, JPEG or TIFF files.
    """

    format: Literal["dicom", "nifti", "images"]
    root: Path
    images: str = "images"
    labels: str = "labels"
    image_labels: ImageLabel = Field(
        "mask",
        description="format images: mask: above zero is class 1; instances: the same for instance numbers; "
        "values: the pixel value is the label's name",
    )
    patient_pattern: str | None = Field(
        None,
        description="regular expression on the file stem; group 1 is the patient. Absent: a file is a patient",
    )
    stored_type: str | None = Field(
        None, description="format nifti: only images stored with this numpy type, as 'uint8'"
    )
    modality: str | None = Field(None, description="format dicom: only series of this modality")
    series_description: str | None = Field(
        None, description="format dicom: regular expression that a series description must match"
    )
    label_numbers: Literal["totalsegmentator"] | None = Field(
        None, description="numbers in label maps also answer to the names that this tool gives them"
    )
    modalities: dict[Name, SeriesOf] = Field(
        {},
        description="of cases with several series: which is which. What is not named here is missing at this site",
    )
    registration: Literal["none", "rigid"] = Field(
        "none",
        description="of the other series of a case to the labelled one; none: by their places in the scanner",
    )
    maximum_cases: Annotated[int, Field(ge=1)] | None = None
    labels_from: Literal["masks", "table"] = Field(
        "masks",
        description="classification: a case shows the classes that its segmentation shows, or those that a table names",
    )
    table: Path = Field(Path("labels.csv"), description="labels_from table: a CSV file, below root")

    @field_validator("patient_pattern", "series_description")
    @classmethod
    def _compiles(cls, pattern: str | None, info: ValidationInfo) -> str | None:
        if (
            _compiled(pattern)
            and info.field_name == "patient_pattern"
            and re.compile(pattern or "").groups < 1
        ):
            raise ValueError("needs a group, as in '^(\\d+)'")
        return pattern

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        for name, series in self.modalities.items():
            if self.format == "images":
                raise ValueError(f"modalities.{name}: pictures have one; use format = 'dicom' or 'nifti'")
            if self.format == "nifti" and not series.suffix:
                raise ValueError(f"modalities.{name}.suffix: is missing, by which its files are known")
            if self.format == "dicom" and not (series.modality or series.series_description):
                raise ValueError(f"modalities.{name}: needs modality or series_description")
        suffixes = [of.suffix for of in self.modalities.values() if of.suffix]
        if len(set(suffixes)) != len(suffixes):
            raise ValueError("modalities: two have one suffix, and would be the same files")
        if self.modalities and self.labels_from == "table":
            raise ValueError("modalities: cases with labels from a table are of one series")
        return self


StatisticName = Literal[
    "patients",
    "presence",
    "counts",
    "channels",
    "moments",
    "confusion",
    "operating_points",
    "shapes",
    "intensities",
    "volumes",
    "landmarks",
]
"""``patients`` and ``presence`` say at the roll call how many there are; the others are what recipes ask for."""


HeldOut: TypeAlias = Literal["measured", "noised", "kept"]
"""What leaves of metrics of validation and test patients."""


class Policy(Model):
    """What this site permits. An order that asks for more is refused with the rule's name."""

    least_patients: Annotated[int, Field(ge=1)] = Field(
        5, description="a metric over fewer patients does not leave the site"
    )
    maximum_steps: Annotated[int, Field(ge=1)] = 100_000
    maximum_rounds: Annotated[int, Field(ge=1)] = 1_000_000
    tasks: tuple[str, ...] | None = Field(
        None, description="permitted task names; absent: all that are installed"
    )
    models: tuple[str, ...] | None = None
    recipes: tuple[str, ...] | None = None
    statistics: tuple[StatisticName, ...] | None = Field(
        None, description="sums over patients that may leave beside updates; absent: all"
    )
    metrics: tuple[str, ...] | None = Field(
        None, description="metrics that may leave, as 'loss', 'dice' or 'dice/liver'; absent: all"
    )
    held_out: HeldOut = Field(
        "measured",
        description="what leaves of metrics of validation and test patients: as measured, with noise, or nothing",
    )
    held_out_epsilon: Positive = Field(
        1.0, description="with noise: what one measurement costs each of them, at budget_delta"
    )
    require_secure_aggregation: bool = Field(False, description="train only where the server sees sums alone")
    least_sites: Annotated[int, Field(ge=2)] = Field(
        3, description="of secure sums, how many sites have to be in one"
    )
    maximum_share: Fraction = Field(
        0.9, description="of secure sums, the largest share of the patients of one that may be here"
    )
    require_privacy: bool = Field(False, description="train only with differential privacy")
    maximum_epsilon: Positive | None = Field(
        None,
        description="what all private training of this site together may spend; absent: no limit of the site's own",
    )
    maximum_run_epsilon: Positive | None = Field(
        None,
        description="what the private training of one run may spend; absent: what the experiment promises",
    )
    budget_delta: Annotated[float, Field(gt=0.0, le=0.1)] = Field(
        1e-5, description="the delta at which maximum_epsilon and maximum_run_epsilon hold"
    )
    least_noise: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="the least noise multiplier (sigma)"
    )
    maximum_clipping: Positive | None = Field(None, description="the largest clipping norm (C); absent: any")
    maximum_sampling_rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="the largest share of training patients that a step may draw (q)"
    )


class Schedule(Model):
    """When this site trains."""

    window: str | None = Field(
        None, description="local time as '20:00-06:00'; orders wait outside it. Absent: always"
    )

    @field_validator("window")
    @classmethod
    def _two_times(cls, window: str | None) -> str | None:
        match = _WINDOW.fullmatch(window) if window is not None else None
        if window is not None and (match is None or match[1] == match[2]):
            raise ValueError("needs two different times of the day, as '20:00-06:00'")
        return window

    @property
    def hours(self) -> tuple[time, time] | None:
        """From when until when; the end may lie on the next day."""
        if self.window is None:
            return None
        begin, _, end = self.window.partition("-")
        return time.fromisoformat(begin), time.fromisoformat(end)


class Limits(Model):
    """What an order may take of this machine."""

    least_free_gb: Annotated[float, Field(ge=0.0)] = Field(
        2.0, description="orders wait while the disk of the site's folder has less space free"
    )
    memory_gb: Positive | None = Field(None, description="of the process that trains; absent: no limit")
    stall_seconds: Positive = Field(900.0, description="without a sign of progress, after which it is ended")
    order_seconds: Positive = Field(86_400.0, description="the longest that one order may take")


class Device(Model):
    """What the process that trains computes on, whatever an order asks for."""

    gpu: Annotated[str, Field(pattern=r"^(auto|none|\d{1,3}|(GPU|MIG)-[0-9A-Za-z/\-]+)$")] = Field(
        "auto",
        description="auto: the first GPU where there is one; none: the CPU; else a GPU's number or UUID",
    )
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="most CPU threads of an order; 0: all cores"
    )
    processes: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="most processes of an order, each with a GPU of its own where gpu is auto"
    )

    @model_validator(mode="after")
    def _a_gpu_for_each(self) -> Self:
        if self.processes > 1 and self.gpu not in ("auto", "none"):
            raise ValueError(
                f"processes = {self.processes} need as many GPUs; gpu '{self.gpu}' is one: use 'auto'"
            )
        return self


class Network(Model):
    """How the coordinator is reached. A proxy's password stays out of logs."""

    proxy: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = Field(
        None, repr=False, description="absent: what HTTPS_PROXY says"
    )
    no_proxy: tuple[str, ...] = Field((), description="hosts that are reached directly")
    ca: Path | None = Field(
        None, description="PEM file of an authority that an inspecting proxy signs with, trusted as well"
    )


_Title = Annotated[str, Field(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


class Pacs(Model):
    """The hospital's picture archive, by DICOMweb (``url``) or DIMSE (``host``, ``port``, ``title``)."""

    url: Annotated[str, Field(pattern=r"^https?://\S+$")] = Field(
        "", description="DICOMweb: where /studies begins, as 'https://pacs.example/dicom-web'"
    )
    user: str = Field("", description="DICOMweb: with the password in password_variable")
    password_variable: _Variable | None = Field(
        None, description="the variable of the environment that holds the password"
    )
    token_variable: _Variable | None = Field(
        None, description="DICOMweb: the variable that holds a bearer token"
    )
    host: str = Field("", description="DIMSE: the archive's name or address")
    port: Annotated[int, Field(ge=1, le=65_535)] = 104
    title: _Title = Field("ANY-SCP", description="DIMSE: the archive's application entity title")
    move: bool = Field(
        False,
        description="DIMSE: fetch with C-MOVE to own_port, for archives without C-GET; own_title has to be registered",
    )
    own_title: _Title = Field("FEDMED", description="this machine's application entity title")
    own_host: str = Field("127.0.0.1", description="the address that is listened at; '0.0.0.0' for all")
    own_port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        11_112, description="of the receiver, and of what C-MOVE sends"
    )
    senders: tuple[_Title, ...] = Field((), description="titles that may push to the receiver; none: any")
    tls: bool = Field(
        False, description="DIMSE: in both directions; with 'ca' a sender has to show a certificate"
    )
    ca: Path | None = Field(
        None, description="PEM file of the authority that signs the archive's certificate"
    )
    certificate: Path | None = Field(None, description="PEM file of this machine's certificate")
    key: Path | None = Field(None, description="PEM file of its key")
    per_second: Annotated[float, Field(ge=0)] = Field(
        0.0, description="most instances that are fetched in a second; 0: as many as come"
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.url and self.host:
            raise ValueError("has a url and a host: keep one of them")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        if self.user and self.password_variable is None:
            raise ValueError("user needs password_variable")
        where = urlsplit(self.url)
        if (
            (self.user or self.token_variable)
            and where.scheme == "http"
            and where.hostname not in _THIS_MACHINE
        ):
            raise ValueError("url: over http a password or a token can be read on the way; use https")
        return self


class Site(Model):
    """``site.toml``: one hospital's data, label names, policy and machine. Never leaves the site."""

    name: Name
    approve: Literal["ask", "consortium-signed", "never"] = Field(
        "ask", description="who approves a new experiment: a person here, the consortium's signature, nobody"
    )
    data: SiteData
    labels: dict[str, tuple[str, ...]] = Field(
        description="class of the experiment -> names or codes of this site's labels; a class left out is not annotated here; "
        "'unlabelled' -> those of what nobody looked at"
    )
    ignore_labels: tuple[str, ...] = Field(
        (), description="label names that stand for no class of the experiment"
    )
    policy: Policy = Policy()
    schedule: Schedule = Schedule()
    limits: Limits = Limits()
    device: Device = Device()
    network: Network = Network()
    pacs: Pacs | None = Field(
        None, description="the picture archive that 'fedmed site fetch' and 'receive' use"
    )

    @field_validator("labels")
    @classmethod
    def _unambiguous(cls, labels: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        owner: dict[str, str] = {}
        for klass, names in labels.items():
            for name in names:
                if owner.setdefault(name.casefold(), klass) != klass:
                    raise ValueError(f"'{name}' stands for both '{owner[name.casefold()]}' and '{klass}'")
        return labels
