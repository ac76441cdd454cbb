"""The moving average of the weights: what it is of numbers that have no mean."""

import math

import torch

from built import build
from configs.tree import Loss, Model
from mach.learner import Learner
from mach.messages import Batch


def test_a_moving_average_of_a_buffer_with_infinities_has_them_where_they_are_now() -> None:
    net = build(Model(embedding=6), (5,), 3, ())
    net.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    net.register_buffer("least", torch.full((2,), math.inf))  # of nothing yet
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    device = torch.device("cpu")
    learner = Learner(net, sgd, Loss(), window=4, device=device, sample_shape=(5,), average=0.75)
    least = torch.tensor([2.0, 4.0])
    for id in range(5):
        if id > 2:
            net.least.copy_(least if id == 3 else least / 2)
        learner.step(Batch(id, torch.ones(4, 5), torch.arange(4) % 3), 0.0)
    found = dict(learner.examined.named_buffers())
    assert torch.equal(found["mask"], net.mask)
    torch.testing.assert_close(found["least"], 0.75 * least + 0.25 * least / 2)
