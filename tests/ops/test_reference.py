import torch

from deformable_detr.ops.reference import multi_scale_deformable_attn_pytorch, sampling_locations_from_offsets


def test_equals_a_loop_over_pixels(problems):
    """Written from the definition: every pixel has a tent of weight (1 - |dx|)(1 - |dy|) around its centre."""
    p = problems(shapes=[(4, 5), (2, 3), (1, 1)], batch=2, queries=3, heads=2, channels=3, points=2, reference=0).map(
        torch.Tensor.double
    )
    expected = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    start = 0
    for level, (h, w) in enumerate(p.shapes):
        for y in range(h):
            for x in range(w):
                dx = (p.offsets[:, :, :, level, :, 0] * w - (x + 0.5)).abs()
                dy = (p.offsets[:, :, :, level, :, 1] * h - (y + 0.5)).abs()
                tent = (1 - dx).clamp_min(0) * (1 - dy).clamp_min(0) * p.weights[:, :, :, level]  # [B, Q, M, P]
                expected += tent.sum(-1, keepdim=True) * p.value[:, None, start + y * w + x]
        start += h * w
    found = multi_scale_deformable_attn_pytorch(p.value, p.shapes, p.offsets, p.weights)
    torch.testing.assert_close(found, expected.flatten(2))


def test_shapes_may_be_a_tensor(problems):
    p = problems(reference=0)
    found = multi_scale_deformable_attn_pytorch(p.value, torch.tensor(p.shapes), p.offsets, p.weights)
    assert torch.equal(found, multi_scale_deformable_attn_pytorch(p.value, p.shapes, p.offsets, p.weights))


def test_locations_by_hand():
    offsets = torch.tensor([3.0, -2.0]).view(1, 1, 1, 1, 1, 2)
    two = sampling_locations_from_offsets(torch.tensor([0.5, 0.25]).view(1, 1, 1, 2), offsets, [(4, 6)])
    torch.testing.assert_close(two.flatten(), torch.tensor([0.5 + 3 / 6, 0.25 - 2 / 4]))
    four = sampling_locations_from_offsets(torch.tensor([0.5, 0.25, 0.2, 0.4]).view(1, 1, 1, 4), offsets, [(4, 6)])
    torch.testing.assert_close(four.flatten(), torch.tensor([0.5 + 3 * 0.2 / 2, 0.25 - 2 * 0.4 / 2]))
