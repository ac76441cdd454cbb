"""Families by name: the built-in ones, a user's own, and what is said when there is none."""

from pathlib import Path

import pytest
from torch import nn

from built import build
from configs.errors import ConfigError
from configs.tree import Data, Model
from mach.component import Component
from mach.data import Dataset
from mach.data import load as load_data
from mach.networks.place import Place
from mach.registry import find, made_by


def own_family(place: Place) -> Component:
    e = place.model.embedding
    return Component(
        nn.Flatten(),
        nn.Linear(place.features + e * len(place.children), e),
        nn.Linear(e, place.classes),
        {child: nn.Linear(place.features, e) for child in place.children},
    )


def no_family(*_: object) -> str:
    return "a string"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own, as on PYTHONPATH."""
    import sys
    import types

    module = types.ModuleType("users_own")
    module.__dict__.update(own_family=own_family, no_family=no_family, number=3)
    monkeypatch.setitem(sys.modules, "users_own", module)
    return "users_own"


def test_a_users_own_factory_makes_the_component(here: str) -> None:
    component = build(Model(family=f"{here}:own_family", embedding=4), (2, 3), 5, ("c1", "c2"))
    assert component.children_names == ("c1", "c2")
    assert isinstance(component.joiner, nn.Linear)
    assert component.joiner.in_features == 6 + 8


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mpl", "did you mean 'mlp'"),
        ("users_own:missing", r"module users_own \(no file\) has no 'missing'$"),
        ("users_own:own_famly", "has no 'own_famly'; did you mean 'own_family'"),
        ("no_such_module_anywhere:make", "is the module on PYTHONPATH"),
        ("users_own:number", "is a int, not a function"),
        (":own_family", "':own_family' names no module before the colon; give package"),
        ("users_own:", "'users_own:' names no function behind the colon; give package"),
        ("users_own:no_family", "made a str, not a mach Component"),
    ],
)
def test_every_wrong_family_is_one_sentence_that_names_the_key(here: str, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        build(Model(family=name), (4,), 2, ())
    assert str(error.value).startswith("model.family: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = = 3", r"SyntaxError: invalid syntax \(mach_tests_broken.py, line 1\)$"),
        ("def half():\n    return 1 / 0\n\nhalf()", r"ZeroDivisionError: division by zero \(.*, line 2, in half\)$"),
        (
            "import nowhere_at_all",
            r"ModuleNotFoundError: No module named 'nowhere_at_all' \(.*, line 1, in <module>\)$",
        ),
        ("number = int('seven')", r"ValueError: .*'seven' \(.*, line 1, in <module>\)$"),
        ("import sys\nsys.exit()", r"SystemExit \(.*, line 2, in <module>\)$"),
    ],
)
def test_a_module_that_breaks_when_imported_is_one_sentence_that_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    (tmp_path / "mach_tests_broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^model.family: 'mach_tests_broken:x' cannot be imported: " + said):
        build(Model(family="mach_tests_broken:x"), (4,), 2, ())


def test_a_factory_of_the_users_that_leaves_does_not_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mach_tests_leaves.py").write_text("import sys\n\ndef leave(place):\n    sys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"leave' raised SystemExit: 0 \(.*, line 4, in leave\)$"):
        build(Model(family="mach_tests_leaves:leave"), (4,), 2, ())


def test_a_mistake_in_a_factory_of_ours_is_not_taken_for_the_users() -> None:
    with pytest.raises(ZeroDivisionError):
        made_by("key", "own", {"own": lambda _: 1 / 0}, None)


def test_a_users_own_data_source_joins_the_same_registry(here: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.source: 'users_own:no_family' made a str, not a mach Dataset"):
        load_data(Data(source="users_own:no_family"))
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_data(Data(source="digit"))
    assert isinstance(load_data(Data(source="mach.data.digits:digits")), Dataset)


def test_find_returns_the_known_factory_itself() -> None:
    assert find("key", "own", {"own": own_family}) is own_family
