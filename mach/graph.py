"""Who is whose child. Knows names and numbers only, no process and no socket.

Because an answer never recurses (law 2), cycles are harmless: any adjacency list is legal.
"""

from configs.errors import ConfigError

Adjacency = tuple[tuple[int, ...], ...]
"""Children of every component, by number."""


def name_of(index: int) -> str:
    """The name of component `index`, the same in commands, messages, files and tables."""
    return f"c{index}"


def children_of(graph: str | Adjacency, n_components: int) -> Adjacency:
    """Children of every component.

    `chain`: i → i+1. `ring`: a chain whose last component asks the first. `kgraph`: everybody is
    everybody's child. Nobody is its own child.

    Raises:
        ConfigError: an adjacency list of the wrong length, or one that names a component that is not there.
    """
    every = range(n_components)
    match graph:
        case "chain":
            return tuple((i + 1,) if i + 1 < n_components else () for i in every)
        case "ring":
            return tuple(((i + 1) % n_components,) if n_components > 1 else () for i in every)
        case "kgraph":
            return tuple(tuple(j for j in every if j != i) for i in every)
        case tuple():
            return _checked(graph, n_components)
        case _:
            raise ConfigError(f"graph: {graph!r} is none of chain, ring, kgraph or an adjacency list")


def parents_of(children: Adjacency) -> Adjacency:
    """Parents of every component: the same edges, seen from the other end."""
    parents: list[list[int]] = [[] for _ in children]
    for i, own in enumerate(children):
        for j in own:
            parents[j].append(i)
    return tuple(map(tuple, parents))


def path_to(index: int, children: Adjacency) -> tuple[int, ...]:
    """The components that an activation passes on its way from component 0 to `index`, without `index`: stream wiring.

    Raises:
        ConfigError: the graph is no tree from component 0, so that some component has none or several such ways.
    """
    parents = parents_of(children)
    path = [index]
    while path[-1] != 0:
        above = parents[path[-1]]
        if len(above) != 1 or above[0] in path:
            raise ConfigError(
                f"graph: in stream wiring every component but 0 has one parent, on a way from 0, and component "
                f"{path[-1]} has {len(above)}; choose chain, or wiring: skip"
            )
        path.append(above[0])
    if parents[0]:
        raise ConfigError("graph: in stream wiring component 0 draws the data and has no parent; choose chain")
    return tuple(reversed(path[1:]))


def sizes_of(children: Adjacency) -> tuple[int, ...]:
    """How many components there are from each down, itself with them; one for every way that leads to it.

    Raises:
        ConfigError: a cycle, which has no end to count from.
    """
    sizes: dict[int, int] = {}
    while len(sizes) < len(children):
        ready = [i for i, own in enumerate(children) if i not in sizes and sizes.keys() >= set(own)]
        if not ready:
            raise ConfigError(
                "graph: model.join sum and mean run up from the deepest component, and this graph has a cycle; "
                "choose chain, or another join"
            )
        sizes |= {i: 1 + sum(sizes[j] for j in children[i]) for i in ready}
    return tuple(sizes[i] for i in range(len(children)))


def _checked(graph: Adjacency, n_components: int) -> Adjacency:
    if len(graph) != n_components:
        raise ConfigError(
            f"graph: the adjacency list has {len(graph)} rows for {n_components} components; "
            "give one row of children for each"
        )
    for i, own in enumerate(graph):
        for j in own:
            if j == i or not 0 <= j < n_components or own.count(j) > 1:
                raise ConfigError(
                    f"graph: row {i} names {j}; children are other components, 0 to {n_components - 1}, once each"
                )
    return graph
