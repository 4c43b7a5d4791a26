"""DICOM files without the patient: by the basic profile of DICOM PS3.15 Annex E, and some of its options."""
