"""Read the tensors of a checkpoint without running what it carries.

`safetensors` and what `torch.load(weights_only=True)` takes are read as they are. An old checkpoint pickles objects of
the program that wrote it; the guarded reader makes those inert, takes the tensors, and refuses any other name.
"""

import pickle
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
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
        _refuse_program(path)
        return _tensors(torch.load(path, map_location="cpu", weights_only=True), path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors ({str(error).splitlines()[0]}); it is not loaded. Convert it with dmlm fetch."
        ) from None
    except Exception as error:  # bytes that are no checkpoint fail in any way
        raise _damaged(path, error) from None


def read_guarded(path: Path, inert: Sequence[str]) -> Any:
    """What an old checkpoint holds, its tensors intact and objects of the packages `inert` without effect.

    Raises:
        UserError: it names anything else, such as a function of `os`, or is a program; or it is truncated.
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
        _refuse_program(path)
        return torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
    except UserError:
        raise
    except Exception as error:  # bytes that are no checkpoint fail in any way
        raise _damaged(path, error) from None


def _refuse_program(path: Path) -> None:
    """Refuse what `torch.load`, by the same test, would hand to `torch.jit.load`, which heeds no unpickler."""
    with path.open("rb") as file:
        if torch.serialization._is_zipfile(file):
            with torch.serialization._open_zipfile_reader(file) as archive:
                if torch.serialization._is_torchscript_zip(archive):
                    raise UserError(f"{path} is a TorchScript program, which would be run; give published weights.")


def module_tensors(module: Any, where: str) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a pickled `torch.nn.Module` that was read as inert, by their usual names.

    Raises:
        UserError: a module that is part of itself; `where` is named.
    """
    try:
        return _held(module, "")
    except RecursionError:
        raise UserError(f"{where} holds a module that is part of itself; give the published weights.") from None


def _held(module: Any, prefix: str) -> dict[str, torch.Tensor]:
    """What a module and its parts hold; what has not the form of one holds nothing, and `fit` will miss it."""
    parts = {name: part for name, part in vars(module).items() if isinstance(part, dict)}
    held = {**parts.get("_parameters", {}), **parts.get("_buffers", {})}
    found = {f"{prefix}{name}": value.detach() for name, value in held.items() if isinstance(value, torch.Tensor)}
    for name, child in parts.get("_modules", {}).items():
        if isinstance(child, Inert):
            found |= _held(child, f"{prefix}{name}.")
    return found


def fit(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Load tensors into a module, all of them and nothing more.

    Raises:
        UserError: one is missing, left over, of another shape, or not finite; the message names it.
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
    fitting = {name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()}
    finite(fitting, where)
    module.load_state_dict(fitting)


def finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """See that weights are numbers: with NaN every frame would get the same unit.

    Raises:
        UserError: NaN or infinity; the message names the tensor.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{where}: {name} holds NaN or infinity; these weights are damaged: fetch them again.")


def _tensors(held: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict inside a checkpoint: itself, or its entry `model` or `state_dict`."""
    for key in ("model", "state_dict"):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not all(
        isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in held.items()
    ):
        raise UserError(f"{path} is not a set of named tensors; give the checkpoint of the model itself.")
    return held


def _damaged(path: Path, error: Exception) -> UserError:
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{path} cannot be read as weights ({why}); it is damaged or of another kind: remove it and fetch it again."
    )
