"""What is prepared of some patients' images: deleted from every cache of a home."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from fedmed_client.data.cache import Manifest


def delete_prepared(folder: Path, withdrew: Callable[[str], bool]) -> int:
    """Delete the prepared arrays of the patients for whom ``withdrew`` says so, by the site's key; how many images there were."""
    count = 0
    for file in sorted((folder / "cache").glob("*/manifest.json")):
        try:
            manifest = Manifest.model_validate_json(file.read_bytes())
        except ValidationError:
            continue
        for entry in manifest.cases:
            if withdrew(entry.patient):
                arrays = [file.with_name(f"{entry.id}.{kind}.npy") for kind in ("image", "label")]
                count += arrays[0].exists()
                for array in arrays:
                    array.unlink(missing_ok=True)
    return count
