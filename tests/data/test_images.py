import io

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.data.images import ImageTooLargeError, decode_image, read_image

GREY = np.array([[0, 100, 200], [10, 20, 255]], dtype=np.uint8)
COLOUR = np.stack((GREY, GREY[::-1], 255 - GREY), axis=2)  # [2, 3, 3]


def save(path, image, **options):
    image.save(path, **options)
    return path


def as_hwc(image):
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def test_rgb_is_read_as_it_is(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(COLOUR))
    np.testing.assert_array_equal(as_hwc(read_image(path)), COLOUR)
    np.testing.assert_array_equal(as_hwc(read_image(str(path))), COLOUR)


def test_greyscale_and_palette_become_rgb(tmp_path):
    grey = read_image(save(tmp_path / "grey.png", Image.fromarray(GREY)))
    np.testing.assert_array_equal(as_hwc(grey), np.repeat(GREY[:, :, None], 3, axis=2))
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode=None).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 1, 2, 3])
    image = as_hwc(read_image(save(tmp_path / "palette.png", palette)))
    np.testing.assert_array_equal(image, [[[255, 0, 0], [0, 255, 0]], [[1, 2, 3], [0, 255, 0]]])


def test_one_bit_and_grey_with_alpha(tmp_path):
    bits = Image.fromarray(GREY > 50)
    np.testing.assert_array_equal(as_hwc(read_image(save(tmp_path / "bits.png", bits)))[:, :, 0], np.where(GREY > 50, 255, 0))
    grey_alpha = Image.merge("LA", (Image.fromarray(GREY), Image.new("L", (3, 2), 7)))
    np.testing.assert_array_equal(as_hwc(read_image(save(tmp_path / "la.png", grey_alpha)))[:, :, 2], GREY)


def test_alpha_is_dropped_not_composited(tmp_path):
    image = Image.fromarray(np.dstack((COLOUR, np.zeros_like(GREY))))
    np.testing.assert_array_equal(as_hwc(read_image(save(tmp_path / "a.png", image))), COLOUR)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path, suffix):
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    image = as_hwc(read_image(save(tmp_path / f"a.{suffix}", Image.fromarray(values))))
    for channel in range(3):
        np.testing.assert_array_equal(image[:, :, channel], [[0, 0, 1], [128, 254, 255]])


def test_sixteen_bit_rgb(tmp_path):
    cv2 = pytest.importorskip("cv2")
    values = np.array([[[0, 256, 65535], [32768, 511, 65279]]], dtype=np.uint16)  # RGB
    assert cv2.imwrite(str(tmp_path / "a.png"), values[:, :, ::-1])
    np.testing.assert_array_equal(as_hwc(read_image(tmp_path / "a.png")), [[[0, 1, 255], [128, 1, 254]]])


def test_cmyk(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (255, 0, 0, 0)), quality=95)
    red, green, blue = (int(value) for value in as_hwc(read_image(path))[4, 4])
    assert red < 10 and green > 240 and blue > 240  # cyan ink only


# What a viewer must do to the stored pixels, by the EXIF standard.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(COLOUR), exif=exif)
    np.testing.assert_array_equal(as_hwc(read_image(path)), UPRIGHT[orientation](COLOUR))
    np.testing.assert_array_equal(as_hwc(read_image(path, upright=False)), COLOUR)


def damaged(kind):
    if kind == "empty":
        return b""
    if kind == "text":
        return b"this is no image"
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format=kind)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


@pytest.mark.parametrize(
    ("kind", "message"), [("empty", "not an image"), ("text", "not an image"), ("JPEG", "truncated"), ("PNG", "truncated")]
)
def test_bad_files_are_named(tmp_path, kind, message):
    path = tmp_path / "street.jpg"
    path.write_bytes(damaged(kind))
    with pytest.raises(ValueError, match=rf"street\.jpg: .*{message}"):
        read_image(path)


def test_missing_file_folder_and_float_pixels(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg: no such image"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match="folder, not an image"):
        read_image(tmp_path)
    path = save(tmp_path / "depth.tif", Image.fromarray(np.ones((2, 2), dtype=np.float32)))
    with pytest.raises(ValueError, match=r"depth\.tif: 32-bit float"):
        read_image(path)


def as_bytes(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [1, 6])
def test_decoding_is_reading(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for number, array in enumerate((COLOUR, GREY, GREY.astype(np.uint16) * 257, np.dstack((COLOUR, GREY)))):
        content = as_bytes(Image.fromarray(array), exif=exif)
        (tmp_path / f"{number}.png").write_bytes(content)
        decoded = decode_image(content, "sent", max_pixels=6)
        assert torch.equal(decoded, read_image(tmp_path / f"{number}.png"))


@pytest.mark.parametrize(
    ("kind", "message"), [("empty", "not an image"), ("text", "not an image"), ("JPEG", "truncated"), ("PNG", "truncated")]
)
def test_bad_content_is_named(kind, message):
    with pytest.raises(ValueError, match=rf"street: .*{message}"):
        decode_image(damaged(kind), "street", max_pixels=10_000)


def test_content_with_too_many_pixels_or_of_a_wrong_kind():
    with pytest.raises(ImageTooLargeError, match="street: 3 x 2 pixels are more than the 5 allowed"):
        decode_image(as_bytes(Image.fromarray(COLOUR)), "street", max_pixels=5)
    with pytest.raises(ImageTooLargeError, match="decompression bomb"):
        decode_image(as_bytes(Image.new("1", (20_000, 10_000))), "street", max_pixels=10**9)
    with pytest.raises(ValueError, match="street: 32-bit float"):
        decode_image(as_bytes(Image.new("F", (2, 2)), "TIFF"), "street", max_pixels=5)
    with pytest.raises(ValueError, match="street: not an image"):  # a format that runs Ghostscript
        decode_image(as_bytes(Image.fromarray(COLOUR), "EPS"), "street", max_pixels=99)
