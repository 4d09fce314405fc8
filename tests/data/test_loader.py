from dataclasses import replace
from itertools import chain

import pytest
import torch
from PIL import Image

from deformable_detr.config import DataConfig
from deformable_detr.data.loader import TrainingSampler, build_dataset, build_loader
from deformable_detr.data.scenes import generate_scenes

CONFIG = DataConfig(train_short_sides=(40, 48), crop_short_sides=(40,), crop_range=(24, 32), eval_short_side=40, max_long_side=64)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate_scenes(tmp_path_factory.mktemp("scenes"), train=9, val=5, image_size=48, seed=1)


def steps(length, batch_size, world_size, epoch=0, skip=0):
    shares = []
    for rank in range(world_size):
        sampler = TrainingSampler(length, batch_size=batch_size, seed=3, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch, skip)
        keys = list(sampler)
        shares.append([keys[i : i + batch_size] for i in range(0, len(keys), batch_size)])
    return [list(chain(*parts)) for parts in zip(*shares, strict=True)]


def test_two_processes_see_the_images_of_one():
    assert steps(23, 2, 2) == steps(23, 4, 1)
    assert len(steps(23, 4, 1)) == 5
    assert steps(23, 4, 1, skip=2) == steps(23, 4, 1)[2:]
    assert steps(23, 4, 1, epoch=1) != steps(23, 4, 1)
    assert len({key.index for step in steps(23, 4, 1) for key in step}) == 20
    counts = [[key.index for key in steps(3, 4, 2)[0]].count(index) for index in range(3)]  # 3 images repeated to fill 8
    assert sorted(counts) == [2, 3, 3]


def test_evaluation_visits_every_image_once(scenes):
    dataset = build_dataset(scenes, "val", CONFIG, training=False)
    loaders = [build_loader(dataset, batch_size=2, training=False, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(chain(*(loader.sampler for loader in loaders))) == list(range(len(dataset)))
    with pytest.raises(ValueError, match=r"rank must be in \[0, 3\), not 3"):
        build_loader(dataset, batch_size=2, training=False, rank=3, world_size=3)


def test_batches_do_not_depend_on_workers_or_start(scenes):
    dataset = build_dataset(scenes, "train", CONFIG, training=True)

    def batches(workers, skip=0):
        loader = build_loader(dataset, batch_size=2, training=True, num_workers=workers, seed=5)
        assert isinstance(loader.sampler, TrainingSampler)
        loader.sampler.set_epoch(2, skip)
        return [(batch.images, [target.boxes for target in targets]) for batch, targets in loader]

    torch.manual_seed(0)
    expected = batches(0)
    assert len(expected) == 4
    torch.manual_seed(1)
    torch.testing.assert_close(batches(2), expected, rtol=0, atol=0)
    torch.testing.assert_close(batches(0, skip=3), expected[3:], rtol=0, atol=0)


def test_steps_are_transposed_as_a_whole(tmp_path):
    """Wide and tall images in one batch were padded to squares. In all processes the same, from wherever one starts."""
    for number in range(40):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (60, 30)).save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text("0 0.25 0.5 0.2 0.4\n")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    config = replace(CONFIG, train_short_sides=(30,), crop_short_sides=(), horizontal_flip=0.0, transpose=0.5)
    dataset = build_dataset(tmp_path, "train", config, training=True)

    def batches(batch_size, rank=0, world_size=1, skip=0):
        loader = build_loader(dataset, batch_size=batch_size, training=True, rank=rank, world_size=world_size)
        assert isinstance(loader.sampler, TrainingSampler)
        loader.sampler.set_epoch(0, skip)
        return [(batch.images.shape[2:], targets[-1].boxes[0].tolist()) for batch, targets in loader]

    found = batches(2)
    assert {tuple(shape) for shape, _ in found} == {(30, 60), (60, 30)}
    for shape, box in found:
        assert box == pytest.approx([0.25, 0.5, 0.2, 0.4] if shape == (30, 60) else [0.5, 0.25, 0.4, 0.2])
    assert batches(2, skip=7) == found[7:]
    assert batches(1, rank=1, world_size=2) == found
    always = build_dataset(tmp_path, "train", replace(config, transpose=1.0), training=True)
    assert all(batch.images.shape[2:] == (60, 30) for batch, _ in build_loader(always, batch_size=2, training=True))
    assert dataset[0][0].shape == (3, 30, 60)  # no step, so not transposed


def test_reading_leaves_the_global_generator_alone(scenes):
    loader = build_loader(build_dataset(scenes, "train", CONFIG, training=True), batch_size=2, training=True)
    before = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_loader(scenes):
    dataset = build_dataset(scenes, "val", CONFIG, training=False)
    batches = list(build_loader(dataset, batch_size=2, training=False))
    assert [len(batch) for batch, _ in batches] == [2, 2, 1]
    assert tuple(target.image_id for _, targets in batches for target in targets) == dataset.image_ids
    assert batches[0][0].image_ids == dataset.image_ids[:2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(tmp_path, workers):
    root = generate_scenes(tmp_path, train=2, val=1, image_size=48)
    image = root / "train" / "000002.png"
    image.write_bytes(image.read_bytes()[:1500])
    loader = build_loader(build_dataset(root, "train", CONFIG, training=True), batch_size=2, training=True, num_workers=workers)
    with pytest.raises(ValueError, match=r"000002\.png: the image is damaged or truncated"):
        next(iter(loader))


def test_wrong_batch_size(scenes):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        build_loader(build_dataset(scenes, "val", CONFIG, training=False), batch_size=0, training=False)
    with pytest.raises(TypeError):  # a DataLoader would not put images together
        build_loader(build_dataset(scenes, "val", CONFIG, training=False), batch_size=None, training=False)  # pyright: ignore[reportArgumentType]
