"""Lock-step mach as one plain loop: no bus, no learner, no process. What the house must equal bit for bit.

At step t every component draws its batch t. Every child answers its parents' batches t with its weights of
version t, its students standing in for its own children. Then every component makes one step on

    L = w_child · CE(head(joiner(a, d)), y) + w_student · CE(head(joiner(a, s)), y) + w_distill · distill(s, d)
        + w_logits · T²·KL(softmax(z_d/T) ‖ softmax(z_s/T))     of takd: z_d the child's logits, z_s ours over students
        + w_late · Σ over parents ⟨e(x), g⟩     x, g: the parent's batch t−1 and its ∂L/∂d of that step

and keeps ∂L/∂d of every child's target d for the child's step t+1. Without children L is the student's term alone,
with weight 1. Initial weights, data order, optimiser and schedule are the house's own, so that both start equal.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from configs.tree import Config
from mach.assemble import component_of
from mach.component import Component
from mach.data import Batches, load
from mach.graph import children_of, name_of, parents_of
from mach.messages import Batch
from mach.optimisers import optimiser_of, schedule_of
from mach.seeds import seed_of


def train(config: Config, steps: int) -> list[dict[str, Tensor]]:
    """State of every component after `steps` steps each."""
    dataset = load(config.data)
    everybody = range(config.n_components)
    children = children_of(config.graph, config.n_components)
    parents = parents_of(children)
    networks = [component_of(config, i, [name_of(j) for j in children[i]], dataset) for i in everybody]
    optimisers = [optimiser_of(config.optimiser, network) for network in networks]
    orders = [
        Batches(dataset, config.train.batch_size, seed=seed_of(config.seed, i, "data"), noise=config.data.noise)
        for i in everybody
    ]
    rate = schedule_of(config)
    paid: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # (parent, child) → (x, g) of the step before
    for t in range(steps):
        batches = [next(order) for order in orders]
        with torch.no_grad():
            answers = {(i, j): alone(networks[j], batches[i].inputs) for i in everybody for j in children[i]}
            logits = {edge: networks[edge[1]].head(e) for edge, e in answers.items()}
        owed: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        for i in everybody:
            targets = {name_of(j): answers[i, j].clone().requires_grad_() for j in children[i]}
            total = own_loss(config, networks[i], batches[i], targets)
            if config.loss.logits > 0:
                for j in children[i]:
                    total = total + config.loss.logits * taught(config, networks[i], batches[i], logits[i, j])
            late = [paid[k, i] for k in parents[i] if (k, i) in paid]
            if late and config.loss.late > 0:
                pulled = torch.stack([(alone(networks[i], x) * g).sum() for x, g in late]).sum()
                total = total + config.loss.late * pulled
            descend(optimisers[i], total, None if rate is None else rate(t))
            for j in children[i]:
                gradient = targets[name_of(j)].grad
                assert gradient is not None
                owed[i, j] = (batches[i].inputs, gradient)
        paid = owed
    return [network.state_dict() for network in networks]


def alone(network: Component, x: Tensor) -> Tensor:
    """e(x) with students in place of all children."""
    a = network.encoder(x).flatten(1)
    return network.joiner(torch.cat([a, *(student(a) for student in network.students.values())], dim=1))


def own_loss(config: Config, network: Component, batch: Batch, targets: dict[str, Tensor]) -> Tensor:
    """L without the late gradients."""
    a = network.encoder(batch.inputs).flatten(1)
    s = {name: student(a) for name, student in network.students.items()}
    with_students = F.cross_entropy(network.head(network.joiner(torch.cat([a, *s.values()], dim=1))), batch.labels)
    if not targets:
        return with_students
    d = [targets[name] for name in s]
    with_targets = F.cross_entropy(network.head(network.joiner(torch.cat([a, *d], dim=1))), batch.labels)
    distance = torch.stack([distill(config, s[name], targets[name].detach()) for name in s]).sum()
    weight = config.loss
    return weight.child * with_targets + weight.student * with_students + weight.distill * distance


def taught(config: Config, network: Component, batch: Batch, z_d: Tensor) -> Tensor:
    """The logits over the students against the child's, both at temperature T (arXiv 1902.03393)."""
    t = config.loss.temperature
    p_d = (z_d / t).softmax(dim=1)
    log_s = (network.head(alone(network, batch.inputs)) / t).log_softmax(dim=1)
    return t**2 * (p_d * (p_d.log() - log_s)).sum(dim=1).mean()


def distill(config: Config, s: Tensor, d: Tensor) -> Tensor:
    """The distance that the configuration names."""
    match config.loss.distance:
        case "mse":
            return F.mse_loss(s, d)
        case "cosine":
            return (1.0 - F.cosine_similarity(s, d, dim=1)).mean()
        case "normalised":
            return (F.normalize(s, dim=1) - F.normalize(d, dim=1)).square().sum(dim=1).mean()


def descend(optimiser: torch.optim.Optimizer, total: Tensor, rate: float | None) -> None:
    """One optimiser step."""
    if rate is not None:
        for group in optimiser.param_groups:
            group["lr"] = rate
    optimiser.zero_grad()
    total.backward()
    optimiser.step()
