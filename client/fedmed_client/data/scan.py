"""Find the DICOM series and label objects in a folder tree of any mixture of files."""

from __future__ import annotations

from fedmed_client.data.index import Index, LabelObject, Series, Skipped

__all__ = ["Index", "LabelObject", "Series", "Skipped"]
