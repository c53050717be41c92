"""Muon on convolutions is torch's Muon on the matrices that their kernels are."""

from __future__ import annotations

import pytest
import torch
from conv_muon import ConvMuon
from torch import nn


def weights(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def test_a_kernel_is_updated_as_its_matrix() -> None:
    (kernel,), (matrix,) = weights((6, 4, 3, 3)), weights((6, 36))
    with torch.no_grad():
        matrix.copy_(kernel.flatten(1))
    ours = ConvMuon([kernel], lr=0.1, adjust_lr_fn="match_rms_adamw")
    theirs = torch.optim.Muon([matrix], lr=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        gradient = torch.randn(6, 36, generator=torch.Generator().manual_seed(step))
        kernel.grad, matrix.grad = gradient.view_as(kernel).clone(), gradient.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(kernel.flatten(1), matrix, rtol=0, atol=0)


def test_earlier_taps_of_a_causal_kernel_stay() -> None:
    kernel, other = weights((5, 4, 3, 3, 3), (8, 4, 3, 1, 1))
    with torch.no_grad():
        kernel[:, :, :-1] = 0
    before, whole = kernel.detach().clone(), other.detach().clone()
    optimizer = ConvMuon([kernel, other], lr=0.1)
    (kernel.square().sum() + other.square().sum()).backward()
    optimizer.step()
    assert torch.equal(kernel[:, :, :-1], torch.zeros_like(kernel[:, :, :-1]))
    assert (kernel[:, :, -1] != before[:, :, -1]).all()
    assert (other != whole).all()  # a kernel in time alone is trained in all its taps


def test_weights_that_were_read_since_count() -> None:
    (kernel,) = weights((6, 4, 3, 3))
    optimizer = ConvMuon([kernel], lr=0.1)
    with torch.no_grad():
        kernel.mul_(2.0)
    fresh = nn.Parameter(kernel.detach().clone())
    expected = ConvMuon([fresh], lr=0.1)
    for parameter, chosen in ((kernel, optimizer), (fresh, expected)):
        parameter.grad = torch.ones_like(parameter)
        chosen.step()
    torch.testing.assert_close(kernel, fresh, rtol=0, atol=0)


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="expected no closure"):
        ConvMuon(weights((6, 4, 3, 3))).step(lambda: 0.0)
