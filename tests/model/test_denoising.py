"""Denoising queries worked out by hand for two small images, and the random draws against DINO's own sequence of calls."""

import math

import pytest
import torch

from deformable_detr.model.denoising import ContrastiveDenoising, DenoisingNoise, NoDenoising, draw_noise
from deformable_detr.model.queries import AnchoredProposals, Queries
from deformable_detr.structures import Target

BOX_A, BOX_B, BOX_C = (0.5, 0.5, 0.2, 0.4), (0.3, 0.4, 0.2, 0.2), (0.9, 0.5, 0.2, 0.2)


def source() -> AnchoredProposals:
    return AnchoredProposals(4, 8, torch.nn.Linear(8, 3), torch.nn.Linear(8, 4))


def two_images() -> list[Target]:
    """Two objects in the first image and one in the second."""
    return [
        Target(torch.tensor([BOX_A, BOX_B]), torch.tensor([0, 1])),
        Target(torch.tensor([BOX_C]), torch.tensor([2])),
    ]


def noise_of_one_group() -> DenoisingNoise:
    """Three objects, positive and negative: six rows."""
    return DenoisingNoise(
        label_p=torch.tensor([0.1, 0.3, 0.9, 0.9, 0.24, 0.26]),
        label_new=torch.tensor([2, 0]),
        box_sign=torch.tensor([[1, 1, 1, 1], [-1, 1, 1, -1], [1, 1, 1, 1], [-1, -1, 1, 1], [1, 1, -1, -1], [1, 1, 1, 1]]).float(),
        box_part=torch.tensor([[0.5] * 4, [0.2] * 4, [0.5] * 4, [0.5] * 4, [0.25] * 4, [0.0] * 4]),
    )


def queries_of(denoising: ContrastiveDenoising, targets: list[Target], noise: DenoisingNoise | None = None) -> Queries:
    queries = denoising.train()(source(), torch.zeros(len(targets), 10, 8), targets, noise)
    assert queries is not None
    return queries


def test_two_images_by_hand() -> None:
    denoising = ContrastiveDenoising(3, 8)
    queries = queries_of(denoising, two_images(), noise_of_one_group())
    # one group: two positives and two negatives in each image; the second image has one object, so one of each is padding
    rows = [[2, 1, 2, 0], [2, None, 2, None]]  # p < .25 changed labels of rows 0 and 4, which are A's and (negative) B's
    rows[0][2] = 0  # negative of A keeps its label 0
    table = denoising.label_embed.weight
    for image, labels in enumerate(rows):
        for query, label in enumerate(labels):
            expected = torch.zeros(8) if label is None else table[label]
            assert torch.equal(queries.query[image, query], expected), (image, query)
    boxes = queries.reference_points
    # A positive: all corners move right and down by half of half the size: (.45, .4, .65, .8)
    assert boxes[0, 0].tolist() == pytest.approx([0.55, 0.6, 0.2, 0.4], abs=1e-6)
    # B positive: left −.02, top +.02, right +.02, bottom −.02
    assert boxes[0, 1].tolist() == pytest.approx([0.3, 0.4, 0.24, 0.16], abs=1e-6)
    # A negative: part 1.5: left −.15, top −.3, right +.15, bottom +.3 → (.25, 0, .75, 1)
    assert boxes[0, 2].tolist() == pytest.approx([0.5, 0.5, 0.5, 1 - 1e-3], abs=2e-6)
    # B negative: part 1.25: left and top +.125, right and bottom −.125: the size is below 0 and becomes eps
    assert boxes[0, 3].tolist() == pytest.approx([0.3, 0.4, 1e-3, 1e-3], abs=2e-6)
    # C positive: +.05 everywhere, the right side clamped to 1: (.85, .45, 1, .65); negative: part 1: (.9, .5, 1, .7)
    assert boxes[1, 0].tolist() == pytest.approx([0.925, 0.55, 0.15, 0.2], abs=1e-6)
    assert boxes[1, 2].tolist() == pytest.approx([0.95, 0.6, 0.1, 0.2], abs=1e-6)
    assert boxes[1, 1].tolist() == boxes[1, 3].tolist() == [0.5] * 4


def test_groups_do_not_see_each_other() -> None:
    noise = draw_noise(2 * 3 * 3, 3, 0.5, 1.0)
    mask = queries_of(ContrastiveDenoising(3, 8), two_images(), noise).attn_mask
    assert mask is not None
    expected = [[-math.inf if i // 4 != j // 4 else 0.0 for j in range(12)] for i in range(12)]
    assert mask.tolist() == expected


@pytest.mark.parametrize(
    ("number", "counts", "groups"),
    [
        (100, (7, 3), 14),  # 200 // 14
        (100, (150, 1), 1),  # at least one
        (50, (3, 3), 16),  # 100 // 6
        (49, (3, 3), 98),  # below 100 the number itself is that of the groups
        (1, (1,), 2),
        (100, (0, 2), 50),
    ],
)
def test_number_of_groups(number: int, counts: tuple[int, ...], groups: int) -> None:
    targets = [Target(torch.rand(n, 4), torch.zeros(n, dtype=torch.int64)) for n in counts]
    queries = queries_of(ContrastiveDenoising(3, 8, num_queries=number), targets)
    assert queries.query.shape == (len(counts), 2 * groups * max(counts), 8)


def test_a_batch_without_objects_has_no_queries_but_a_gradient() -> None:
    denoising = ContrastiveDenoising(3, 8)
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    queries = queries_of(denoising, [empty, empty])
    assert queries.query.shape == (2, 0, 8) and queries.reference_points.shape == (2, 0, 4)
    queries.query.sum().backward()
    assert denoising.label_embed.weight.grad is not None and denoising.label_embed.weight.grad.abs().sum() == 0


def test_draws_are_those_of_the_original_sequence() -> None:
    """The calls of DINO's `prepare_for_cdn`, in its order and shapes."""
    known_labels, known_boxes = torch.arange(3).repeat(8), torch.rand(3, 4).repeat(8, 1)
    torch.manual_seed(11)
    p = torch.rand_like(known_labels.float())
    chosen = torch.nonzero(p < 0.25).view(-1)
    new = torch.randint_like(chosen, 0, 91)
    sign = torch.randint_like(known_boxes, low=0, high=2, dtype=torch.float32) * 2.0 - 1.0
    part = torch.rand_like(known_boxes)
    after = torch.rand(1)
    torch.manual_seed(11)
    noise = draw_noise(24, 91, 0.5, 1.0)
    assert torch.equal(torch.rand(1), after)
    for ours, theirs in zip(vars(noise).values(), (p, new, sign, part), strict=True):
        assert torch.equal(ours, theirs)


def test_new_labels_may_be_given_for_all_objects() -> None:
    denoising, noise = ContrastiveDenoising(3, 8), noise_of_one_group()
    everywhere = DenoisingNoise(noise.label_p, torch.tensor([2, 9, 9, 9, 0, 9]), noise.box_sign, noise.box_part)
    one, other = (queries_of(denoising, two_images(), given).query for given in (noise, everywhere))
    assert torch.equal(one, other)


def test_noise_is_on_average_what_it_should_be() -> None:
    torch.manual_seed(0)
    noise, box = draw_noise(20_000, 5, 0.5, 1.0), torch.tensor([BOX_A])
    denoising = ContrastiveDenoising(5, 8)
    labels = denoising.noisy_labels(torch.tensor([4]), noise, 20_000)
    assert (labels != 4).float().mean().item() == pytest.approx(0.25 * 4 / 5, abs=0.01)  # a fifth of the new ones is the old one
    boxes = denoising.noisy_boxes(box, noise, 20_000)
    left = boxes[:, 0] - boxes[:, 2] / 2 - 0.4
    assert left[0::2].abs().max() <= 0.1 + 1e-6  # positives: at most half the width
    assert left[1::2].abs().min() >= 0.1 - 1e-6 and left[1::2].abs().max() <= 0.2 + 1e-6
    assert left.mean().item() == pytest.approx(0, abs=3 * 0.12 / math.sqrt(20_000))


def test_without_noise_the_queries_are_the_objects() -> None:
    denoising = ContrastiveDenoising(3, 8, label_noise=0.0, box_noise=0.0)
    queries = queries_of(denoising, two_images()[:1])
    assert torch.allclose(queries.reference_points[0, :2], torch.tensor([BOX_A, BOX_B]), atol=1e-6)
    assert torch.equal(queries.query[0, :2], denoising.label_embed.weight[:2])


def test_what_is_missing_or_does_not_fit_is_said() -> None:
    denoising, memory = ContrastiveDenoising(3, 8).train(), torch.zeros(2, 10, 8)
    with pytest.raises(ValueError, match=r"in training call model\(images, targets\)"):
        denoising(source(), memory, None)
    with pytest.raises(ValueError, match="the noise is for 7 objects, but the batch has 3"):
        denoising(source(), memory, two_images(), draw_noise(7, 3, 0.5, 1.0))
    with pytest.raises(ValueError, match="learns without denoising"):
        NoDenoising()(source(), memory, two_images(), noise_of_one_group())
    assert denoising.eval()(source(), memory, None) is None
