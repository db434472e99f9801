"""Dropout masks as bits: the numbers that torch.nn's dropout draws."""

import pytest
import torch

from bptt.masks import PackedMask


@pytest.mark.parametrize("width", [1, 7, 8, 9, 24])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_masks_are_those_that_are_drawn(width, keep, dtype):
    like = torch.empty(0, dtype=dtype)
    torch.manual_seed(0)
    packed = PackedMask.drawn((50, 3, width), keep, like)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    plain = like.new_empty(50, 3, width)
    plain = plain.bernoulli_(keep).div_(keep) if keep else plain.zero_()
    assert torch.equal(packed.numbers(), plain)
    assert torch.equal(packed.numbers(slice(5, 9)), plain[5:9])
    if keep:
        assert torch.equal(torch.get_rng_state(), state)
    assert packed.bits.numel() == 50 * 3 * -(-width // 8)
