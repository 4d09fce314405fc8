import io
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from deformable_detr.data.transforms import eval_transform
from deformable_detr.inference.sources import InputImage, is_single, list_images, open_single, open_source


def save(path, color=(255, 0, 0), size=(8, 6), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def names(source):
    return [image.name for image in open_source(source)]


def test_folder_in_natural_order_without_other_files_and_subfolders(tmp_path):
    for name in ("frame10.png", "frame2.png", "Frame1.PNG", "sub/x.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.name for path in list_images(tmp_path)] == ["Frame1.PNG", "frame2.png", "frame10.png"]
    assert not is_single(tmp_path)
    assert not is_single(str(tmp_path))


def test_patterns(tmp_path):
    for name in ("a/1.png", "a/2.jpg", "b/c/3.png"):
        save(tmp_path / name)
    assert names(f"{tmp_path}/a/*.png") == [str(tmp_path / "a/1.png")]
    assert names(f"{tmp_path}/**/*.png") == [str(tmp_path / "a/1.png"), str(tmp_path / "b/c/3.png")]
    assert not is_single(f"{tmp_path}/a/*.png")
    with pytest.raises(FileNotFoundError, match="matches no image"):
        names(f"{tmp_path}/*.bmp")


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    path = save(tmp_path / "scan[1].png")
    assert is_single(path)
    assert names(path) == [str(path)]


def test_lists_mix_everything_and_expand_folders(tmp_path):
    first, second = save(tmp_path / "f/1.png"), save(tmp_path / "f/2.png")
    array = np.zeros((4, 5, 3), np.uint8)
    images = list(open_source([str(first), tmp_path / "f", array, torch.zeros(3, 4, 5, dtype=torch.uint8)]))
    assert [image.name for image in images] == [str(first), str(first), str(second), "image 2", "image 3"]
    assert not is_single([array])
    assert is_single(array)


def test_one_image_where_one_is_meant(tmp_path):
    for number in (1, 2):
        Image.new("RGB", (4, 3)).save(tmp_path / f"{number}.png")
    assert open_single(tmp_path / "2.png").path == tmp_path / "2.png"
    for source, message in ((tmp_path, r"several: .*1\.png, .*2\.png"), ([], "an empty list")):
        with pytest.raises(ValueError, match=f"one image is wanted, not {message}"):
            open_single(source)


def test_an_endless_stream_is_read_lazily():
    def frames():
        while True:
            yield np.zeros((4, 5, 3), np.uint8)

    stream = open_source(frames())
    assert next(stream).name == "image 0"
    assert next(stream).name == "image 1"


def shades_of(frames):
    """Of images that are read only after all have been given, as the threads of a prediction may do."""
    return [image.read().unique().tolist() for image in list(open_source(frames))]


def test_what_an_iterator_gives_may_be_used_again(tmp_path):
    """One array for all frames of a camera, an image that a `with` closes, the frames of an animation, which are one object."""
    shades = [10, 20, 30]
    expected = [[shade] for shade in shades]

    def one(image, fill):
        for shade in shades:
            fill(image, shade)
            yield image

    def files():
        for shade in shades:
            with Image.open(save(tmp_path / "a.png", (shade,) * 3)) as image:
                yield image

    def content(shade):
        return save(tmp_path / "a.png", (shade,) * 3, size=(8, 6)).read_bytes()

    array = np.zeros((4, 5, 3), np.uint8)
    assert shades_of(one(array, lambda image, shade: image.fill(shade))) == expected
    assert shades_of(one(array[:, ::2], lambda image, shade: image.fill(shade))) == expected
    assert shades_of(one(torch.zeros(3, 4, 5, dtype=torch.uint8), lambda image, shade: image.fill_(shade))) == expected
    assert shades_of(one(Image.new("L", (5, 4)), lambda image, shade: image.paste(shade, (0, 0, 5, 4)))) == expected
    assert shades_of(one(bytearray(content(0)), lambda image, shade: image.__setitem__(slice(None), content(shade)))) == expected
    assert shades_of(files()) == expected
    pages = [Image.new("L", (5, 4), shade) for shade in shades]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    with Image.open(tmp_path / "a.tiff") as image:
        assert shades_of(ImageSequence.Iterator(image)) == expected


def test_open_files(tmp_path):
    path = save(tmp_path / "a.png", (7, 7, 7))
    for opened in (path.open("rb"), io.BytesIO(path.read_bytes())):
        with opened:
            assert is_single(opened)
            assert next(open_source(opened)).read().unique().tolist() == [7]
            for source in (opened, [opened]):
                with pytest.raises(ValueError, match=r"image( 0)?: nothing to read in this open file; was it read to its end"):
                    next(open_source(source)).read()
    with path.open(encoding="latin-1") as text, pytest.raises(TypeError, match=r"image 0 is a TextIOWrapper that reads str"):
        next(open_source([text]))


def test_a_damaged_pil_image_fails_in_its_turn(tmp_path):
    path = save(tmp_path / "a.png", size=(64, 64))
    path.write_bytes(path.read_bytes()[:60])
    with Image.open(path) as damaged:
        first, second = open_source([damaged, Image.new("RGB", (5, 4))])
    with pytest.raises(ValueError, match="image 0: the image is damaged or truncated"):
        first.read()
    assert second.read().shape == (3, 4, 5)


def test_every_kind_gives_the_same_upright_rgb_pixels(tmp_path):
    array = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    path = tmp_path / "x.png"
    Image.fromarray(array).save(path)
    expected = torch.from_numpy(array).permute(2, 0, 1)
    for source in (path, Image.fromarray(array), array, expected, array[:, ::-1][:, ::-1]):
        (image,) = open_source(source)
        assert torch.equal(image.read(), expected)


def test_a_tensor_is_resized_like_an_array():
    """To a width of one pixel, which PyTorch's resize of 8 bits gets wrong on tensors that lie channel after channel."""
    array = np.random.default_rng(0).integers(0, 256, (60, 2, 3), dtype=np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1).contiguous()
    transform = eval_transform(1, 30, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    resized = [transform(next(open_source(source)).read())[0] for source in (tensor, array)]
    assert resized[0].shape == (3, 30, 1)
    assert torch.equal(*resized)


def test_exif_orientation_is_followed_in_files_and_pil_images(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255  # left half white; orientation 6: turn by 90 degrees clockwise, so that the top becomes white
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    for source in (path, Image.open(path)):
        (image,) = open_source(source)
        read = image.read()
        assert read.shape == (3, 8, 4)
        assert read[:, :4].min() == 255
        assert read[:, 4:].max() == 0


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_other_modes_become_rgb(mode):
    (image,) = open_source(Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode))
    assert image.read().shape == (3, 4, 5)
    assert image.read().dtype == torch.uint8


def test_colours_multiplied_by_alpha():
    for mode, plain in (("La", "LA"), ("RGBa", "RGBA")):
        image = Image.new(plain, (4, 3), (200, 255) if mode == "La" else (200, 100, 50, 255)).convert(mode)
        expected = [200, 200, 200] if mode == "La" else [200, 100, 50]
        assert next(open_source(image)).read()[:, 0, 0].tolist() == expected


def test_bytes_of_any_kind(tmp_path):
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for source in (bytearray(content), memoryview(content)):
        assert is_single(source)
        assert torch.equal(next(open_source(source)).read(), next(open_source(content)).read())
        assert [image.name for image in open_source([source, content])] == ["image 0", "image 1"]


def test_the_first_of_several_pages_is_said(tmp_path, caplog):
    pages = [Image.new("L", (5, 4), shade) for shade in (10, 20, 30)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "b.tiff")
    for name in ("a.tiff", "b.tiff", "a.tiff"):
        assert next(open_source(tmp_path / name)).read().unique().tolist() == [10]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'a.tiff'}: the first of 3 images (pages, channels or smaller copies) in this file is read"
    ]


def test_grey_arrays():
    (image,) = open_source(np.full((4, 5), 7, np.uint8))
    assert torch.equal(image.read(), torch.full((3, 4, 5), 7, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), "image 3 is an array of float32; expected uint8"),
        (np.zeros((3, 4, 5), np.uint8), r"shape [3, 4, 5]; expected [height, width, 3]"),
        (np.zeros((4, 5, 4), np.uint8), r"shape [4, 5, 4]"),
        (np.zeros((0, 5, 3), np.uint8), r"shape [0, 5, 3]"),
        (torch.zeros(3, 4, 5), "tensor of torch.float32; expected torch.uint8"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), "pass list(batch)"),
        (Image.new("F", (5, 4)), "image 3: 32-bit float pixels have no natural 8-bit form"),
    ],
)
def test_images_that_are_none(content, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        InputImage("image 3", content).read()


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such image or folder: .*nowhere\.jpg"):
        next(open_source(tmp_path / "nowhere.jpg")).read()
    with pytest.raises(FileNotFoundError, match="download the image first"):
        next(open_source("s3://bucket/street.jpg")).read()
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        next(open_source(tmp_path / "broken.jpg")).read()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in the folder"):
        next(open_source(tmp_path / "empty"))


def test_things_that_are_no_source():
    with pytest.raises(TypeError, match="cannot predict on a int"):
        next(open_source(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="item 1 of the list is a NoneType"):
        list(open_source([np.zeros((4, 5, 3), np.uint8), None]))  # type: ignore[list-item]
