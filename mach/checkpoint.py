"""Weights of a component on disk: safetensors, so nothing is ever unpickled. Written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.errors import DataError
from mach.component import Component


def save_weights(component: Component, path: Path, about: Mapping[str, str]) -> None:
    """Write every parameter, named as in the module, with `about` as the file's metadata.

    Raises:
        OSError: the disk is full or the directory cannot be written; no partial file is left.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in component.state_dict().items()}
    try:
        save_file(weights, draft, metadata=dict(about))
        os.replace(draft, path)
    except SafetensorError as error:
        raise OSError(f"{path}: weights cannot be written ({error}); make room or choose another --runs") from error
    finally:
        draft.unlink(missing_ok=True)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, for `Component.load_state_dict`.

    Raises:
        DataError: a file that is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: holds no weights ({error}); train the run to its end first") from error
