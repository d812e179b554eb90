"""Published weights are what they should be, and cannot do harm: cards, downloads, damaged and malicious files."""

import hashlib
import http.server
import os
import pickle
import sys
import threading
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from dmlm import doctor, recipes
from dmlm.cli import app
from dmlm.errors import UserError
from dmlm.tokens import checkpoint, weights
from dmlm.tokens.weights import Card, File

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def server():
    """Serves CONTENT as /whole, with ranges; /broken ends in the middle of what it promised. Notes what was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Range', '')}".strip())
            if self.path == "/gone":
                self.send_error(404)
                return
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            stop = 1_000_000 if self.path == "/broken" and not start else len(CONTENT)
            self.wfile.write(CONTENT[start:stop])

        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        found.asked = asked  # type: ignore[attr-defined]
        found.url = f"http://127.0.0.1:{found.server_port}"  # type: ignore[attr-defined]
        yield found
        found.shutdown()


def card(url: str, sha256: str | None = DIGEST) -> Card:
    return Card(source="a test", licence="none", files=(File("net.bin", sha256, len(CONTENT), url),))


def test_a_download_is_verified_and_not_done_twice(server) -> None:
    for _ in range(2):
        (path,) = weights.fetch(card(server.url + "/whole"), "audio_x")
        assert path.read_bytes() == CONTENT
    assert server.asked == ["/whole"]


def test_a_broken_download_goes_on_where_it_stopped(server) -> None:
    broken = card(server.url + "/broken")
    with pytest.raises(UserError, match=r"broke after 1,000,000 of 3,000,000 bytes; run the same command again"):
        weights.fetch(broken, "audio_x")
    assert weights.present(broken, "audio_x") is None
    (path,) = weights.fetch(broken, "audio_x")
    assert path.read_bytes() == CONTENT
    assert server.asked == ["/broken", "/broken bytes=1000000-"]


def test_a_wrong_digest_is_refused(server) -> None:
    with pytest.raises(UserError, match="is not the published file"):
        weights.fetch(card(server.url + "/whole", "0" * 64), "audio_x")


def test_a_file_without_published_digest_is_held_to_its_first(server, capsys) -> None:
    (path,) = weights.fetch(card(server.url + "/whole", None), "audio_x")
    assert DIGEST in capsys.readouterr().out
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match="is not the published file"):
        weights.fetch(card(server.url + "/whole", None), "audio_x")


def test_a_file_that_moved_is_a_sentence(server) -> None:
    with pytest.raises(UserError, match="answered 404"):
        weights.fetch(card(server.url + "/gone"), "audio_x")


def test_nobody_there_is_a_sentence() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        weights.fetch(card("http://127.0.0.1:9/net.bin"), "audio_x")


def test_offline_means_offline(server, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for wanted in (card(server.url + "/whole"), Card(source="", licence="", hub="facebook/hubert-base-ls960")):
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
            weights.fetch(wanted, "audio_x")
    assert server.asked == []


def test_files_can_be_given(tmp_path) -> None:
    (tmp_path / "net.bin").write_bytes(CONTENT)
    by_hand = Card(source="", licence="", files=(File("net.bin", DIGEST),), by_hand="accept the licence first.")
    with pytest.raises(UserError, match=r"cannot be downloaded unasked; accept the licence first"):
        weights.fetch(by_hand, "lips_x")
    (path,) = weights.fetch(by_hand, "lips_x", tmp_path)
    assert path.read_bytes() == CONTENT
    assert weights.present(by_hand, "lips_x") == [path]


def test_a_digest_follows_the_file(home) -> None:
    path = home / "file"
    path.parent.mkdir()
    path.write_bytes(b"one")
    assert weights.file_digest(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"other")
    assert weights.file_digest(path) == hashlib.sha256(b"other").hexdigest()


def test_what_is_no_hub_id_is_a_sentence() -> None:
    with pytest.raises(UserError, match="not a Hub id"):
        weights.hub_folder("no/such/folder")


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
        checkpoint.read(path)
    with pytest.raises(UserError, match=r"wants (posix|nt)\.system to be run"):
        checkpoint.read_guarded(path, inert=("fairseq", "omegaconf"))
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
    held = checkpoint.read_guarded(path, inert=("fairseq_stand_in",))
    assert all(torch.equal(held["model"][name], tensor) for name, tensor in tensors.items())
    assert isinstance(held["cfg"], checkpoint.Inert)
    assert held["cfg"].name == "pretraining"
    assert not ran
    with pytest.raises(UserError, match=r"fairseq_stand_in\.Task"):
        checkpoint.read_guarded(path, inert=("omegaconf",))


def test_a_pickled_module_gives_its_tensors(tmp_path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    path = tmp_path / "module.pkl"
    torch.save(module, path)
    found = checkpoint.module_tensors(checkpoint.read_guarded(path, inert=("torch",)))
    assert set(found) == set(module.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_a_truncated_file_is_a_sentence(tmp_path, name, keep) -> None:
    path = tmp_path / name
    tensors = {"weight": torch.randn(1000)}
    save_file(tensors, path) if name.endswith("safetensors") else torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="cannot be read as weights"):
        checkpoint.read(path)
    if name == "net.pt":
        with pytest.raises(UserError, match="cannot be read as weights"):
            checkpoint.read_guarded(path, inert=())


def test_another_kind_of_file_is_a_sentence(tmp_path) -> None:
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("page.html", "<html>404</html>")
    with pytest.raises(UserError, match="cannot be read as weights"):
        checkpoint.read(path)
    torch.save({"step": 3, "lr": 0.1}, path)
    with pytest.raises(UserError, match="not a set of named tensors"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"weight": torch.zeros(2, 5)}, r"weight has shape \(2, 5\), and should have \(2, 3\)"),
        ({"more": torch.zeros(1)}, "more is not part of the network"),
        ({"bias": None}, "bias is missing"),
    ],
)
def test_weights_of_another_shape_are_refused(changed, complaint) -> None:
    module = torch.nn.Linear(3, 2)
    tensors = {k: v for k, v in {**module.state_dict(), **changed}.items() if v is not None}
    with pytest.raises(UserError, match=complaint):
        checkpoint.fit(module, tensors, "net.pt")


def test_centroids_are_a_matrix_of_numbers(tmp_path) -> None:
    path = tmp_path / "centroids.npy"
    for wrong in (np.ones(3), np.full((2, 2), np.nan), np.array([[1, 2]]), np.array([{}, {}])):
        np.save(path, wrong, allow_pickle=True)
        with pytest.raises(UserError):
            weights.load_centroids(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="cannot be read"):
        weights.load_centroids(path)
    np.save(path, np.eye(2))
    assert weights.load_centroids(path).dtype == np.float32


def test_every_card_is_complete() -> None:
    from dmlm.tokens.tokenizer import Encoder

    for name in recipes.names("tokenizers"):
        kind = recipes.load_class("tokenizers", name, Encoder)
        found = kind(kind.Settings()).card
        if found is not None:
            assert found.source, name
            assert found.licence, name
            assert found.hub or found.files, name
            for file in found.files:
                assert file.url or found.hub or found.by_hand, (name, file.name)
                assert file.sha256 is None or len(file.sha256) == 64, (name, file.name)


def test_doctor_names_a_torchvision_that_does_not_fit(tmp_path, monkeypatch) -> None:
    """As PyPI's, a CUDA build, says beside a CPU build of torch."""
    (tmp_path / "torchvision.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = [line for line in doctor.report().splitlines() if line.startswith("torchvision")]
    assert "does not fit this torch (operator torchvision::nms does not exist)" in line
    assert "pip uninstall torchvision" in line


def test_fetch_and_doctor_from_the_command_line(tmp_path) -> None:
    said = CliRunner().invoke(app, ["fetch", "audio_mfcc"])
    assert said.exit_code == 0
    assert said.output.strip() == "audio_mfcc needs no published weights."
    said = CliRunner().invoke(app, ["doctor"]).output
    for name in recipes.names("tokenizers"):
        assert sum(line.split()[:1] == [name] for line in said.splitlines()) == 1
    assert "audio_mfcc             ready" in said
    assert "run: dmlm fetch audio_seamless" in said


def test_a_model_in_a_folder_is_not_fetched_and_a_part_of_one_is_named(tmp_path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    card = weights.of_model(str(folder), None, {})
    assert card is not None
    with pytest.raises(UserError, match="dmlm fetch audio_x model=nobody/nothing"):
        weights.model_folder(Card("", "", hub="nobody/nothing"), "audio_x")
    assert "lacks config.json or weights" in weights.missing(card, "audio_x")
    (folder / "config.json").write_text("{}")
    save_file({"weight": torch.ones(1)}, folder / "model.safetensors")
    assert weights.fetch(card, "audio_x") == [folder / "config.json", folder / "model.safetensors"]


def test_another_revision_has_no_known_digest() -> None:
    known = Card("page", "MIT", (File("a", "0" * 64),), hub="o/n", revision="abc")
    assert weights.of_model("o/n", None, {"o/n": known}) is known
    other = weights.of_model("o/n", "main", {"o/n": known})
    assert other is not None
    assert (other.revision, other.files, other.licence) == ("main", (), "MIT")
    assert weights.of_model("random:hubert", None, {"o/n": known}) is None
