import io
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.data.doctor.images import read_facts
from deformable_detr.data.images import UPLOAD_FORMATS, ImageError, ImageTooLargeError, open_image, read_image, read_size
from deformable_detr.inference.large_images import PillowImage
from deformable_detr.inference.sources import InputImage, is_single, list_images, open_source

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


@pytest.mark.parametrize("values", [[[-1, 9]], [[0, 65536]]])
def test_whole_numbers_beyond_sixteen_bits(values, tmp_path):
    wide = Image.fromarray(np.array(values, dtype=np.int32))
    with pytest.raises(ImageError, match=rf"a\.tif: values from {min(0, *values[0])} to {values[0][1]} have no natural 8-bit form"):
        read_image(save(tmp_path / "a.tif", wide))


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
    tiff = save(tmp_path / "a.tif", Image.fromarray(COLOUR), tiffinfo={0x0112: orientation})  # which Pillow turns by itself
    np.testing.assert_array_equal(as_hwc(read_image(tiff)), UPRIGHT[orientation](COLOUR))
    assert read_size(tiff) == read_size(path) == UPRIGHT[orientation](COLOUR).shape[:2]
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


def whole(image):
    return image.read((0, 0, image.size[1], image.size[0]))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_of_tiffs(tmp_path, orientation):
    """Of every form that Pillow or OpenCV reads in its own way: each turns some of them by itself."""
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    plain, turned = tmp_path / "plain.tif", tmp_path / "turned.tif"
    for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK"):
        image = Image.fromarray(values, "CMYK") if mode == "CMYK" else Image.fromarray(values[:, :, :3]).convert(mode)
        image.save(plain)
        image.save(turned, tiffinfo={0x0112: orientation})
        expected = UPRIGHT[orientation](as_hwc(read_image(plain)))
        np.testing.assert_array_equal(as_hwc(read_image(turned)), expected, err_msg=mode)
        with Image.open(turned) as opened:
            np.testing.assert_array_equal(as_hwc(read_image(opened)), expected, err_msg=mode)
            assert opened.filename == str(turned)
        np.testing.assert_array_equal(as_hwc(whole(PillowImage(turned, 16))), expected, err_msg=mode)
        np.testing.assert_array_equal(as_hwc(read_image(turned.read_bytes())), expected, err_msg=mode)
    for channels, bit_depth in ((1, 12), (1, 16), (3, 12), (3, 16)):
        wide = np.random.default_rng(0).integers(0, 1 << bit_depth, (5, 7, channels), dtype=np.uint16)
        turned.write_bytes(tiff(wide, photometric=2 if channels == 3 else 1, orientation=orientation))
        expected = UPRIGHT[orientation]((wide >> (bit_depth - 8)).repeat(3 // channels, axis=2))
        for source in (turned, turned.read_bytes()):
            np.testing.assert_array_equal(as_hwc(read_image(source, bit_depth=bit_depth)), expected)
        if channels == 1 or bit_depth == 16:
            np.testing.assert_array_equal(as_hwc(whole(PillowImage(turned, bit_depth))), expected)
        assert read_size(turned) == expected.shape[:2]


@pytest.mark.parametrize("orientation", [1, 6])
def test_decoding_is_reading(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for number, array in enumerate((COLOUR, GREY, GREY.astype(np.uint16) * 257, np.dstack((COLOUR, GREY)))):
        content = as_bytes(Image.fromarray(array), exif=exif)
        (tmp_path / f"{number}.png").write_bytes(content)
        decoded = read_image(content, name="sent", formats=UPLOAD_FORMATS, max_pixels=6)
        assert torch.equal(decoded, read_image(tmp_path / f"{number}.png"))


@pytest.mark.parametrize(
    ("kind", "message"), [("empty", "not an image"), ("text", "not an image"), ("JPEG", "truncated"), ("PNG", "truncated")]
)
def test_bad_content_is_named(kind, message):
    with pytest.raises(ValueError, match=rf"street: .*{message}"):
        read_image(damaged(kind), name="street", formats=UPLOAD_FORMATS)


def test_content_with_too_many_pixels_or_of_a_wrong_kind():
    def read(content, **options):
        return read_image(content, name="street", formats=UPLOAD_FORMATS, **options)

    with pytest.raises(ImageTooLargeError, match="street: 3 x 2 pixels are more than the 5 allowed"):
        read(as_bytes(Image.fromarray(COLOUR)), max_pixels=5)
    with pytest.raises(ImageTooLargeError, match="decompression bomb"):
        read(as_bytes(Image.new("1", (20_000, 10_000))))
    with pytest.raises(ImageError, match="street: 32-bit float"):
        read(as_bytes(Image.new("F", (2, 2)), "TIFF"))
    with pytest.raises(ImageError, match="street: not an image"):  # a format that runs Ghostscript
        read(as_bytes(Image.fromarray(COLOUR), "EPS"))


def test_one_answer_for_every_source(tmp_path):
    """The same pixels from a file, its content, an open file, a PIL image, an array, a tensor; 8 and 16 bits, grey and colour."""
    wide = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    for number, array in enumerate((GREY, COLOUR, wide)):
        path = save(tmp_path / f"{number}.png", Image.fromarray(array))
        expected = (array >> 8).astype(np.uint8) if array.dtype == np.uint16 else array
        expected = expected if expected.ndim == 3 else np.repeat(expected[:, :, None], 3, axis=2)
        sources = [path, str(path), path.read_bytes(), path.open("rb"), Image.open(path), array]
        if array.ndim == 3:
            sources.append(torch.from_numpy(array).permute(2, 0, 1))
        for source in sources:
            np.testing.assert_array_equal(as_hwc(read_image(source)), expected)
            if not hasattr(source, "read"):
                np.testing.assert_array_equal(as_hwc(next(open_source(source)).read()), expected)
        for opened in sources[3:5]:
            opened.close()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_bit_depth(tmp_path, suffix):
    """12 bits in 16, grey and colour: 4095 becomes 255. Written by OpenCV, which keeps 16 bits of colour."""
    cv2 = pytest.importorskip("cv2")
    values = np.array([[0, 15, 16], [2048, 4095, 5000]], dtype=np.uint16)
    expected = np.array([[0, 0, 1], [128, 255, 255]], dtype=np.uint8)
    colour = np.stack((values, values[::-1], values), axis=2)
    for name, written, channel in (("grey", values, 0), ("colour", colour[:, :, ::-1], 0)):
        path = tmp_path / f"{name}.{suffix}"
        assert cv2.imwrite(str(path), written)
        for source in (path, path.read_bytes()):
            np.testing.assert_array_equal(as_hwc(read_image(source, bit_depth=12))[:, :, channel], expected)
    np.testing.assert_array_equal(as_hwc(read_image(tmp_path / f"colour.{suffix}", bit_depth=12))[:, :, 1], expected[::-1])
    np.testing.assert_array_equal(as_hwc(read_image(colour, bit_depth=12))[:, :, 0], expected)
    eight = as_bytes(Image.fromarray(COLOUR))
    assert torch.equal(read_image(eight, bit_depth=10), read_image(eight))  # 8 bits stay


def tiff(values, *, photometric, planes=1, orientation=1):
    """An uncompressed TIFF of uint16 `[H, W, C]`, little-endian, written by hand: Pillow writes neither of the two forms."""
    height, width, channels = values.shape
    strips = [values.tobytes()] if planes == 1 else [plane.tobytes() for plane in np.ascontiguousarray(values.transpose(2, 0, 1))]
    after = 8 + 2 + 10 * 12 + 4
    lists = struct.pack(f"<{channels}H", *[16] * channels) if channels > 2 else b""
    starts = [after + len(lists) + 8 * len(strips) + sum(len(strip) for strip in strips[:index]) for index in range(len(strips))]
    sizes = [len(strip) for strip in strips]
    whole = {
        256: width,
        257: height,
        258: after if lists else 16,
        262: photometric,
        274: orientation,
        277: channels,
        278: height,
        284: planes,
    }
    whole[273], whole[279] = (starts[0], sizes[0]) if len(strips) == 1 else (after + len(lists), after + len(lists) + 12)
    counts = {258: channels, 273: len(strips), 279: len(strips)}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (256, 257, 273, 278, 279) else 3, counts.get(tag, 1), whole[tag])
        for tag in sorted(whole)
    )
    pointers = struct.pack(f"<{2 * len(strips)}I", *starts, *sizes) if len(strips) > 1 else bytes(8)
    return b"II*\0" + struct.pack("<IH", 8, len(whole)) + entries + bytes(4) + lists + pointers + b"".join(strips)


def test_sixteen_bit_grey_tiff_whose_zero_is_white(tmp_path):
    values = np.array([[[0], [4095], [16]]], dtype=np.uint16)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(values, photometric=0))
    assert read_image(path, bit_depth=12)[0].tolist() == [[255, 0, 254]]
    assert read_image(path)[0].tolist() == [[255, 240, 255]]  # 4095 is a sixteenth of the range
    with pytest.raises(ImageError, match=r"a\.tif: 16 bits in this form are read by windows after pip install"):
        PillowImage(path, 16)


def test_sixteen_bit_tiff_with_its_channels_one_after_the_other(tmp_path):
    """Pillow and OpenCV take wrong places of such files for the channels."""
    values = np.arange(24, dtype=np.uint16).reshape(2, 4, 3) * 2000
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(values, photometric=2))
    np.testing.assert_array_equal(as_hwc(read_image(path)), values >> 8)
    path.write_bytes(tiff(values, photometric=2, planes=2))
    for read in (read_image, lambda path: PillowImage(path, 16), read_facts):
        with pytest.raises(ImageError, match=r"a\.tif: a TIFF with 16 bits whose channels .* save it with interleaved channels"):
            read(path)


@pytest.mark.parametrize("maximum", [1023, 65535])
def test_sixteen_bit_ppm_and_pgm(tmp_path, maximum):
    """A file that says its range keeps it; one of 65535 may hold fewer bits."""
    values = np.array([[[0, 16, 1023], [512, 1023, 256]]], dtype=np.uint16)
    for kind, stored in (("P6", values), ("P5", values[:, :, 0])):
        path = tmp_path / f"{kind}.ppm"
        path.write_bytes(f"{kind} 2 1 {maximum}\n".encode() + stored.astype(">u2").tobytes())
        found = as_hwc(read_image(path, bit_depth=10)).astype(int)
        assert abs(found - stored.reshape(1, 2, -1) / 1023 * 255).max() <= 1


def test_a_pil_image_of_sixteen_bit_colour(tmp_path, caplog):
    """Until it is loaded, its file is at hand; afterwards Pillow has kept 8 bits, which is said once."""
    cv2 = pytest.importorskip("cv2")
    values = np.array([[[0, 2048, 4095]]], dtype=np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.png"), values)
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            assert as_hwc(read_image(image, bit_depth=12)).tolist() == [[[255, 128, 0]]]
            assert not caplog.records
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        read_image(image, bit_depth=12)
        read_image(image, bit_depth=12)
    assert [record.message.partition(":")[2] for record in caplog.records] == [
        " PIL has loaded it with 8 bits per channel; if its file has 16, give the path instead"
    ]


def test_arrays_of_the_other_byte_order():
    values = np.array([[0, 256, 65535]], dtype=">u2")
    assert read_image(values)[0].tolist() == [[0, 1, 255]]
    with pytest.raises(ImageError, match="an array of uint32"):
        read_image(values.astype(np.uint32))


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"zTXt", b"workflow\0\0" + zlib.compress(b"node " * 400_000)),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x/>" * 500_000)),
        (b"zTXt", 70 * [b"a\0\0" + zlib.compress(b"b" * 1_000_000)]),
    ],
)
def test_png_with_much_text_is_read(tmp_path, kind, data):
    content = as_bytes(Image.fromarray(COLOUR))
    texts = b"".join(png_chunk(kind, part) for part in (data if isinstance(data, list) else [data]))
    path = tmp_path / "workflow.png"
    path.write_bytes(content[:33] + texts + content[33:])
    for source in (path, path.read_bytes()):
        np.testing.assert_array_equal(as_hwc(read_image(source)), COLOUR)
    assert read_size(path) == (2, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_sound_pixels_with_damaged_exif_are_read(tmp_path):
    content = bytearray(as_bytes(Image.fromarray(COLOUR), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"))
    assert read_image(bytes(content)).shape == (3, 2, 3)


FORMATS = (
    *("AVIF", "BLP", "BMP", "DDS", "DIB", "GIF", "ICO", "IM", "JPEG", "JPEG2000", "MPO", "MSP", "PCX", "PNG"),
    *("PPM", "QOI", "SGI", "SPIDER", "TGA", "TIFF", "WEBP", "XBM"),
)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds in damaged tags
def test_damaged_files_of_every_format(kind, tmp_path):
    """100 files each, with changed bytes or cut off: read, or one kind of error that names the file."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 48, 3), dtype=np.uint8))
    mode = {"BLP": "P", "MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB")
    try:
        whole = as_bytes(noise.convert(mode), kind)
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow does not write {kind}: {error}")
    path = tmp_path / f"damaged.{kind.lower()}"
    for number in range(100):
        content = bytearray(whole)
        for place in rng.integers(0, len(content) if number % 2 else min(120, len(content)), int(rng.integers(0, 6))):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content[: len(content) if number % 3 else rng.integers(0, len(content))])
        for read in (read_image, read_size):
            try:
                read(path)
            except ImageError as error:
                assert str(error).startswith(str(path))
        try:
            read_image(path.read_bytes(), name="sent")
        except ImageError as error:
            assert str(error).startswith("sent: ")


def test_errors_of_the_caller_within_open_image_are_no_images(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(COLOUR))
    with pytest.raises(ImageError, match=r"a\.png: the image is damaged or truncated \(KeyError\)"), open_image(path, str(path)):
        raise KeyError


# ---- addresses


class Answers(BaseHTTPRequestHandler):
    """Serves one PNG, an endless file, a page, a redirect to a local file, and errors."""

    content = as_bytes(Image.fromarray(COLOUR))

    def do_GET(self):
        kind = self.path.partition("?")[0].rpartition("/")[2]
        if kind == "missing.png":
            self.send_error(404, "Not here")
        elif kind == "redirect.png":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            body = {"a.png": self.content, "page.html": b"<html>", "cut.png": self.content[:50], "long.png": bytes(3000)}[kind]
            self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_addresses(host, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("deformable_detr.data.images.MOST_BYTES", 2000)
    address = f"{host}/a.png?size=large*"
    assert is_single(address)
    (image,) = open_source(address)
    assert (image.name, image.path) == (address, None)
    np.testing.assert_array_equal(as_hwc(image.read()), COLOUR)
    np.testing.assert_array_equal(as_hwc(next(open_source([address, COLOUR])).read()), COLOUR)
    for name, message in (
        ("missing.png", r"missing\.png: cannot be fetched \(status 404: Not here\)"),
        ("page.html", r"page\.html: not an image that can be read \(6 bytes\)"),
        ("cut.png", r"cut\.png: the image is damaged or truncated"),
        ("redirect.png", r"redirect\.png: cannot be fetched"),
    ):
        with pytest.raises(ImageError, match=message):
            read_image(f"{host}/{name}")
    with pytest.raises(ImageTooLargeError, match=r"long\.png: more than 0 MiB; download"):
        read_image(f"{host}/long.png")
    with pytest.raises(ImageError, match=r"^http://127\.0\.0\.1:1/a\.png: cannot be fetched"):
        read_image("http://127.0.0.1:1/a.png")


def test_folders_say_what_they_leave_out(tmp_path, caplog):
    save(tmp_path / "a.jfif", Image.fromarray(COLOUR), format="JPEG")
    for name in ("b.heic", "c.HEIC", "notes.txt", "._a.jpg"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jfif"]
    assert "left out 2 images of formats that are not read (.heic)" in caplog.text
    with pytest.raises(FileNotFoundError, match="only http and https addresses"):
        InputImage("s", tmp_path.joinpath("s3://bucket/a.png").relative_to(tmp_path)).read()
