"""Whether this machine is ready: disk, memory, GPU, decoders, and the way to the coordinator with its clock."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from fedmed_client.preflight.measures import CaseFacts
from fedmed_client.preflight.rules import Finding
from fedmed_common.config import Experiment, Site

_GB = 1e9
_LEAST_MEMORY_GB = 4.0
_DECODERS = {"libjpeg": "JPEG and JPEG-LS", "openjpeg": "JPEG 2000", "gdcm": "the rest"}


def machine(home: Path, site: Site, experiment: Experiment, cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """One finding for each, also where all is well."""
    yield _disk(home, site, experiment, cases)
    yield _memory(site)
    yield _gpu(site)
    if site.data.format == "dicom":
        yield _decoders()
    yield from _packages(site, experiment)
    yield from _coordinator(home)


def _disk(home: Path, site: Site, experiment: Experiment, cases: Sequence[CaseFacts]) -> Finding:
    free, keep = shutil.disk_usage(home).free / _GB, site.limits.least_free_gb
    needed = sum(_cached_bytes(case, experiment) for case in cases) / _GB
    what = f"{free:.1f} GB free; the prepared cases take about {needed:.1f}, and {keep:g} stay free"
    if free < needed + keep:
        return Finding(
            level="fail", code="disk", what=what, fix="make space on the disk of the site's folder"
        )
    return Finding(level="pass", code="disk", what=what)


def _cached_bytes(case: CaseFacts, experiment: Experiment) -> float:
    """Of the prepared image, float32 a channel, and its label."""
    each = 4.0 * experiment.data.channels + 1
    if experiment.task.name == "classification":
        return each * math.prod(experiment.data.patch)
    voxels = float(case.shape[0] * case.shape[1] * case.shape[2])
    target = experiment.data.spacing_mm
    for own, new in zip(case.spacing_mm, target or case.spacing_mm, strict=True):
        voxels *= own / new
    return each * voxels


def _memory(site: Site) -> Finding:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GB
    allowed = min(there, site.limits.memory_gb or there)
    what = f"{there:.1f} GB of memory, of which training may take {allowed:.1f}"
    if allowed < _LEAST_MEMORY_GB:
        return Finding(
            level="warn", code="memory", what=what, fix=f"give it {_LEAST_MEMORY_GB:g} GB: limits.memory_gb"
        )
    return Finding(level="pass", code="memory", what=what)


def _gpu(site: Site) -> Finding:
    import torch

    if site.device.gpu == "none":
        return Finding(level="pass", code="gpu", what="none is to be used: device.gpu is 'none'")
    if not torch.cuda.is_available():
        return Finding(
            level="warn",
            code="gpu",
            what="no GPU can be used, training runs on the CPU",
            fix="install the GPU's driver, or set device.gpu = 'none'",
        )
    free, there = (size / _GB for size in torch.cuda.mem_get_info())
    return Finding(
        level="pass", code="gpu", what=f"{torch.cuda.get_device_name()}, {free:.0f} of {there:.0f} GB free"
    )


def _decoders() -> Finding:
    missing = [name for name in _DECODERS if find_spec(name) is None]
    if missing:
        kinds = ", ".join(_DECODERS[name] for name in missing)
        return Finding(
            level="warn",
            code="decoders",
            what=f"compressed images cannot all be read: {kinds}",
            fix="pip install 'fedmed[decoders]'",
        )
    return Finding(level="pass", code="decoders", what="all kinds of compressed images can be read")


def _packages(site: Site, experiment: Experiment) -> Iterator[Finding]:
    """What preparing a case needs besides, where it is not installed."""
    data = experiment.data
    needed = {
        "data.bias_correction": ("SimpleITK", bool(data.bias_correction)),
        "data.registration": ("SimpleITK", bool(data.modalities) and site.data.registration == "rigid"),
        "data.fusion": ("pywt", data.fusion.kind == "wavelet"),
    }
    for field, (package, is_asked) in needed.items():
        if is_asked and find_spec(package) is None:
            yield Finding(
                level="fail",
                code="packages",
                what=f"{field} needs the package {package}, which is not installed",
                fix="pip install 'fedmed[harmonise]'",
            )


def _coordinator(home: Path) -> Iterator[Finding]:
    """Only where this folder has joined a consortium."""
    from fedmed_client.link.diagnose import check
    from fedmed_client.site.home import SiteFolder

    folder = SiteFolder(home)
    if not folder.connection_file.exists():
        yield Finding(
            level="warn",
            code="coordinator",
            what="this folder has not joined a consortium",
            fix="fedmed site init KIT, for a deployed one",
        )
        return
    steps = check(folder)
    error = steps[-1].error
    if error is None:
        yield Finding(level="pass", code="coordinator", what="; ".join(step.said for step in steps))
        return
    problem, _, fix = str(error).partition("\n  fix: ")
    yield Finding(level="fail", code=error.code, what=problem, fix=fix)
