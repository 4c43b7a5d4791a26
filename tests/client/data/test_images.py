"""Photographs and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmed_client.data.images import read_image, read_mask, semantic
from fedmed_common.errors import LabelError, UnreadableFile

EXIF_ORIENTATION = 0x0112


def save(folder: Path, image: Image.Image, name: str = "a.png", **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def ramp(dtype: type, rows: int = 3, columns: int = 4) -> np.ndarray:
    return np.arange(rows * columns, dtype=dtype).reshape(rows, columns)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour(tmp_path: Path, channels: int) -> None:
    volume = read_image(save(tmp_path, Image.fromarray(ramp(np.uint8))), channels)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels[..., 0], np.repeat(ramp(np.float32)[None], channels, 0))
    np.testing.assert_array_equal(volume.affine, np.eye(4))


def test_colour_to_grey_is_luma(tmp_path: Path) -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 200
    path = save(tmp_path, Image.fromarray(red))
    assert read_image(path, 3).voxels[:, 0, 0, 0].tolist() == [200, 0, 0]
    assert read_image(path, 1).voxels.max() == pytest.approx(200 * 0.299, abs=0.6)


def test_sixteen_bits_are_brought_to_the_same_scale(tmp_path: Path) -> None:
    deep = np.array([[0, 257], [32768, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        voxels = read_image(save(tmp_path, Image.fromarray(deep), name), 1).voxels[0, ..., 0]
        np.testing.assert_allclose(voxels, deep / 257, rtol=1e-6)


def test_alpha_is_dropped_and_palettes_resolved(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    path = save(tmp_path, Image.fromarray(colours, "RGBA"))
    np.testing.assert_array_equal(np.moveaxis(read_image(path, 3).voxels[..., 0], 0, 2), colours[..., :3])
    palette = Image.fromarray(ramp(np.uint8) % 2, "P")
    palette.putpalette([10, 20, 30, 200, 100, 0])
    voxels = read_image(save(tmp_path, palette, "p.png"), 3).voxels[..., 0]
    assert voxels[:, 0, 0].tolist() == [10, 20, 30] and voxels[:, 0, 1].tolist() == [200, 100, 0]
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png")[..., 0], ramp(np.int64) % 2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_mask_are_turned_upright_together(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    path = save(tmp_path, Image.fromarray(ramp(np.uint8)), exif=exif)
    upright = read_image(path, 1).voxels[0, ..., 0]
    assert upright.shape == ((4, 3) if orientation >= 5 else (3, 4))
    np.testing.assert_array_equal(read_mask(path)[..., 0], upright)


def test_masks_keep_their_numbers(tmp_path: Path) -> None:
    instances = ramp(np.uint16) * 100
    np.testing.assert_array_equal(read_mask(save(tmp_path, Image.fromarray(instances)))[..., 0], instances)
    bitmap = ramp(np.uint8) % 2
    path = save(tmp_path, Image.fromarray(bitmap.astype(bool)), "b.tif")
    np.testing.assert_array_equal(read_mask(path)[..., 0], bitmap)
    grey = np.repeat(ramp(np.uint8)[..., None], 3, axis=2)
    path = save(tmp_path, Image.fromarray(grey), "rgb.png")
    np.testing.assert_array_equal(read_mask(path)[..., 0], ramp(np.uint8))
    np.testing.assert_array_equal(semantic(read_mask(path))[..., 0], ramp(np.uint8) > 0)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_mask_is_cut_at_half_its_range(tmp_path: Path, mode: str) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 4:20] = 255
    path = save(tmp_path, Image.fromarray(mask).convert(mode), "a.jpg", quality=80)
    np.testing.assert_array_equal(read_mask(path)[..., 0], mask // 255)


def test_colours_are_no_mask(tmp_path: Path) -> None:
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0, 0] = 1, 2, 3
    with pytest.raises(LabelError, match="colours"):
        read_mask(save(tmp_path, Image.fromarray(colours)))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    whole = save(
        tmp_path, Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    )
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "text.png").write_text("no picture")
    pages = [Image.fromarray(ramp(np.uint8)) for _ in range(2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    for name in ("cut.png", "text.png", "pages.tif", "absent.png"):
        for read in (lambda path: read_image(path, 1), read_mask):
            with pytest.raises(UnreadableFile, match=name):
                read(tmp_path / name)
    with pytest.raises(UnreadableFile, match="channels"):
        read_image(whole, 2)


def test_real_photographs_and_masks_have_one_shape(fedmed_data: Path) -> None:
    for folder, labels in (
        ("nuclei/site_a_fluor_256", "labels"),
        ("nuclei/site_e_stained_320", "labels"),
        ("retina/small/site_kingston", "masks"),
    ):
        image, label = (min((fedmed_data / folder / part).iterdir()) for part in ("images", labels))
        volume, mask = read_image(image, 3), read_mask(label)
        assert volume.shape == mask.shape
        assert 0 < semantic(mask).mean() < 0.5
