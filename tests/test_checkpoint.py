"""Published checkpoints are read without executing code in them: malicious, damaged and foreign files."""

import os
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from dmlm import recipes
from dmlm.errors import UserError
from dmlm.tokens.quantize import Codebook
from dmlm.weights import published, untrusted
from dmlm.weights.frozen import open_model


class Malicious:
    """Runs a command when it is unpickled in the ordinary way."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch '{self.witness}'",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, legacy) -> None:
    path, witness = tmp_path / "net.pt", tmp_path / "witness"
    held = {"model": {"weight": torch.ones(2)}, "extra": Malicious(witness)}
    torch.save(held, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="holds more than tensors"):
        untrusted.read(path)
    with pytest.raises(UserError, match=r"wants (posix|nt)\.system to be run"):
        untrusted.read_guarded(path, inert=("fairseq", "omegaconf"))
    assert not witness.exists()


class Program(torch.nn.Module):
    """Makes a file when it is loaded as TorchScript."""

    def __init__(self, witness: str) -> None:
        super().__init__()
        self.witness = witness
        self.made = torch.zeros(1)

    @torch.jit.export
    def __getstate__(self):
        return (self.witness, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.witness = state[0]
        self.training = state[1]
        self.made = torch.from_file(state[0], True, 4, dtype=torch.uint8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_program_is_refused_and_not_run(tmp_path) -> None:
    path, witness = tmp_path / "encoder.pkl", tmp_path / "witness"
    torch.jit.save(torch.jit.script(Program(str(witness))), path)
    torch.jit.load(path)
    assert witness.exists()
    witness.unlink()
    for reader in (untrusted.read, lambda path: untrusted.read_guarded(path, inert=("torch",))):
        with pytest.raises(UserError, match="is a TorchScript program"):
            reader(path)
    assert not witness.exists()


def test_objects_of_named_packages_are_inert_and_tensors_whole(tmp_path, monkeypatch) -> None:
    package = types.ModuleType("fairseq_stand_in")
    ran: list[str] = []

    class Task:
        def __init__(self) -> None:
            self.name = "pretraining"

        def __setstate__(self, state) -> None:
            ran.append("state")

    Task.__module__, Task.__qualname__ = package.__name__, "Task"
    package.Task = Task  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    tensors = {"weight": torch.randn(3, 4), "half": torch.randn(5).half(), "count": torch.arange(6)}
    path = tmp_path / "net.pt"
    torch.save({"model": tensors, "cfg": Task(), "more": OrderedDict(a=Task())}, path)
    held = untrusted.read_guarded(path, inert=("fairseq_stand_in",))
    assert all(torch.equal(held["model"][name], tensor) for name, tensor in tensors.items())
    assert isinstance(held["cfg"], untrusted.Inert)
    assert held["cfg"].name == "pretraining"
    assert not ran
    with pytest.raises(UserError, match=r"fairseq_stand_in\.Task"):
        untrusted.read_guarded(path, inert=("omegaconf",))


def test_a_pickled_module_gives_its_tensors(tmp_path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    path = tmp_path / "module.pkl"
    torch.save(module, path)
    tensors = untrusted.module_tensors(untrusted.read_guarded(path, inert=("torch",)), "module.pkl")
    assert set(tensors) == set(module.state_dict())
    assert all(torch.equal(tensors[name], tensor) for name, tensor in module.state_dict().items())


def test_what_has_not_the_form_of_a_module_gives_no_tensors() -> None:
    odd, part = untrusted.Inert(), untrusted.Inert()
    vars(part).update(_parameters=[torch.ones(1)], _buffers={1: torch.ones(1), "text": "x"}, _modules=5)
    vars(odd).update(_parameters={"weight": torch.ones(1)}, _modules={"part": part, "none": None, "number": 3})
    assert set(untrusted.module_tensors(odd, "net.pkl")) == {"weight", "part.1"}
    vars(part).update(_modules={"again": odd})
    with pytest.raises(UserError, match=r"net\.pkl holds a module that is part of itself"):
        untrusted.module_tensors(odd, "net.pkl")


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_a_truncated_file_is_a_sentence(tmp_path, name, keep) -> None:
    path = tmp_path / name
    tensors = {"weight": torch.randn(1000)}
    save_file(tensors, path) if name.endswith("safetensors") else torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="cannot be read as weights"):
        untrusted.read(path)
    if name == "net.pt":
        with pytest.raises(UserError, match="cannot be read as weights"):
            untrusted.read_guarded(path, inert=())


def test_another_kind_of_file_is_a_sentence(tmp_path) -> None:
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("page.html", "<html>404</html>")
    with pytest.raises(UserError, match="cannot be read as weights"):
        untrusted.read(path)
    for held in ({"step": 3, "lr": 0.1}, {1: torch.ones(1)}):
        torch.save(held, path)
        with pytest.raises(UserError, match="not a set of named tensors"):
            untrusted.read(path)
    with pytest.raises(UserError, match="no entry 'model'"):
        recipes.load("tokenizers", "lips_avhubert").renamed({"model": {1: torch.ones(1)}}, "net.pt")


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02a.", b"\x80\x02h\x05.", b"\x80\x02}(K\x01u."])
def test_bytes_that_are_no_pickle_are_a_sentence(tmp_path, content) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(packed, "w") as archive:
        for name, held in {"data.pkl": content, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"archive/{name}", held)
    for each in (path, packed):
        for reader in (untrusted.read, lambda path: untrusted.read_guarded(path, inert=())):
            with pytest.raises(UserError, match=r"cannot be read as weights|holds more than tensors"):
                reader(each)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"weight": torch.zeros(2, 5)}, r"weight has shape \(2, 5\), and should have \(2, 3\)"),
        ({"more": torch.zeros(1)}, "more is not part of the network"),
        ({"bias": None}, "bias is missing"),
        ({"weight": torch.full((2, 3), float("nan"))}, "weight holds NaN or infinity"),
        ({"bias": torch.tensor([1e300, 0.0], dtype=torch.float64)}, "bias holds NaN or infinity"),
    ],
)
def test_weights_of_another_shape_are_refused(changed, complaint) -> None:
    module = torch.nn.Linear(3, 2)
    tensors = {k: v for k, v in {**module.state_dict(), **changed}.items() if v is not None}
    with pytest.raises(UserError, match=complaint):
        untrusted.load_exactly(module, tensors, "net.pt")


def test_weights_of_a_folder_are_finite(tmp_path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = AutoModel.from_config(AutoConfig.for_model("vit", **sizes, image_size=4, patch_size=2))
    model.layernorm.bias.data[3] = torch.inf
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"layernorm\.bias holds NaN or infinity"):
        open_model("image_x", str(tmp_path), published.card_of(str(tmp_path), None, {}))


def test_tensors_of_an_unrelated_file_are_not_read(tmp_path) -> None:
    save_file({"vq.weight": torch.ones(1)}, tmp_path / "model-00001-of-00001.safetensors")
    save_file({"vq.weight": torch.zeros(1)}, tmp_path / "unrelated.safetensors")
    assert recipes.load("tokenizers", "image_vq").part(tmp_path, "vq.") == {"weight": torch.ones(1)}


def test_features_that_are_no_numbers_have_no_unit() -> None:
    codebook = Codebook.plain(np.eye(3, dtype=np.float32))
    with pytest.raises(UserError, match="NaN or infinite"):
        codebook.assign(np.array([[0, 1, 0], [np.nan, 0, 0]], np.float32))
