"""A network that takes its time: `--set model.family=paced:mlp`, with $PACE_S seconds of sleep in a training step.

A run is then as slow as one of bigger networks, without their CPU time, so that a minute of faults falls into a run of
few steps, on a slow machine as on a fast one.
"""

import os
import time

import torch
from torch import nn

from mach.component import Component
from mach.networks.mlp import mlp as plain
from mach.networks.place import Place


def mlp(place: Place) -> Component:
    """The networks of `mlp`; the head, which every step trains once or twice, sleeps half of $PACE_S each time."""
    component = plain(place)
    pause_s = float(os.environ["PACE_S"]) / 2

    def pause(head: nn.Module, inputs: object) -> None:
        if torch.is_grad_enabled():
            time.sleep(pause_s)

    component.head.register_forward_pre_hook(pause)
    return component
