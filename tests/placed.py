"""Components on a device, small enough for a test: whole runs in virtual time, and one alone that saves and goes on."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from configs.load import load
from configs.tree import Config
from mach.checkpoint import load_state, save_state
from mach.data import load as load_data
from mach.data.dataset import Dataset
from mach.recipes import RECIPES
from mach.shelf import Shelf
from mach.state import Copies
from workers.simulate import Simulation
from workers.stage import Stage
from workers.timing import Timing
from workers.turns import Trainer

TRAINED, TESTED, BATCH, STEPS = 128, 16, 16, 4
SMALL = ("model.embedding=16", "model.joiner=[16]", "model.student=[16]", "model.channels=8", "model.heads=2")
SMALL += ("model.blocks=1", "data.noise=0", f"train.batch_size={BATCH}", f"train.steps={STEPS}")
SMALL += (f"evaluate.every_steps={STEPS - 1}", "bus.window=2")


def small(data: object) -> Dataset:
    """The first samples of a data set, the first places of a sequence."""
    whole = load_data(data)  # type: ignore[arg-type]
    cut = slice(0, 12) if whole.symbols else slice(None)
    x, y = whole.train_inputs[:TRAINED, cut], whole.train_labels[:TRAINED]
    test_x, test_y = whole.test_inputs[:TESTED, cut], whole.test_labels[:TESTED]
    if y.dim() == 2:
        y, test_y = y[:, cut], test_y[:, cut]
    return replace(whole, train_inputs=x, train_labels=y, test_inputs=test_x, test_labels=test_y)


def config(source: str = "digits", *settings: str, components: int = 3) -> Config:
    return load(source, (f"n_components={components}", *SMALL, *settings), RECIPES)


def simulated(of: Config, directory: Path, device: torch.device) -> Simulation:
    """A run that is over."""
    n = of.n_components
    simulation = Simulation(of, Timing(0.002, 0.001, ((0.005,),) * n), directory, device=device)
    simulation.run()
    return simulation


def weights(simulation: Simulation) -> dict[str, Tensor]:
    """All of them, on the CPU."""
    return {
        f"{name}.{key}": each.cpu()
        for name, trainer in simulation.trainers.items()
        for key, each in trainer.learner.component.state_dict().items()
    }


def alone(of: Config, directory: Path, device: torch.device) -> Trainer:
    """Of the only component."""
    stage = Stage(of, Timing(0.0, 0.0, ((0.005,),)), directory, device=device)
    (process,) = stage.plan.processes
    trainer = stage.trainer(process, stage.mailbox(process))
    trainer.spend = lambda: None  # type: ignore[attr-defined]  # nobody gives it turns
    return trainer


def saved(trainer: Trainer, folder: Path) -> None:
    """Its state, on disk, as the keeper writes it."""
    copies = Copies()
    state = copies.take(trainer.state())
    copies.wait()
    save_state(Shelf(folder), state, component="c0", version=1, incarnation=1, config="", keep=1)


def gone_on(trainer: Trainer, folder: Path) -> Trainer:
    """From there."""
    trainer.restore(load_state(Shelf(folder), 1, "c0")[1])
    return trainer
