"""The configuration: one typed tree, validated before any process starts. Knows no file format (see `load`).

Every leaf has a default, so an empty file is a valid configuration. Times that a user types are `*_ms`;
weights are plain factors; an unknown key is an error (`forbid_unknown_fields`).
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

LARGEST = (1 << 63) - 1
"""Whole numbers beyond fit neither into a run's files, nor into torch's numbers."""
LARGEST_WINDOW = 4096
"""Of an edge. A larger one that a peer speaks of is read as this."""
Positive = Annotated[int, Meta(ge=1, le=LARGEST)]
Whole = Annotated[int, Meta(ge=0, le=LARGEST)]
Size = Annotated[int, Meta(ge=1, le=1 << 20)]
"""Of one dimension of a network: with a million in each of two, a layer has four terabytes."""
Samples = Annotated[int, Meta(ge=1, le=1 << 40)]
NonNegative = Annotated[float, Meta(ge=0.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every node of the tree."""


class Data(Node, frozen=True):
    """Where the samples come from. What a source has no use for, it leaves alone."""

    source: str = "digits"
    """`digits` (inside scikit-learn), `mnist1d` (generated), `bytes` (of any text), `idx` (files like MNIST's), `npy`
    (a folder of arrays), `hf` (Hugging Face's `datasets`), or `package.module:factory`; see `mach/data`."""
    path: str | None = None
    """File or directory of the data; None looks in the usual places, where there are any."""
    split_seed: Whole = 0
    """Seed of the train/test split, and of what is generated. Not `seed`: runs of different seeds stay comparable."""
    test_share: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.2
    """Share of the samples held out where the source has no split of its own."""
    train_samples: Samples | None = None
    """How many samples to train on, for `mnist1d` and `bytes`; None: 4,000, or all there are."""
    test_samples: Samples | None = None
    """How many samples to test on, for `mnist1d` and `bytes`; None: 6,000, or all there are."""
    length: Positive = 64
    """T, bytes of one sample of `bytes`."""
    symbols: Whole = 0
    """For `npy` and `hf`: inputs are whole numbers below this, which stand for symbols; 0: they are quantities."""
    input_column: str = "inputs"
    """For `hf`."""
    label_column: str = "label"
    """For `hf`."""
    noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise added to training inputs (inputs are scaled to about unit range). A
    file's is for the file's source: 0 where `--set` names another source and no noise."""


class Model(Node, frozen=True):
    """Sizes of a component's networks."""

    family: str = "mlp"
    """`mlp`, `conv` (lines, pictures), `transformer` (symbols), or `package.module:factory` (see `mach/networks`)."""
    embedding: Size = 64
    """E, the width of an embedding, the same for every component of a run."""
    joiner: tuple[Size, ...] = (256,)
    """Hidden widths of the joiner, which maps (activation, target) to the embedding."""
    student: tuple[Size, ...] = (256,)
    """Hidden widths of a student, which maps the activation to an imitation of the child's embedding."""
    join: Literal["concat", "residual", "sum", "mean"] = "concat"
    """What a component makes of its activation and its children's targets: f([a, d]); f([a, d]) + d; or f([a, d]) with
    logits that are the sum, or the mean, of its own and of all below it (on a graph without cycles)."""
    blocks: Annotated[int, Meta(ge=1, le=1024)] = 2
    """Residual blocks of a component's section, in `conv` and `transformer`."""
    channels: Size = 32
    """Of a `conv` section."""
    heads: Size = 4
    """Of attention, in `transformer`; they divide `embedding`."""


class Loss(Node, frozen=True):
    """Weights of the terms of the loss (method.md, "One component"). A step that no child has answered, students
    standing in for those that there are, has one term against the labels, whose weight is 1.
    """

    child: NonNegative = 1.0
    """CE(head(joiner(a, d)), y): with the child's target; where the head looks down the chain, the CE there."""
    student: NonNegative = 1.0
    """CE(head(joiner(a, s)), y): with the student standing in."""
    distill: NonNegative = 1.0
    """distill(s, stopgrad(d)): the student imitates the child."""
    late: NonNegative = 1.0
    """⟨e(x_old), g_e⟩: a parent's late gradient."""
    activation: NonNegative = 1.0
    """⟨a, g_a⟩: a child's late gradient of our activation, in `stream` wiring."""
    logits: NonNegative = 0.0
    """T²·KL(softmax(z_d/T) ‖ softmax(z_s/T)): the head over the students learns from the child's logits, where those
    come along (`method.targets`), or from those of the head that looks down the chain."""
    temperature: Annotated[float, Meta(gt=0.0)] = 2.0
    """T."""
    distance: Literal["mse", "cosine", "normalised"] = "mse"
    """How far the student's imitation is from the target."""


class Method(Node, frozen=True):
    """What components send each other and when they learn. A recipe sets all of this (`mach/recipes.py`)."""

    targets: Literal["embedding", "logits", "none"] = "embedding"
    """What a child's answer says: its embedding; its logits as well; neither, and then a component has no students."""
    heads: Literal["every", "last"] = "every"
    """Who has a loss against the labels: every component, or only those without children."""
    gradient_reach: Literal["none", "hop", "full"] = "hop"
    """In `stream` wiring, the gradient of the activation that a child returns: none; that of its own loss, at once; or,
    when its own child has answered, with what that one returned: end to end."""
    guess: bool = False
    """A local model guesses the gradient of the activation at once, and learns from the true one when it comes."""
    context: bool = False
    """In `stream` wiring, x travels along with the activation, and every encoder gets both."""
    depth: Annotated[int, Meta(ge=0, le=63)] = 0
    """In `skip` wiring, how many levels below a child its answers shall come from: it asks its own children first, and
    answers when they have, or without them after a part of `bus.timeout_ms`. The answer comes later; nobody waits. In
    `stream` wiring `gradient_reach` says as much: none or one level, or all (`mach/deep.py` says why nothing between).
    Less than `bus.window`: questions that go deeper leave places to those that go less deep."""
    update_every: Positive = 1
    """The gradients of so many batches are averaged for one optimiser step."""
    targets_every: Positive = 1
    """In `stream` wiring, a child's answer says what it is asked for (`targets`) for every so manieth batch only; the
    answers to the others are receipts."""
    student_every: Positive = 1
    """Where the head looks down the chain, the students below component 0, and the readouts over them, learn on every
    so manieth batch only. Component 0's, which ships, learns on every one, as sections and the heads at the end do."""
    student_pull: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0
    """Where the head looks down the chain, how much of the gradient of component 0's student, which ships, reaches its
    section in the end: it grows from nothing to that while the learning rate falls half way (`optimiser.schedule`), and
    at a rate that never falls it is that all the time. Of the other students nothing does. With more of it that student
    is better, and the whole depth may be worse (benchmarks/depth.md)."""
    momentum_head: Literal["none", "layer", "chain"] = "none"
    """In `stream` wiring, how far a component's own loss looks down, through moving averages of what is below it, which
    the child sends along with its answers now and then. `layer`: joiner and head get what the child's first layer makes
    of the activation in place of the activation itself (MAN; see `mach/momentum.py`). `chain`: the loss is that of the
    last component's head, over all sections in between (`mach/below.py`); for chains."""
    reach: Whole = 0
    """How many sections such a `chain` has at most, so that memory and time of a component do not grow with the depth:
    what the last of them makes is read out by a joiner and a head of our own, which learn. 0: all, to the end."""
    momentum_decay: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.995
    """What is left of that average after one version of the child's."""
    momentum_every: Positive = 64
    """Versions of the child's from one time that it sends them to the next. On digits a layer is 67 KB: at 64 it is 3 %
    of what `dgl` sends."""

    def targeted(self, id: int) -> bool:
        """Whether the answer to this batch says what `targets` asks for."""
        return self.targets != "none" and id % self.targets_every == 0

    def studied(self, id: int) -> bool:
        """Whether students below component 0 learn from this batch."""
        return id % self.student_every == 0


class Staleness(Node, frozen=True):
    """What is done about gradients that come late (formulas in `mach/staleness.py`)."""

    late: Literal["recompute", "stash"] = "recompute"
    """`recompute`: the old input goes through today's weights again. `stash`: the graph of the old answer is kept, with
    a copy of the weights of its time; the gradient is exact for those."""
    policies: tuple[Literal["bound", "accumulate", "discount", "shrink", "predict", "compensate", "clip"], ...] = ()
    """Which of the following are at work, in this order."""
    max_versions: Whole = 8
    """`bound`: gradients that are later than so many versions are not used."""
    accumulate: Positive = 4
    """So many late gradients are averaged before they are used."""
    discount: Literal["power", "anneal"] = "power"
    """A gradient of lag τ is scaled by 1/max(1,τ)^power, or at version t by τ^−(1−min(t/horizon,1))."""
    power: NonNegative = 1.0
    horizon: Positive = 1000
    """Versions after which `anneal` scales no more."""
    shrink: Share = 0.5
    """Factor for every hop that a gradient comes."""
    compensate: NonNegative = 0.04
    """λ of g + λ·g⊙g⊙(w_now − w_then). By recompute both weights are today's, and it changes nothing."""
    clip: NonNegative = 1.0
    """A late gradient's norm over the own loss's, at most."""


class Optimiser(Node, frozen=True):
    """One optimiser per component."""

    name: Literal["adamw", "sgd", "nadam", "muon"] = "adamw"
    """`nadam` with a first moment of 0.99, for late gradients; `muon` for the matrices inside the network with `adamw`
    for the rest, at the same `lr` (torch 2.9 or newer)."""
    lr: Annotated[float, Meta(gt=0.0)] = 1e-3
    weight_decay: NonNegative = 1e-2
    momentum: Share | None = None
    """For `sgd` (0.9 if none is set) and `muon` (0.95). What makes up for noise makes lag worse: 0.8 or less where
    weights or gradients come late (measured: benchmarks/depth.md)."""
    separate_late: bool = False
    """Late gradients, of parents and of children, keep moments apart from the own loss's: a second optimiser of the
    same kind steps along them, after the first and without decay of the weights."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the rate falls from `lr` to a hundredth of it over `train.steps` (constant when a run is timed)."""
    warmup_steps: Whole = 0
    """First the rate rises evenly to `lr` for so many steps."""


class Probes(Node, frozen=True):
    """What is measured besides ages (`mach/probes.py`). None changes a weight; those that cost a pass are off."""

    every_steps: Positive = 100
    """Versions from one time to the next, of those that cost a pass."""
    weight_gap: bool = False
    """RMS of w_t − w_{t−τ} when a gradient is τ versions late. Holds one copy of the weights, as `fresh` does."""
    fresh: bool = False
    """A late gradient against what it would be at today's weights: cosine, and ratio of the norms."""
    agreement: bool = False
    """Cosine of a parent's, and of a child's, late gradient with the own loss's."""
    cka: bool = False
    """Linear CKA of a child's embedding and ours."""
    r2: bool = False
    """R² of a student."""
    reliance: bool = False
    """What the loss rises by with a child zeroed, and with a child shuffled across the batch, in nats."""
    salience: bool = False
    """What a child is worth to us, by four measures (`mach/salience.py`)."""
    copies: bool = True
    """Versions that a child has moved on since it showed the weights that our head is made of
    (`method.momentum_head`)."""
    bytes: bool = True
    """Bytes sent to every neighbour over samples trained on."""
    idle: bool = True
    """Share of the time spent with nothing to train on."""


class Train(Node, frozen=True):
    """How long, and on how much at once."""

    steps: Positive = 2000
    """Optimiser steps of every component."""
    minutes: Annotated[float, Meta(gt=0.0)] | None = None
    """Train for this long instead of `steps`."""
    batch_size: Positive = 128


class Evaluate(Node, frozen=True):
    """Accuracy on the test set: with the student, and with the true child asked over the bus."""

    every_steps: Positive = 500
    average: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    """Examine an exponential moving average of the weights with this decay, for example 0.999, and leave that as the
    run's weights when it ends; 0: the weights."""


class Checkpoint(Node, frozen=True):
    """When a component writes down what a later life can go on from. In lock-step only steps count, 100 by default."""

    every_s: Annotated[float, Meta(gt=0.0)] = 5.0
    """Seconds from one to the next."""
    every_steps: Positive | None = None
    """After every so many steps, too."""
    keep: Positive = 2
    """The newest that are kept; lock-step keeps so many more that all components have as many alike."""


CodecName = Literal["none", "bf16", "fp16", "int8"]


class Codecs(Node, frozen=True):
    """Precision on the wire, per message kind; the errors are listed in `bus/tensors.py`."""

    activation: CodecName = "none"
    target: CodecName = "none"
    gradient: CodecName = "none"


class Bus(Node, frozen=True):
    """How messages travel."""

    transport: Literal["ipc", "tcp"] = "ipc"
    """`ipc`: sockets in a private directory. `tcp`: at `host`, on ports that the system chooses."""
    host: str = "127.0.0.1"
    """Numeric address of this machine that `tcp` binds. Any but loopback needs `keys`. With `hosts`, whose addresses
    are bound, only 0.0.0.0, all that this machine has, is another choice."""
    keys: str | None = None
    """Directory made by `mach keys new`, for `tcp`: messages are encrypted, and only who holds the keys gets in."""
    hosts: tuple[str, ...] = ()
    """For a run over several machines, by `tcp` and with `keys`: the numeric address of each component's. Every machine
    has the same launch, of one name; it starts those components whose machine it is."""
    here: str | None = None
    """Which of `hosts` this machine is; None: the one that it has."""
    port: Annotated[int, Meta(ge=1024, le=65535)] = 27700
    """With `hosts`, component k listens on port `port` + k of its machine."""
    window: Annotated[int, Meta(ge=1, le=LARGEST_WINDOW)] = 2
    """W: the most activations a component may have unanswered on one edge."""
    timeout_ms: Positive = 2000
    """An activation unanswered for this long gives its place in the window back."""
    hello_ms: Positive = 200
    """How often a parent knocks at a child that does not answer."""
    max_message_mb: Annotated[int, Meta(ge=1, le=1 << 20)] = 256
    """Larger messages are refused unread."""
    lane: Literal["auto", "inline", "shared"] = "auto"
    """How messages travel between processes of one host: `shared`, through shared memory (on x86-64; elsewhere
    as `inline`); `inline`, through the socket; `auto`, as `shared` over ipc and as `inline` over tcp, which on one host
    is chosen for what lies on the way."""
    codec: Codecs = Codecs()
    activation: Literal["inputs", "indices"] = "inputs"
    """What an activation holds of x, in `skip` wiring or as context. `indices`: which samples of the data set they are,
    since both sides hold it."""


class Report(Node, frozen=True):
    """What a component tells the supervisor and writes to disk."""

    every_ms: Annotated[int, Meta(ge=50, le=1000)] = 500
    """How often the supervisor hears of its progress."""
    thin: Share = 0.001
    """How many of those reports are written down, to `metrics` and for TensorBoard: one as its process has grown older
    by this share. So all of the first eight minutes are (`every_ms` ÷ `thin`), and 2,300 for each time that the run
    then lasts ten times as long; with 0 all, which is 0.6 GB a day and component: `mach compare` reads its curves there
    and takes 0."""


class Supervise(Node, frozen=True):
    """When a component counts as stalled, and how often one that failed is started anew (`workers/policy.py`)."""

    stalled_ms: Positive = 10_000
    """No progress for this long, or for 5 times the p99 of its step time if that is longer: its stacks are written
    into its log, it is killed and restarted."""
    starting_ms: Positive = 60_000
    """The same before its first report: it loads data and builds networks."""
    grace_ms: Whole = 5000
    """From an order to stop, save and leave to SIGKILL; who still writes its checkpoint is given more, from its end."""
    max_restarts: Whole = 100
    """Restarts of one component in all. Before its first step it may fail once, and after three restarts in a row
    without a new checkpoint it is given up in any case. A stub saves none, so each of its restarts is such a one."""


class Stub(Node, frozen=True):
    """A scripted neighbour without a model, in place of a component (`workers/stub.py`): asks and answers with noise in
    the shapes of wiring and method. In stream wiring, whom only stubs feed makes `train.steps` of its own.
    """

    latency_ms: NonNegative = 0.0
    """Time from an activation's arrival to its answer."""
    jitter_ms: NonNegative = 0.0
    """Uniform extra latency."""
    rate: NonNegative = 0.0
    """As a parent: activations a second to its child; 0 asks as fast as the window allows."""
    drop: Share = 0.0
    """Share of messages it never sends. An activation among them keeps its place in the window until
    `bus.timeout_ms`."""
    duplicate: Share = 0.0
    """Share of messages it sends twice."""
    reorder: Share = 0.0
    """Share of messages it holds back until after the next one, 0.2 s at most. Who gets one drops it, as `reordered`;
    an activation among them, or the answer to one, keeps its place in the window until `bus.timeout_ms`. So where
    windows are small, a few of them silence an edge for most of the time."""
    corrupt: Share = 0.0
    """Share of messages with flipped bytes."""
    nonfinite: Share = 0.0
    """Share of messages whose tensor holds a NaN or an infinity."""
    silent_at: Positive | None = None
    """Goes silent after this many messages received, and stays connected. Whom it fed in stream wiring then
    ends; where gradients go end to end or are guessed, so do those above."""
    crash_at: Positive | None = None
    """Dies with SIGKILL at this many messages received, in each of its lives."""


class ComponentOverride(Node, frozen=True):
    """What is different about one component."""

    stub: Stub | None = None


class Config(Node, frozen=True):
    """A whole run."""

    recipe: str = "mach"
    wiring: Literal["skip", "stream"] = "skip"
    """`skip`: every component draws batches of its own and sends x. `stream`: component 0 draws, and everybody sends
    its encoder's activation; labels travel along."""
    graph: Literal["chain", "ring", "kgraph"] | tuple[tuple[int, ...], ...] = "ring"
    """Who is whose child: `chain` i → i+1, `ring` a chain whose last asks the first, `kgraph` everybody
    everybody's, or an adjacency list [[children of 0], [children of 1], …]."""
    n_components: Annotated[int, Meta(ge=1, le=1 << 16)] = 4
    seed: Whole = 0
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    """CPU threads of one component."""
    data: Data = Data()
    model: Model = Model()
    method: Method = Method()
    loss: Loss = Loss()
    staleness: Staleness = Staleness()
    optimiser: Optimiser = Optimiser()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    probes: Probes = Probes()
    checkpoint: Checkpoint = Checkpoint()
    bus: Bus = Bus()
    report: Report = Report()
    supervise: Supervise = Supervise()
    components: dict[int, ComponentOverride] = {}
    """Overrides by component number, e.g. `components.1.stub.latency_ms`."""
