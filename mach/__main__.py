"""The door of the program: `mach` and `python -m mach`. The only upward import of the house, with `pytest_plugin`.

`bus`, `workers`, `configs` and `cli` are plain top-level names that another distribution may also use, so this
door first checks that the neighbours found are our own. Children of forkserver import this file: nothing heavy
at its top.
"""

import importlib.util
import io
import sys
from pathlib import Path

NEIGHBOURS = ("bus", "workers", "configs", "cli")


def stranger(house: Path) -> str | None:
    """One sentence about the first neighbour that is not found in `house`, or None if all are."""
    for name in NEIGHBOURS:
        spec = importlib.util.find_spec(name)
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if found is None or house not in found.parents:
            return (
                f"mach: {name!r} is found at {found or 'no place'}, but MACH's own lies in {house}; "
                "install mach-train in an environment without the other package, or run from another folder"
            )
    return None


def main() -> None:
    """Check the neighbours, then run the command line. A Ctrl-C before there is anything to stop is a stop as well.
    What a terminal cannot show is a ? there, and no end of the command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    house = Path(__file__).resolve().parent.parent
    try:
        problem = stranger(house)
        if problem is not None:
            print(problem, file=sys.stderr)
            sys.exit(2)
        from cli import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli(prog_name="mach")


if __name__ == "__main__":
    main()
