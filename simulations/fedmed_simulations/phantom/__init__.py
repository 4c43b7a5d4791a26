"""Synthetic hospitals, written as real DICOM."""
