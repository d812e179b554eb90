"""Read the tensors of a checkpoint without executing any code in it.

Files in the `safetensors` format, and those that `torch.load(weights_only=True)` accepts, are read directly. An old
checkpoint also pickles objects of the program that wrote it. The guarded reader replaces these by inert objects, reads
the tensors, and refuses every other name.
"""

import pickle
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dmlm.errors import UserError

# classes and functions that a pickle of plain tensors needs
TENSOR_NAMES = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch", "device"),
    ("builtins", "set"),
    ("__builtin__", "set"),
}


class Inert:
    """Placeholder for an object whose class is not imported: it keeps the state of the object and does nothing."""

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
    """Read the tensors of a .safetensors file, or of a checkpoint that holds only tensors.

    Raises:
        UserError: the file is truncated, of another kind, or a pickle that holds other objects.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        _refuse_program(path)
        return _state_dict(torch.load(path, map_location="cpu", weights_only=True), path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors ({str(error).splitlines()[0]}); it is not loaded. Convert it with dmlm fetch."
        ) from None
    except Exception as error:  # other bytes than a checkpoint can raise anything
        raise _damaged(path, error) from None


def read_guarded(path: Path, inert: Sequence[str]) -> Any:
    """Read an old checkpoint: tensors as they are, objects of the packages `inert` as `Inert` placeholders.

    Raises:
        UserError: the file names anything else, such as a function of `os`; is a TorchScript program; or is truncated.
    """
    module = types.ModuleType("guarded_pickle")

    class Unpickler(pickle.Unpickler):
        """Looks up only the names that tensors need, and replaces classes of the `inert` packages."""

        def find_class(self, package: str, name: str) -> Any:
            if (package, name) in TENSOR_NAMES or (package == "torch" and name.endswith("Storage")):
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
    except Exception as error:  # other bytes than a checkpoint can raise anything
        raise _damaged(path, error) from None


def _refuse_program(path: Path) -> None:
    """Raise if a file is a TorchScript program: `torch.load` would give it to `torch.jit.load`, which runs it.

    `torch.load` makes the same test.
    """
    with path.open("rb") as file:
        if torch.serialization._is_zipfile(file):
            with torch.serialization._open_zipfile_reader(file) as archive:
                if torch.serialization._is_torchscript_zip(archive):
                    raise UserError(f"{path} is a TorchScript program, which would be run; give published weights.")


def module_tensors(module: Any, where: str) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a `torch.nn.Module` that was read as `Inert`, by their state dict names.

    Raises:
        UserError: a module contains itself; the message names `where`.
    """
    try:
        return _tensors_of_module(module, "")
    except RecursionError:
        raise UserError(f"{where} holds a module that is part of itself; give the published weights.") from None


def _tensors_of_module(module: Any, prefix: str) -> dict[str, torch.Tensor]:
    """Tensors of a module and its children. Objects of another form give none, which `load_exactly` will report."""
    state = {name: value for name, value in vars(module).items() if isinstance(value, dict)}
    values = {**state.get("_parameters", {}), **state.get("_buffers", {})}
    tensors = {f"{prefix}{name}": value.detach() for name, value in values.items() if isinstance(value, torch.Tensor)}
    for name, child in state.get("_modules", {}).items():
        if isinstance(child, Inert):
            tensors |= _tensors_of_module(child, f"{prefix}{name}.")
    return tensors


def load_exactly(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Load tensors into a module, which must have exactly these names and shapes.

    Raises:
        UserError: a tensor is missing, not part of the module, of another shape, or not finite; the message names it.
    """
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise UserError(f"{where}: {name} is missing; these are the weights of another architecture.")
        if tensor.shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, and should have {tuple(tensor.shape)}"
            raise UserError(f"{where}: {name} has shape {shapes}; these are the weights of another size.")
    if unexpected := sorted(set(tensors) - set(expected)):
        raise UserError(
            f"{where}: {unexpected[0]} is not part of the network; these are the weights of another architecture."
        )
    converted = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    check_finite(converted, where)
    module.load_state_dict(converted)


def check_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Check that weights are finite; with NaN, every frame would get the same unit.

    Raises:
        UserError: a tensor holds NaN or infinity; the message names it.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{where}: {name} holds NaN or infinity; these weights are damaged: fetch them again.")


def _state_dict(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """State dict of a checkpoint: the entry `model` or `state_dict`, or the content itself."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in content.items()
    ):
        raise UserError(f"{path} is not a set of named tensors; give the checkpoint of the model itself.")
    return content


def _damaged(path: Path, error: Exception) -> UserError:
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{path} cannot be read as weights ({why}); it is damaged or of another kind: remove it and fetch it again."
    )
