"""Published weights: cards, downloads, digests, and files that the user brings."""

import hashlib
import http.server
import io
import json
import pickle
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel
from typer.testing import CliRunner

from dmlm import known_files, recipes
from dmlm.cli import doctor
from dmlm.cli.main import app
from dmlm.errors import UserError
from dmlm.weights import published
from dmlm.weights.frozen import open_model
from dmlm.weights.published import Card, File

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def server():
    """Serves CONTENT as /whole, with ranges; /broken ends early. Records the requests."""
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
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.end_headers()
            stop = 1_000_000 if self.path == "/broken" and not start else len(CONTENT)
            self.wfile.write(CONTENT[start:stop])

        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        running.asked = asked  # type: ignore[attr-defined]
        running.url = f"http://127.0.0.1:{running.server_port}"  # type: ignore[attr-defined]
        yield running
        running.shutdown()


def card(url: str, sha256: str | None = DIGEST) -> Card:
    return Card(source="a test", licence="none", files=(File("net.bin", sha256, len(CONTENT), url),))


def test_a_download_is_verified_and_not_done_twice(server) -> None:
    for _ in range(2):
        (path,) = published.fetch(card(server.url + "/whole"), "audio_x")
        assert path.read_bytes() == CONTENT
    assert server.asked == ["/whole"]


def test_a_broken_download_goes_on_where_it_stopped(server) -> None:
    broken = card(server.url + "/broken")
    with pytest.raises(UserError, match=r"broke after 1,000,000 of 3,000,000 bytes; run the same command again"):
        published.fetch(broken, "audio_x")
    assert published.local_files(broken, "audio_x") is None
    (path,) = published.fetch(broken, "audio_x")
    assert path.read_bytes() == CONTENT
    assert server.asked == ["/broken", "/broken bytes=1000000-"]


def test_a_download_of_another_file_does_not_count_as_present(server) -> None:
    other = card(server.url + "/whole", "0" * 64)
    for _ in range(2):
        with pytest.raises(UserError, match=r"/whole is not the published file .* run the same command again"):
            published.fetch(other, "audio_x")
        assert published.local_files(other, "audio_x") is None
    assert server.asked == ["/whole", "/whole"]
    assert published.fetch(card(server.url + "/whole"), "audio_x")


@pytest.fixture
def answering():
    """A server that sends raw bytes: `answers[0]` to a request without a range, `answers[1]` to one with a range."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(self.server.answers["Range" in self.headers])  # type: ignore[attr-defined]

        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        running.url = f"http://127.0.0.1:{running.server_port}/net.bin"  # type: ignore[attr-defined]
        yield running
        running.shutdown()


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


SMALL = CONTENT[:3000]
LENGTH = "Content-Length: 3000"


LONGER = b"x" * 5000


@pytest.mark.parametrize(
    ("had", "ranged"),
    [
        (SMALL[:100], answer("206 Partial Content", SMALL, LENGTH, "Content-Range: bytes 0-2999/3000")),
        (SMALL[:100], answer("206 Partial Content", SMALL, LENGTH)),
        (LONGER, answer("416 Range Not Satisfiable", b"", "Content-Length: 0", "Content-Range: bytes */3000")),
        (LONGER, answer("416 Range Not Satisfiable", b"", "Content-Length: 0")),
    ],
    ids=["all of it", "somewhere", "longer than it", "perhaps longer"],
)
def test_what_does_not_go_on_is_begun_anew(answering, had, ranged) -> None:
    answering.answers = [answer("200 OK", SMALL, LENGTH), ranged]
    part = published.folder("audio_x") / "net.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(had)
    (path,) = published.fetch(card(answering.url, None), "audio_x")
    assert path.read_bytes() == SMALL


def test_what_came_whole_is_not_asked_for_again(answering) -> None:
    end = answer("416 Range Not Satisfiable", b"", "Content-Length: 0", "Content-Range: bytes */3000")
    answering.answers = [b"", end]
    part = published.folder("audio_x") / "net.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(SMALL)
    (path,) = published.fetch(card(answering.url, None), "audio_x")
    assert path.read_bytes() == SMALL


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (answer("200 OK", b"", "Content-Length: 0"), "answered with nothing"),
        (answer("200 OK", b"0\r\n\r\n", "Transfer-Encoding: chunked"), "answered with nothing"),
        (answer("200 OK", b"<html>", "Content-Length: 6", "Content-Type: text/html; charset=utf-8"), "with a page"),
        (answer("200 OK", SMALL, "Content-Length: ten"), "does not say how long it is"),
        (answer("200 OK", SMALL), "does not say how long it is"),
        (answer("206 Partial Content", SMALL, LENGTH, "Content-Range: bytes 9-3008/3009"), "sent a part of it"),
        (answer("200 OK", b"400\r\nabc", "Transfer-Encoding: chunked"), "cannot be read"),
        (b"NOPE\r\n\r\n", "cannot be read"),
    ],
    ids=["empty", "empty chunks", "page", "odd length", "no length", "part", "cut chunk", "no status"],
)
def test_what_is_no_file_is_neither_kept_nor_taken_down(answering, sent, complaint) -> None:
    answering.answers = [sent, sent]
    with pytest.raises(UserError, match=complaint):
        published.fetch(card(answering.url, None), "audio_x")
    assert [path for path in published.folder("audio_x").iterdir() if path.name != "net.bin.part"] == []


def test_a_file_without_published_digest_is_held_to_its_first(server, capsys) -> None:
    (path,) = published.fetch(card(server.url + "/whole", None), "audio_x")
    assert DIGEST in capsys.readouterr().out
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match=r"is not the published file .*net\.bin\.sha256 says"):
        published.fetch(card(server.url + "/whole", None), "audio_x")
    assert path.with_name("net.bin.refused").read_bytes() == CONTENT[:-1] + b"x"
    assert published.fetch(card(server.url + "/whole", None), "audio_x") == [path]
    assert path.read_bytes() == CONTENT


def test_a_file_that_moved_is_a_sentence(server) -> None:
    with pytest.raises(UserError, match="answered 404"):
        published.fetch(card(server.url + "/gone"), "audio_x")


def test_nobody_there_is_a_sentence() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        published.fetch(card("http://127.0.0.1:9/net.bin"), "audio_x")


def test_offline_means_offline(server, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for wanted in (card(server.url + "/whole"), Card(source="", licence="", hub="facebook/hubert-base-ls960")):
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
            published.fetch(wanted, "audio_x")
    assert server.asked == []


def test_files_can_be_given(tmp_path) -> None:
    (tmp_path / "net.bin").write_bytes(CONTENT)
    by_hand = Card(source="", licence="", files=(File("net.bin", DIGEST),), by_hand="accept the licence first.")
    with pytest.raises(UserError, match=r"cannot be downloaded unasked; accept the licence first"):
        published.fetch(by_hand, "lips_x")
    (path,) = published.fetch(by_hand, "lips_x", tmp_path)
    assert path.read_bytes() == CONTENT
    assert published.local_files(by_hand, "lips_x") == [path]


def test_a_given_file_that_is_refused_replaces_nothing(tmp_path) -> None:
    by_hand = Card(source="", licence="", files=(File("net.bin", DIGEST),), by_hand="")
    (tmp_path / "net.bin").write_bytes(b"another")
    with pytest.raises(UserError, match=r"net.bin is not the published file .* nothing was changed"):
        published.fetch(by_hand, "lips_x", tmp_path)
    assert published.local_files(by_hand, "lips_x") is None
    (tmp_path / "good.bin").write_bytes(CONTENT)
    (path,) = published.fetch(by_hand, "lips_x", tmp_path / "good.bin")
    with pytest.raises(UserError, match="is not the published file"):
        published.fetch(by_hand, "lips_x", tmp_path)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["net.bin"]


def test_one_file_is_not_taken_for_several(tmp_path) -> None:
    (tmp_path / "net.bin").write_bytes(CONTENT)
    two = Card(source="", licence="", files=(File("net.bin", DIGEST), File("codes.npy")))
    with pytest.raises(UserError, match=r"--from takes the folder that holds net\.bin"):
        published.fetch(two, "lips_x", tmp_path / "net.bin")
    assert not published.folder("lips_x").exists()
    with pytest.raises(UserError, match="--from is not for a model of the Hub"):
        published.fetch(Card(source="", licence="", hub="owner/name"), "lips_x", tmp_path)


def test_what_is_no_hub_id_is_a_sentence() -> None:
    with pytest.raises(UserError, match="not a Hub id"):
        published.hub_folder("no/such/folder")


def test_centroids_are_a_matrix_of_numbers(tmp_path) -> None:
    path = tmp_path / "centroids.npy"
    nothing, large = np.zeros((0, 2)), np.array([[1e300, 0], [0, 1]])
    for wrong in (np.ones(3), np.full((2, 2), np.nan), np.array([[1, 2]]), np.array([{}, {}]), nothing, large):
        np.save(path, wrong, allow_pickle=True)
        with pytest.raises(UserError):
            published.load_centroids(path)
    with path.open("wb") as file:
        np.savez(file, np.eye(2))
    with pytest.raises(UserError, match="cannot be read"):
        published.load_centroids(path)
    for rows in (10**10, 10**30):
        with path.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, 1280)}
            np.lib.format.write_array_header_1_0(file, header)
        with pytest.raises(UserError, match="cannot be read"):
            published.load_centroids(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="cannot be read"):
        published.load_centroids(path)
    np.save(path, np.eye(2))
    assert published.load_centroids(path).dtype == np.float32


def test_every_card_is_complete() -> None:
    from dmlm.tokens.encoder import Encoder

    for name in recipes.names("tokenizers"):
        kind = recipes.load_class("tokenizers", name, Encoder)
        card = kind(kind.Settings()).card
        if card is not None:
            assert card.source, name
            assert card.licence, name
            assert card.hub or card.files, name
            for file in card.files:
                assert file.url or card.hub or card.by_hand, (name, file.name)
                assert file.sha256 is None or len(file.sha256) == 64, (name, file.name)


def test_doctor_names_a_torchvision_that_does_not_fit(tmp_path, monkeypatch) -> None:
    """The error of PyPI's torchvision, a CUDA build, with a CPU build of torch."""
    (tmp_path / "torchvision.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = [line for line in doctor.report().splitlines() if line.startswith("torchvision")]
    assert "does not fit this torch (operator torchvision::nms does not exist)" in line
    assert "pip uninstall torchvision" in line


def test_fetch_and_doctor_from_the_command_line(tmp_path) -> None:
    fetched = CliRunner().invoke(app, ["fetch", "audio_mfcc"])
    assert fetched.exit_code == 0
    assert fetched.output.strip() == "audio_mfcc needs no published weights."
    report = CliRunner().invoke(app, ["doctor"]).output
    for name in recipes.names("tokenizers"):
        assert sum(line.split()[:1] == [name] for line in report.splitlines()) == 1
    assert "audio_mfcc             ready" in report
    assert "run: dmlm fetch audio_seamless" in report


def test_a_model_in_a_folder_is_not_fetched_and_a_part_of_one_is_named(tmp_path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    card = published.card_of(str(folder), None, {})
    assert card is not None
    with pytest.raises(UserError, match="dmlm fetch audio_x model=nobody/nothing"):
        published.model_folder(Card("", "", hub="nobody/nothing"), "audio_x")
    assert "lacks config.json or weights" in published.missing_message(card, "audio_x")
    (folder / "config.json").write_text("{}")
    save_file({"weight": torch.ones(1)}, folder / "model.safetensors")
    assert published.fetch(card, "audio_x") == [folder / "config.json", folder / "model.safetensors"]


def test_another_revision_has_no_known_digest() -> None:
    known = Card("page", "MIT", (File("a", "0" * 64),), hub="o/n", revision="abc")
    assert published.card_of("o/n", None, {"o/n": known}) is known
    other = published.card_of("o/n", "main", {"o/n": known})
    assert other is not None
    assert (other.revision, other.files, other.licence) == ("main", (), "MIT")
    assert published.card_of("random:hubert", None, {"o/n": known}) is None


def model(folder: Path) -> Path:
    """A small vision transformer as `save_pretrained` writes it."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = AutoConfig.for_model("vit", **sizes, image_size=4, patch_size=2)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder / "model.safetensors"


def test_a_model_of_the_hub_is_held_to_its_card_when_it_is_opened(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    path = model(tmp_path / "models--owner--name" / "snapshots" / ("a" * 40))
    file = File("model.safetensors", known_files.digest(path))
    known = Card.on_hub("owner/name", "MIT", "a" * 40, file)
    assert open_model("image_x", "owner/name", known)
    other = Card.on_hub("owner/name", "MIT", "a" * 40, replace(file, sha256="0" * 64))
    assert published.local_files(other, "image_x")  # asked often, and must cost nothing
    with pytest.raises(
        UserError, match=r"not the published file .* remove .* run: dmlm fetch image_x model=owner/name"
    ):
        open_model("image_x", "owner/name", other)


def test_every_file_that_a_loader_may_open_is_in_the_digest(tmp_path) -> None:
    path = model(tmp_path)
    save_file({"centroids": torch.zeros(2, 2)}, tmp_path / "kmeans.safetensors")
    assert published.model_files(tmp_path) == [tmp_path / "config.json", path]
    path.rename(tmp_path / "pytorch_model.bin")
    assert published.model_files(tmp_path) == [tmp_path / "config.json", tmp_path / "pytorch_model.bin"]
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    names = ["config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors"]
    assert published.model_files(tmp_path) == [tmp_path / name for name in names]


def test_code_in_a_model_folder_is_refused_and_not_asked_about(tmp_path, monkeypatch) -> None:
    folder, witness = tmp_path / "model", tmp_path / "witness"
    model(folder)
    config = {"model_type": "other", "auto_map": {"AutoConfig": "code.Other", "AutoModel": "code.Other"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(witness)!r}, 'w')\nclass Other: ...\n")
    card = published.card_of(str(folder), None, {})
    for use in (
        lambda: published.config_of("image_x", str(folder), card, {}),
        lambda: open_model("image_x", str(folder), card),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
        with pytest.raises(UserError, match="custom code"):
            use()
    assert not witness.exists()
