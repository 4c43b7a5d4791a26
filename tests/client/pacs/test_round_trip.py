"""From the archive to a model and back: studies are fetched and trained on, one is segmented, the archive has the result."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from fedmed_client.data.scan import scan
from fedmed_client.data.seg import read_seg, segment_names
from fedmed_client.data.series import load_series
from fedmed_client.pacs.dicomweb import DicomWeb
from fedmed_client.pacs.dimse import Dimse
from fedmed_client.pacs.keeping import Incoming
from fedmed_client.pacs.query import Query
from fedmed_client.predict.apply import predict
from fedmed_client.predict.released import open_released
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import write_federation
from fedmed_simulations.rehearsal.machines import FEDMED

from .conftest import Orthanc

EXPERIMENT = """
name = "organs"
rounds = 2
[task]
classes = ["liver", "spleen"]
dimensions = 3
[data]
patch = [16, 16, 16]
intensity = { kind = "window", low = -200, high = 300 }
[model]
name = "unet"
channels = [4, 8]
[train]
device = "cpu"
steps = 12
batch_size = 2
learning_rate = 0.02
[federation]
quorum = 1
[[simulation.sites]]
name = "north"
labels = LABELS
data = { format = "dicom", root = "ROOT", modality = "CT" }
policy = { least_patients = 1 }
"""
SITE = """
name = "north"
[data]
format = "dicom"
root = "in"
modality = "CT"
[labels]
liver = ["Liver"]
[limits]
least_free_gb = 0.0
[pacs]
url = "http://127.0.0.1:{http}/dicom-web"
user = "it"
password_variable = "PACS_PASSWORD"
"""


def test_a_study_goes_from_the_archive_to_a_model_and_its_result_back(
    orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACS_PASSWORD", "word")
    write_federation(
        tmp_path / "made",
        PhantomSettings(sites=1, patients=6, shape=(48, 40, 20), vacant=0, unannotated=0),
        workers=1,
        progress=False,
    )
    (made,) = (entry for entry in (tmp_path / "made").iterdir() if entry.is_dir())
    files = sorted((made / "dicom").rglob("*.dcm"))
    Dimse(orthanc.pacs("get")).send(files)
    (tmp_path / "site.toml").write_text(SITE.format(http=orthanc.http))
    home = ["--home", str(tmp_path)]
    run = subprocess.run(
        [*FEDMED, "site", "fetch", str(tmp_path / "in"), *home], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(list((tmp_path / "in").rglob("*.dcm"))) == len(files)

    model = _trained(tmp_path, made)
    (study,) = _one_study(tmp_path)
    command = [
        *FEDMED,
        "site",
        "predict",
        str(model),
        str(study),
        "--to",
        str(tmp_path / "out"),
        "--archive",
        *home,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr

    archive = DicomWeb.of(orthanc.pacs("dicomweb"))
    (found,) = [one for one in archive.find(Query(modalities=("SEG",))) if one.description == "fedmed organs"]
    back = Incoming(tmp_path / "back", least_free_gb=0.0)
    back.folder.mkdir()
    archive.fetch(found, back.keep)
    (segmentation,) = (tmp_path / "back").rglob("*.dcm")

    (series,) = [one for one in scan(study).series if one.modality == "CT"]
    volume = load_series(series)
    label = predict([open_released(model)], volume).label
    masks = read_seg(segmentation, volume)
    numbers = {"liver": 1, "spleen": 2}
    for names, mask in zip(segment_names(segmentation), masks, strict=True):
        assert np.array_equal(mask, label == numbers[names[0]])
    theirs = highdicom.seg.segread(segmentation).get_volume(combine_segments=True)
    affine = theirs.affine
    for k, j, i in np.argwhere(theirs.array > 0)[::97]:
        place = np.diag([-1, -1, 1, 1]) @ affine @ np.array([k, j, i, 1.0])
        x, y, z = np.round(np.linalg.inv(volume.affine) @ place)[:3].astype(int)
        name = pydicom.dcmread(segmentation).SegmentSequence[int(theirs.array[k, j, i]) - 1].SegmentLabel
        assert label[x, y, z] == numbers[name]
    _by_dcmqi(
        segmentation,
        tmp_path / "dcmqi",
        {name: int((label == number).sum()) for name, number in numbers.items()},
    )


def _trained(folder: Path, made: Path) -> Path:
    """A run of two rounds on what was fetched."""
    import tomllib

    labels = tomllib.loads((made / "site.toml").read_text())["labels"]
    table = ", ".join(f"{name} = {labels[name]!r}" for name in ("liver", "spleen")).replace("'", '"')
    ignored = sorted(
        {name for klass, names in labels.items() if klass not in ("liver", "spleen") for name in names}
    )
    text = EXPERIMENT.replace("LABELS", "{ " + table + " }").replace("ROOT", str(folder / "in"))
    text += f"ignore_labels = {ignored!r}\n".replace("'", '"')
    (folder / "organs.toml").write_text(text)
    command = [*FEDMED, "simulate", str(folder / "organs.toml"), "--runs", str(folder / "runs")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (model,) = (folder / "runs").glob("*/models/last.safetensors")
    return model


def _one_study(folder: Path) -> list[Path]:
    return sorted(entry for entry in (folder / "in").iterdir() if entry.is_dir())[:1]


def _by_dcmqi(segmentation: Path, out: Path, voxels: dict[str, int]) -> None:
    """dcmqi makes of it volumes with as many voxels of each class."""
    program = shutil.which("segimage2itkimage")
    if program is None:
        return
    import nibabel

    out.mkdir()
    command = [
        program,
        "--inputDICOM",
        str(segmentation),
        "--outputDirectory",
        str(out),
        "--outputType",
        "nii",
    ]
    subprocess.run(command, check=True, capture_output=True)
    counts = sorted(int((np.asarray(nibabel.load(file).dataobj) > 0).sum()) for file in out.glob("*.nii.gz"))
    assert counts == sorted(count for count in voxels.values() if count)
