"""MUSAN as noise, on a tiny tree in the layout of its archive."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm import paths, recipes
from dmlm.cli import noise as command
from dmlm.corpus.noise import NoiseSettings
from dmlm.corpus.noise_files import NoiseBank
from dmlm.corpus.noise_sources import CUTS, PARTS
from dmlm.errors import UserError
from dmlm.importing.noise import Mixture, Recording, mix
from dmlm.plan.file_paths import absolute
from dmlm.sweep.parts import open_bank

RATE_HZ = 16_000
KINDS = ("noise", "music", "speech", "babble")
recipe = recipes.load("datasets", "musan")


def names(prefix: str, **counts: int) -> list[str]:
    """Return names of which as many as asked for are dealt to each part."""
    found: list[str] = []
    for number in range(1000):
        name = f"{prefix}-{number:04}"
        at = int(hashlib.sha256(name.encode()).hexdigest(), 16) / 2**256
        part = "test" if at < CUTS[0] else "val" if at < CUTS[1] else "train"
        if counts[part]:
            counts[part] -= 1
            found.append(name)
    return sorted(found)


@pytest.fixture
def musan(tmp_path: Path) -> Path:
    root = tmp_path / "musan"
    places = {
        "noise/free-sound": names("noise-free-sound", test=1, val=1, train=1),
        "noise/sound-bible": names("noise-sound-bible", test=1, val=1, train=0),
        "music/fma": [f"music-fma-{number:04}" for number in range(8)],
        "speech/librivox": names("speech-librivox", test=2, val=2, train=3),
        "speech/us-gov": names("speech-us-gov", test=0, val=0, train=1),
    }
    for folder, stems in places.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "LICENSE").write_text("the licence of each file\n")
        for stem in stems:
            samples = np.random.default_rng([*stem.encode()]).normal(0, 0.1, RATE_HZ * 2)
            soundfile.write(root / folder / f"{stem}.wav", samples, RATE_HZ)
    artists = ["Cullah", "Quiet_Music_for_Tiny_Robots", "Jahzzar", "Cullah", "Cullah", "Jahzzar", "Kai_Engel"]
    lines = [f"music-fma-{number:04} pop,electronica Y {artist}\n" for number, artist in enumerate(artists)]
    (root / "music/fma/ANNOTATIONS").write_text("".join(lines))  # the eighth has no line
    (root / "README").write_text("MUSAN\n")
    return root


def made(musan: Path, folder: Path, **settings: object) -> dict:
    chosen = recipe.Settings(**{"folder": musan, "voices": 2, **settings})
    return json.loads((recipe.prepare_noise(chosen, folder, 1) / "noise.json").read_text("utf-8"))


def test_no_part_hears_a_speaker_or_an_artist_of_another(musan, tmp_path):
    card = made(musan, tmp_path / "made")
    assert card["parts"]["train"] | {"music": 0} == {"noise": 1, "music": 0, "speech": 4, "babble": 2}
    bank = NoiseBank.open(tmp_path / "made", KINDS, "folder")
    speech = {part: {file.source for file in bank.files[part]["speech"]} for part in PARTS}
    assert [len(speech[part]) for part in PARTS] == [2, 2, 4]
    voices = {part: {v for name, v2 in card["babble"].items() if name.startswith(part) for v in v2} for part in PARTS}
    assert voices == speech
    assert len(set.union(*speech.values())) == 8  # none is in two parts
    tracks = {file.path.name: part for part in PARTS for file in bank.files[part]["music"]}
    assert len(tracks) == 8
    assert tracks["music-fma-0000.wav"] == tracks["music-fma-0003.wav"] == tracks["music-fma-0004.wav"]  # of Cullah


def test_voices_of_babble_are_equally_loud(tmp_path):
    time_s = np.arange(4 * RATE_HZ) / RATE_HZ
    voices = []
    for hz, level in ((250, 0.5), (1000, 0.01)):
        soundfile.write(tmp_path / f"{hz}.wav", level * np.sin(2 * np.pi * hz * time_s), RATE_HZ, "FLOAT")
        voices.append(Recording(tmp_path / f"{hz}.wav", "speech", f"{hz}"))
    mix(Mixture(tuple(voices), tmp_path / "babble.flac", 2.0))
    samples, _ = soundfile.read(tmp_path / "babble.flac")
    spectrum = np.abs(np.fft.rfft(samples))  # half a hertz each
    assert len(samples) == 2 * RATE_HZ
    assert spectrum[500] == pytest.approx(spectrum[2000], rel=0.01)


def test_making_it_again_goes_on_and_other_settings_leave_nothing_behind(musan, tmp_path):
    card = made(musan, tmp_path / "made")
    files = [tmp_path / "made" / name for name in card["babble"]]
    before = [path.stat().st_mtime_ns for path in files]
    (tmp_path / "made" / "noise.json").unlink()
    files[0].unlink()  # as if it had been interrupted
    assert made(musan, tmp_path / "made") == card
    assert [path.stat().st_mtime_ns for path in files[1:]] == before[1:]
    shorter = made(musan, tmp_path / "made", babble_s=1.5)
    assert sorted(
        path.relative_to(tmp_path / "made").as_posix() for path in (tmp_path / "made").rglob("*.flac")
    ) == sorted(shorter["babble"])


def test_a_grid_hears_it_by_its_name(musan, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    values = {"noise": {"set": "mine"}}
    assert absolute(values, tmp_path) == {"noise": {"set": str(tmp_path / "mine")}}  # none of that name yet
    command.make("musan", [f"folder={musan}", "voices=2"], "mine", 1)
    printed = capsys.readouterr().out
    assert "licence: CC BY 4.0" in printed
    assert "noise.set=mine noise.sources=folder 'noise.kinds=[babble,music,noise,speech]'" in printed
    assert absolute(values, tmp_path) == values
    (tmp_path / "mine").mkdir()
    with pytest.raises(
        UserError, match=r"mine is the name of noise that was made, and .* is a folder; write ./mine for"
    ):
        absolute(values, tmp_path)
    bank = open_bank(NoiseSettings(set="mine", kinds=KINDS, sources="folder"))
    assert bank.folder == paths.home() / "noise" / "mine"
    assert len(bank.files["train"]["babble"]) == 2


def test_mistakes_are_one_sentence(musan, tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match="6 voices at a time need as many speakers in each part, and part test has 2"):
        command.make("musan", [f"folder={musan}"])
    with pytest.raises(UserError, match=r"11 GB, no account; download musan.tar.gz from https://www.openslr.org/17"):
        command.make("musan", [f"folder={tmp_path / 'nowhere'}"])
    (tmp_path / "empty" / "noise").mkdir(parents=True)
    with pytest.raises(UserError, match="has no recordings in noise, music, speech"):
        recipe.require(recipe.Settings(folder=tmp_path / "empty"))
    with pytest.raises(UserError, match="three_equations is a recipe of a corpus, not of noise"):
        command.make("three_equations")
    with pytest.raises(UserError, match="noise cannot be called so"):
        command.make("musan", to="builtin")
    with pytest.raises(UserError, match="or the name of noise that `dmlm noise make` made"):
        open_bank(NoiseSettings(set=str(tmp_path / "musan2")))
