"""The door of the program: `mach` and `python -m mach`. The only upward import of the house, with `pytest_plugin`.

`bus`, `workers`, `configs` and `cli` are plain top-level names that another distribution may also use, so this
door first checks that the neighbours found are our own. Children of forkserver import this file, and a Ctrl-C may come
at any moment: nothing at its top but what Python has loaded by itself.
"""

import _signal  # type: ignore[import-not-found]  # built in; `signal` takes a millisecond
import os
import sys

NEIGHBOURS = ("bus", "workers", "configs", "cli")


def stranger() -> str | None:
    """One sentence about the first neighbour that is not found where this file is, or None if all are."""
    import importlib.util
    from pathlib import Path

    house = Path(__file__).resolve().parent.parent
    for name in NEIGHBOURS:
        spec = importlib.util.find_spec(name)
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if found is None or house not in found.parents:
            return (
                f"mach: {name!r} is found at {found or 'no place'}, but MACH's own lies in {house}; "
                "install mach-train in an environment without the other package, or run from another folder"
            )
    return None


def involved(error: BaseException | None) -> set[str]:
    """The files whose code, or whose syntax, an error and what led to it came through."""
    files: set[str] = set()
    while error is not None:
        if isinstance(error, SyntaxError):
            files.add(str(error.filename))
        trace = error.__traceback__
        while trace is not None:
            files.add(trace.tb_frame.f_code.co_filename)
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return files


def hidden(error: Exception) -> str | None:
    """One sentence about a file that took the place of a module of Python's own, after an import has failed; None if
    none did, whatever lies there.
    """
    files = involved(error)
    own = os.path.realpath(os.path.dirname(os.__file__))
    for folder in sys.path:
        if os.path.realpath(folder) == own:
            break
        for name in sorted(sys.stdlib_module_names):
            for file in (f"{name}.py", f"{name}/__init__.py"):
                place = os.path.join(os.path.abspath(folder), file)
                if place in files or getattr(sys.modules.get(name), "__file__", None) == place:
                    return (
                        f"mach: {type(error).__name__}: {error}; {place} hides Python's own {name!r}: rename it, or "
                        "run from another folder and without this one in PYTHONPATH"
                    )
    return None


def opened() -> str | None:
    """Import the command line, once the neighbours are checked; one sentence about why that cannot be, or None."""
    try:
        problem = stranger()
        if problem is None:
            import cli  # noqa: F401
    except Exception as error:  # whatever a file does that is no module of Python's
        problem = hidden(error)
        if problem is None:
            raise
    return problem


def fill() -> None:
    """A standard stream that is closed is none that is read or written, and no place for the next file to be opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: this one


def leave(code: int) -> None:
    """End with this code. Python would wait for threads that a user's own code has left, which may never end."""
    threading = sys.modules.get("threading")
    if threading is None or all(each.daemon or each is threading.main_thread() for each in threading.enumerate()):
        sys.exit(code)
    import atexit

    try:
        atexit._run_exitfuncs()  # what is to be removed at the exit is, as the forkserver's directory
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main() -> None:
    """Run the command line. A Ctrl-C before there is anything to stop, and in the midst of an import, which may hide or
    lose it, is the end at once; one after the end changes nothing.
    """
    fill()
    hears = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
    try:
        if hears:
            _signal.signal(_signal.SIGINT, lambda number, frame: os._exit(130))
        problem = opened()
        if problem is not None:
            print(problem, file=sys.stderr)
            sys.exit(2)
        from cli import main as run

        if hears:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        code = run()
    except KeyboardInterrupt:
        code = 130
    # ignored, Python itself would still end by SIGINT, in place of this code, if one ever came while it ran a string
    _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGINT})
    leave(code)


if __name__ == "__main__":
    main()
