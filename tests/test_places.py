"""Steps taken out of a padded batch and placed in it, and what that does to errors."""

import pytest
import torch

from bptt.kernels import choice, native
from bptt.places import Places, _is_lent_to

WIDTH = 22_000  # large enough for memory that is used again
LENGTHS = [2, 5, 1, 4]
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def places(time=6, lengths=LENGTHS, repeat=1):
    """Sorted rows, step after step, in the caller's (time x batch)."""
    lengths = lengths * repeat
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    where = [
        t * len(lengths) + row for t in range(time) for row in order if t < lengths[row]
    ]
    return Places(torch.tensor(where), time * len(lengths))


def matrix(p, dtype):
    """`take` as a matrix: its derivative is the transpose, and so is `place`."""
    return torch.eye(p.size, dtype=dtype)[p.where]


def arrays(p, dtype):
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(p.size, WIDTH, dtype=dtype, generator=generator)
    packed = torch.randn(len(p.where), WIDTH, dtype=dtype, generator=generator)
    return flat, packed


@DTYPE
def test_what_is_taken_and_placed(dtype):
    p = places()
    flat, packed = arrays(p, dtype)
    for t in (flat, packed):
        lent = dtype == torch.float32 and choice.active() != choice.TORCH
        assert _is_lent_to(t) == lent
    assert torch.equal(p.take(flat), matrix(p, dtype) @ flat)
    assert torch.equal(p.place(packed), matrix(p, dtype).T @ packed)
    assert torch.equal(p.take(flat[:, 0] > 0), flat[p.where, 0] > 0)
    ids = torch.arange(p.size)
    assert torch.equal(p.take(ids), p.where)


@DTYPE
def test_gradients_and_their_gradients(dtype):
    p = places()
    flat, packed = (a.requires_grad_() for a in arrays(p, dtype))
    weight = matrix(p, dtype)

    def found(take, place):
        cubes = (take(flat**3) * packed).pow(2).sum() + place(packed**3).pow(2).sum()
        first = torch.autograd.grad(cubes, (flat, packed), create_graph=True)
        score = sum((g * g.detach().cos()).sum() for g in first)
        return (*first, *torch.autograd.grad(score, (flat, packed)))

    expected = found(lambda f: weight @ f, lambda q: weight.T @ q)
    for ours, theirs in zip(found(p.take, p.place), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@DTYPE
@pytest.mark.parametrize("batched", ["is_grads_batched", "vmap"])
def test_many_errors_at_once(dtype, batched):
    p = places()
    flat, packed = (a.requires_grad_() for a in arrays(p, dtype))
    for y, x, back in (
        (p.take(flat), flat, matrix(p, dtype).T),
        (p.place(packed), packed, matrix(p, dtype)),
    ):
        errors = torch.randn(2, *y.shape, dtype=dtype)

        def one(error, y=y, x=x):
            return torch.autograd.grad(y, x, error, retain_graph=True)[0]

        if batched == "vmap":
            found = torch.func.vmap(one)(errors)
        else:
            found = torch.autograd.grad(
                y, x, errors, is_grads_batched=True, retain_graph=True
            )[0]
        torch.testing.assert_close(found, back @ errors)


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # forward mode
def test_transforms_of_the_whole():
    p = places()
    flat, packed = arrays(p, torch.float32)
    weight = matrix(p, torch.float32)
    for function, x, linear in ((p.take, flat, weight), (p.place, packed, weight.T)):
        both = torch.stack((x, 2 * x))
        torch.testing.assert_close(torch.func.vmap(function)(both), linear @ both)
        _, tangent = torch.func.jvp(function, (x,), (x.cos(),))
        torch.testing.assert_close(tangent, linear @ x.cos())
        gradient = torch.func.grad(lambda x, f=function: f(x).pow(2).sum())(x)
        torch.testing.assert_close(gradient, 2 * linear.T @ (linear @ x))


def test_errors_of_any_layout():
    p = places()
    _, packed = (a.requires_grad_() for a in arrays(p, torch.float32))
    y = p.place(packed)
    (d,) = torch.autograd.grad(y.sum(), packed, retain_graph=True)
    assert torch.equal(d, torch.ones_like(packed))
    error = torch.randn(WIDTH, p.size).T
    (d,) = torch.autograd.grad(y, packed, error)
    assert torch.equal(d, error[p.where])


@pytest.mark.skipif(choice.active() == choice.TORCH, reason="no core, no such memory")
def test_the_padding_is_zero_in_memory_that_was_used():
    p = places(time=200, lengths=[1, 200, 77], repeat=16)
    width = 64  # of what is large enough to be used again
    packed = torch.randn(len(p.where), width)
    assert _is_lent_to(packed)
    absent = torch.ones(p.size, dtype=torch.bool).index_fill(0, p.where, False)
    garbage = torch.full((p.size, width), float("nan"))
    for _ in range(3):
        used = [native.select(garbage, p.source) for _ in range(4)]
        del used
        placed = p.place(packed)
        assert torch.equal(placed[p.where], packed)
        assert placed[absent].count_nonzero() == 0
