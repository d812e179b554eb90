"""Read the tensors of a checkpoint without running what it carries.

`safetensors` and what `torch.load(weights_only=True)` takes are read as they are. An old checkpoint pickles objects of
the program that wrote it; the guarded reader makes those inert, takes the tensors, and refuses any other name.
"""

import pickle
import types
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dmlm.errors import UserError

PLAIN = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch", "device"),
    ("builtins", "set"),
    ("__builtin__", "set"),
}


class Inert:
    """What stands for an object whose class is not loaded: it keeps its state and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return Inert()

    def __hash__(self) -> int:
        return id(self)


def read(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a .safetensors file, or of a checkpoint that holds tensors only.

    Raises:
        UserError: truncated, not such a file, or a pickle that holds more.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return _tensors(torch.load(path, map_location="cpu", weights_only=True), path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors ({str(error).splitlines()[0]}); it is not loaded. Convert it with dmlm fetch."
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise _damaged(path, error) from None


def read_guarded(path: Path, inert: Sequence[str]) -> Any:
    """What an old checkpoint holds, its tensors intact and objects of the packages `inert` without effect.

    Raises:
        UserError: it names anything else, such as a function of `os`; or it is truncated.
    """
    module = types.ModuleType("guarded_pickle")

    class Unpickler(pickle.Unpickler):
        """Looks up tensor types by name, and nothing else."""

        def find_class(self, package: str, name: str) -> Any:
            if (package, name) in PLAIN or (package == "torch" and name.endswith("Storage")):
                return super().find_class(package, name)
            if package == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            if package.partition(".")[0] in inert:
                return type(name, (Inert,), {"__module__": package})
            raise UserError(
                f"{path} wants {package}.{name} to be run, which no set of weights needs; it is not loaded."
            )

    vars(module).update(
        Unpickler=Unpickler,
        load=lambda file, **options: Unpickler(file, **options).load(),
        UnpicklingError=pickle.UnpicklingError,
    )
    try:
        return torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from None


def module_tensors(module: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Parameters and buffers of a pickled `torch.nn.Module` that was read as inert, by their usual names."""
    held = {**vars(module).get("_parameters", {}), **vars(module).get("_buffers", {})}
    found = {f"{prefix}{name}": value.detach() for name, value in held.items() if isinstance(value, torch.Tensor)}
    for name, child in vars(module).get("_modules", {}).items():
        if child is not None:
            found |= module_tensors(child, f"{prefix}{name}.")
    return found


def fit(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Load tensors into a module, all of them and nothing more.

    Raises:
        UserError: one is missing, left over, or of another shape; the message names it.
    """
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors:
            raise UserError(f"{where}: {name} is missing; these are the weights of another architecture.")
        if tensor.shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, and should have {tuple(tensor.shape)}"
            raise UserError(f"{where}: {name} has shape {shapes}; these are the weights of another size.")
    if more := sorted(set(tensors) - set(wanted)):
        raise UserError(
            f"{where}: {more[0]} is not part of the network; these are the weights of another architecture."
        )
    module.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()})


def _tensors(held: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict inside a checkpoint: itself, or its entry `model` or `state_dict`."""
    for key in ("model", "state_dict"):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise UserError(f"{path} is not a set of named tensors; give the checkpoint of the model itself.")
    return held


def _damaged(path: Path, error: Exception) -> UserError:
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} cannot be read as weights ({why}); it is damaged or of another kind: fetch it again.")
