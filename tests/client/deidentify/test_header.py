"""What becomes of attributes: by the profile's table, by kind, and by what they say."""

from __future__ import annotations

import string
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EncapsulatedPDFStorage, ExplicitVRLittleEndian, generate_uid

from fedmed_client.deidentify.cli import table_lines
from fedmed_client.deidentify.header import NotDeidentified, protect
from fedmed_client.deidentify.secret import SiteSecret
from fedmed_client.deidentify.table import Action, Options, rows
from fedmed_client.deidentify.words import Identifiers
from fedmed_common.errors import ConfigError

SECRET = SiteSecret(bytes(range(32)))


def _image(**fields: object) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Miller^Ada", "N-4711", "CT"
    for keyword, value in fields.items():
        setattr(dataset, keyword, value)
    return dataset


def test_every_attribute_of_the_table_is_treated_as_the_table_says() -> None:
    values: dict[str, object] = dict.fromkeys(("US", "FD", "SL", "FL", "UL", "SS"), 5)
    values |= {
        "DA": "20010203",
        "TM": "101112",
        "DT": "20010203101112",
        "AS": "012Y",
        "CS": "X1",
        "IS": "1",
        "DS": "1",
    }
    values |= {"OB": b"ab", "UN": b"ab", "UI": "1.2.3"}
    for options in (Options(), Options(dates="removed", descriptors="removed")):
        for row in rows(options):
            if row.tag is None or row.name.startswith("(new") or row.tag.group in (0, 2, 4):
                continue
            vr = dictionary_VR(row.tag)
            value = Sequence([Dataset()]) if vr == "SQ" else values.get(vr, "word")
            dataset = _image()
            dataset.add_new(row.tag, vr, value)
            protect(dataset, SECRET, options)
            after = dataset.get(row.tag)
            if row.action is Action.REMOVED:
                assert after is None, row
            elif row.action is Action.EMPTIED:
                assert after is not None and not after.value, row
            elif row.action is not Action.LOOKED_INTO:
                assert after is not None and after.value != value, row


def test_private_attributes_overlays_curves_and_unknown_ones_are_removed_at_any_depth() -> None:
    item = Dataset()
    item.add_new(0x00291010, "LO", "Miller")
    item.add_new(0x60003000, "OW", b"ab")
    item.CodeMeaning = "Liver"
    dataset = _image(AnatomicRegionSequence=Sequence([item]))
    for tag, vr in ((0x00090010, "LO"), (0x50003000, "OW"), (0x60020022, "LO"), (0x00189999, "UN")):
        dataset.add_new(tag, vr, b"ab" if vr in ("OW", "UN") else "Miller")
    protect(dataset, SECRET, Options())
    assert [str(tag) for tag in dataset if tag.tag.is_private or tag.tag.group >= 0x5000] == []
    assert 0x00189999 not in dataset
    assert [element.keyword for element in dataset.AnatomicRegionSequence[0]] == ["CodeMeaning"]


def test_a_name_or_number_is_removed_wherever_it_stands() -> None:
    dataset = _image(
        ManufacturerModelName="Scanner of Miller",
        ConvolutionKernel="B30f",
        FilterType="n4711",
        BodyPartExamined="ADA",
        SegmentLabel="Liver of N-4711",
        SeriesDescription="Liver venous MILLER 4711",
    )
    protect(dataset, SECRET, Options())
    told = " ".join(str(element.value) for element in dataset.iterall() if element.VR != "UI").lower()
    assert not any(word in told for word in ("miller", "ada", "4711"))
    assert dataset.ConvolutionKernel == "B30f"
    assert dataset.SeriesDescription == "Liver venous"


def test_the_same_patient_has_the_same_pseudonym_whatever_the_spelling_and_another_has_another() -> None:
    names = []
    for number in (" n-4711", "N-4711", "N-4712"):
        dataset = _image(PatientID=number)
        protect(dataset, SECRET, Options())
        names.append(dataset.PatientID)
        assert dataset.PatientName == dataset.PatientID and set(names[-1]) <= set(
            string.ascii_uppercase + "234567"
        )
    assert names[0] == names[1] != names[2]


def test_references_still_lead_to_what_they_led_to() -> None:
    uid = generate_uid()
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, uid
    one, other = _image(SOPInstanceUID=uid), _image(SourceImageSequence=Sequence([item]))
    protect(one, SECRET, Options())
    protect(other, SECRET, Options())
    assert other.SourceImageSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID != uid
    assert other.SourceImageSequence[0].ReferencedSOPClassUID == CTImageStorage
    assert one.SOPInstanceUID.startswith("2.25.") and len(one.SOPInstanceUID) <= 64


@given(
    st.datetimes(datetime(1930, 1, 1), datetime(2030, 1, 1)),
    st.datetimes(datetime(1930, 1, 1), datetime(2030, 1, 1)),
)
@settings(max_examples=50, deadline=None)
def test_the_time_between_two_examinations_of_a_patient_stays(first: datetime, second: datetime) -> None:
    shifted = []
    for moment in (first, second):
        moment = moment.replace(microsecond=0)  # noqa: PLW2901
        dataset = _image(
            StudyDate=f"{moment:%Y%m%d}".rjust(8, "0"),
            StudyTime=f"{moment:%H%M%S}",
            AcquisitionDateTime=f"{moment:%Y%m%d%H%M%S}.250000+0100",
        )
        protect(dataset, SECRET, Options())
        shifted.append(datetime.strptime(dataset.StudyDate + dataset.StudyTime, "%Y%m%d%H%M%S"))
        assert dataset.AcquisitionDateTime == f"{shifted[-1]:%Y%m%d%H%M%S}.250000"
    assert shifted[1] - shifted[0] == second.replace(microsecond=0) - first.replace(microsecond=0)
    assert shifted[0] != first.replace(microsecond=0)


def test_a_date_of_birth_is_never_kept_and_what_is_no_date_neither() -> None:
    dataset = _image(PatientBirthDate="19500102", PatientBirthTime="101112")
    for keyword, vr in (("StudyDate", "DA"), ("SeriesTime", "TM")):
        dataset[keyword] = DataElement(keyword, vr, "N4711", validation_mode=0)
    protect(dataset, SECRET, Options())
    assert not dataset.PatientBirthDate and "PatientBirthTime" not in dataset
    assert not dataset.StudyDate and not dataset.SeriesTime


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"PatientID": ""}, "PatientID is missing"),
        ({"SOPClassUID": EncapsulatedPDFStorage}, "Encapsulated PDF Storage"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, "Basic Text SR Storage"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1"}, "Presentation State"),
    ],
)
def test_what_tells_more_than_an_image_is_refused(fields: dict[str, str], reason: str) -> None:
    with pytest.raises(NotDeidentified, match=reason):
        protect(_image(**fields), SECRET, Options())


def test_a_label_name_of_the_site_stays_and_other_words_do_not() -> None:
    def named(labels: frozenset[str]) -> str:
        roi = Dataset()
        roi.ROIName = "GTV Schmidt"
        dataset = _image(StructureSetROISequence=Sequence([roi]))
        protect(dataset, SECRET, Options(labels=labels))
        return str(dataset.StructureSetROISequence[0].ROIName)

    assert named(frozenset({"gtv schmidt"})) == "GTV Schmidt"
    assert named(frozenset()) == "GTV"


def test_a_code_of_the_house_is_text_like_any_other() -> None:
    def coded(scheme: str, labels: frozenset[str] = frozenset()) -> Dataset:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = (
            "ORTHO7",
            scheme,
            "Liver, ward Schmidt",
        )
        dataset = _image(ProcedureCodeSequence=Sequence([code]))
        protect(dataset, SECRET, Options(labels=labels))
        return dataset.ProcedureCodeSequence[0]

    assert (coded("WARD").CodeValue, coded("WARD").CodeMeaning) == ("0", "Liver")
    assert coded("WARD", frozenset({"ward:ortho7"})).CodeValue == "ORTHO7"
    assert (coded("SCT").CodeValue, coded("SCT").CodeMeaning) == ("ORTHO7", "Liver")


def test_the_meta_header_and_the_preamble_tell_nothing() -> None:
    dataset = _image()
    dataset.file_meta.SourceApplicationEntityTitle = "ORTHO_WARD_3"
    dataset.preamble = b"Miller".ljust(128)
    protect(dataset, SECRET, Options())
    assert "SourceApplicationEntityTitle" not in dataset.file_meta and dataset.preamble == bytes(128)
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def test_the_secret_stays_the_same_and_is_nobody_elses_to_read(tmp_path: Path) -> None:
    file = tmp_path / "inner" / "key"
    assert SiteSecret.open(file).pseudonym("a|") == SiteSecret.open(file).pseudonym("a|")
    assert file.stat().st_mode & 0o077 == 0
    file.write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes"):
        SiteSecret.open(file)


def test_the_documented_table_is_the_one_that_is_used() -> None:
    page = Path(__file__).parents[3] / "docs" / "deidentification.md"
    assert page.read_text().endswith("\n".join(table_lines(Options())) + "\n")


def test_numbers_and_names_in_items_are_those_of_nobody() -> None:
    item = Dataset()
    item.PatientID, item.PatientName, item.IssuerOfPatientID = "N-9999", "Cousin^Bo", "WARD"
    dataset = _image(SourcePatientGroupIdentificationSequence=Sequence([item]))
    protect(dataset, SECRET, Options())
    (after,) = dataset.SourcePatientGroupIdentificationSequence
    assert after.PatientID == after.PatientName == dataset.PatientID
    assert "IssuerOfPatientID" not in after


def test_an_attribute_of_another_kind_than_the_standards_is_removed() -> None:
    dataset = _image()
    dataset.add_new(0x00080020, "LO", "Miller 1950")
    dataset.add_new(0x0008114A, "LO", "1.2.3.4")
    dataset.add_new(0x00189999, "LO", "new")
    protect(dataset, SECRET, Options())
    assert not {0x00080020, 0x0008114A, 0x00189999} & {int(tag) for tag in dataset.keys()}  # noqa: SIM118


@pytest.mark.parametrize("uid", ["..", "1.2.840.10008./../../x", "1.2.840.10008.MEIER", "1.2.3"])
def test_only_registered_uids_stay(uid: str) -> None:
    assert SECRET.uid(uid).startswith("2.25.")
    assert SECRET.uid(CTImageStorage) == CTImageStorage


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ({"PatientID": "12-34-56"}, "Pat 12-34-56"),
        ({"PatientID": "M12-345"}, "m12345"),
        ({"PatientBirthDate": "19500102"}, "born 02.01.1950"),
        ({"PatientName": "Müller^Eva"}, "MU\u0308LLER"),
        ({"PatientName": "山田^太郎"}, "山田太郎様"),
        ({"PatientName": "Li^Wei"}, "Dr Li"),
        ({"InstitutionAddress": "500 Oakwood Grove"}, "near oakwood"),
    ],
)
def test_identifiers_are_known_in_any_spelling(known: dict[str, str], text: str) -> None:
    assert Identifiers.of(_image(**known)).are_in(text)


def test_house_numbers_and_short_numbers_do_not_move_an_image() -> None:
    dataset = _image(
        PatientID="N-1024",
        InstitutionAddress="500 Elm Grove",
        ImagePositionPatient=[-250.5, 500, 120],
        RescaleIntercept=-1024,
    )
    protect(dataset, SECRET, Options())
    assert [float(part) for part in dataset.ImagePositionPatient] == [-250.5, 500, 120]
    assert dataset.RescaleIntercept == -1024


def test_text_that_the_profile_does_not_list_keeps_harmless_words_alone() -> None:
    dataset = _image(AcquisitionProtocolName="Liver Schmidt arterial", Manufacturer="SIEMENS")
    protect(dataset, SECRET, Options())
    assert (dataset.AcquisitionProtocolName, dataset.Manufacturer) == ("Liver arterial", "SIEMENS")
