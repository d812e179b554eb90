"""The built-in noise bank: synthetic noise, music and babble, for machines without MUSAN.

`folder/{train,val,test}/{noise,music,babble}/NN.flac`, 16 kHz mono, 12 s each. The parts never share a seed, and their
babble shares neither a speaker nor a sentence.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dmlm import files, known_files, processes
from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.errors import UserError
from dmlm.seeding import generator
from dmlm.synthesis.speech import SPEAKERS, engine

VERSION = "2"
LICENCE = "CC0-1.0"
FILES = {"train": 6, "val": 3, "test": 6}  # number of files of each kind
DURATION_S = 12.0
SAMPLES = int(DURATION_S * SAMPLE_RATE_HZ)
PEAK = 0.7  # largest absolute sample of a file
SPECTRA = ("white", "pink", "brown", "hum", "hiss", "wind")
PROGRESSIONS = ((0, 5, 3, 4), (0, 3, 4, 0), (0, 4, 5, 3), (5, 3, 0, 4))  # degrees of the scale
MAJOR = (0, 2, 4, 5, 7, 9, 11)
SENTENCES = (
    "the morning train was late again and nobody knew the reason",
    "we could have lunch by the river if the weather stays dry",
    "my sister bought a yellow bicycle from the shop on the corner",
    "please remember to water the plants before you leave the house",
    "the children were building a castle out of wet sand",
    "he told me that the film was much better than the book",
    "there is fresh bread on the table and soup in the kitchen",
    "they walked along the harbour and watched the boats come in",
    "can you tell me where the nearest post office is",
    "the old clock in the hall has not worked for many years",
    "she plays the violin in a small orchestra on thursday evenings",
    "it was so quiet that you could hear the snow falling outside",
    "somebody left an umbrella under the chair in the waiting room",
    "the cat sleeps all day and hunts in the garden at night",
    "our neighbours are planning a long journey through the mountains",
    "I would rather stay at home and read something interesting",
    "the museum opens at nine and closes late in the evening",
    "two men carried a heavy piano up the narrow stairs",
)


def _noise(part: str, number: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise (SAMPLES,) with one of six spectra; `rng` varies each."""
    kind = SPECTRA[number * len(SPECTRA) // FILES[part]]
    rate_hz = np.maximum(np.fft.rfftfreq(SAMPLES, 1 / SAMPLE_RATE_HZ), 20.0)
    slope = {"white": 0.0, "pink": 0.5, "brown": 1.0, "hum": 0.7, "hiss": 0.0, "wind": 0.9}[kind]
    gain = rate_hz ** -(slope * rng.uniform(0.9, 1.1))
    if kind == "hum":  # a motor: spectral lines at the multiples of a low tone
        line = np.abs((rate_hz / rng.uniform(45, 130) + 0.5) % 1 - 0.5)
        gain = gain * (1 + 12 * np.exp(-((line / 0.01) ** 2)))
    if kind == "hiss":
        gain = np.exp(-(((rate_hz - rng.uniform(3000, 5500)) / rng.uniform(900, 1800)) ** 2)) + 0.02
    gain[np.fft.rfftfreq(SAMPLES, 1 / SAMPLE_RATE_HZ) < 20] = 0
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(SAMPLES)) * gain, SAMPLES)
    if kind == "wind":  # gusts
        time_s = np.arange(SAMPLES) / SAMPLE_RATE_HZ
        gusts = sum(np.sin(2 * np.pi * rng.uniform(0.1, 0.7) * time_s + rng.uniform(0, 6.3)) for _ in range(3))
        noise = noise * (1.2 + gusts / 3)
    return noise


def _note(pitch: float, seconds: float, bright: float) -> np.ndarray:
    """A plucked tone at a MIDI pitch: harmonics that decay, higher ones faster."""
    time_s = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    base_hz = 440.0 * 2 ** ((pitch - 69) / 12)
    harmonics = range(1, min(9, int(7500 / base_hz) + 1))
    tone = np.zeros_like(time_s)
    for h in harmonics:
        tone += bright ** (h - 1) * np.exp(-time_s * (1.5 + h)) * np.sin(2 * np.pi * base_hz * h * time_s)
    return tone * np.minimum(1, time_s / 0.008) * np.minimum(1, (seconds - time_s) / 0.03)


def _music(part: str, number: int, rng: np.random.Generator) -> np.ndarray:
    """Music (SAMPLES,): chords, a bass, a melody and a beat."""
    beat_s, key, bright = 60 / rng.uniform(85, 150), rng.integers(50, 62), rng.uniform(0.35, 0.8)
    progression = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    music = np.zeros(SAMPLES + 4 * SAMPLE_RATE_HZ)

    def play(at_s: float, sound: np.ndarray, level: float) -> None:
        start = int(at_s * SAMPLE_RATE_HZ)
        music[start : start + len(sound)] += level * sound[: len(music) - start]

    def pitch(degree: int) -> int:
        return int(key) + MAJOR[degree % 7] + 12 * (degree // 7)

    degree = 7
    for beat in range(int(DURATION_S / beat_s) + 1):
        root = progression[beat // 4 % len(progression)]
        if beat % 4 == 0:
            for third in (0, 2, 4):
                play(beat * beat_s, _note(pitch(root + third), 4 * beat_s, bright), 0.5)
        play(beat * beat_s, _note(pitch(root) - 12, beat_s, bright), 0.7 if beat % 2 == 0 else 0.35)
        for half in range(2):
            if rng.random() < 0.75:
                degree = int(np.clip(degree + rng.integers(-2, 3), 3, 13))
                note = _note(pitch(degree) + 12, beat_s * rng.choice([0.5, 1.0]), bright)
                play((beat + half / 2) * beat_s, note, 0.8)
        hit = rng.standard_normal(SAMPLE_RATE_HZ // 8) * np.exp(-np.arange(SAMPLE_RATE_HZ // 8) / 400)
        play(beat * beat_s, hit, 0.25)
    return music[:SAMPLES]


def _babble(part: str, number: int, rng: np.random.Generator) -> np.ndarray:
    """Babble (SAMPLES,): six to eight voices that talk at the same time without a pause."""
    first = [*FILES].index(part)  # every third speaker and sentence, so that the parts share none
    speakers, sentences = SPEAKERS[first :: len(FILES)], SENTENCES[first :: len(FILES)]
    babble = np.zeros(SAMPLES)
    for voice in rng.choice(len(speakers), int(rng.integers(6, 9)), replace=False):
        order = rng.permutation(len(sentences))
        pieces: list[np.ndarray] = []
        length = 0
        while length < SAMPLES + SAMPLE_RATE_HZ:
            pieces.append(engine().say(sentences[order[len(pieces) % len(order)]], speakers[voice]).samples)
            length += len(pieces[-1])
        stream = np.concatenate(pieces)
        stream = stream[rng.integers(length - SAMPLES) :][:SAMPLES]
        babble += stream / np.sqrt(np.mean(stream**2)) * rng.uniform(0.6, 1.0)
    return babble


KINDS: dict[str, Callable[[str, int, np.random.Generator], np.ndarray]] = {
    "noise": _noise,
    "music": _music,
    "babble": _babble,
}


def _make(job: tuple[str, str, str, int]) -> None:
    """Write all files of one part and kind. Must run in a fresh process, since the synthesiser keeps state."""
    import soundfile

    folder, part, kind, seed = job
    for number in range(FILES[part]):
        samples = KINDS[kind](part, number, generator("bank", seed, part, kind, number))
        path = Path(folder) / part / kind / f"{number:02d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples * (PEAK / np.abs(samples).max()), SAMPLE_RATE_HZ, subtype="PCM_16")


def build_bank(folder: Path, seed: int = 0) -> None:
    """Write the noise bank in a few seconds, in place of an older one; `bank.json`, with all digests, is written last."""
    (folder / "bank.json").unlink(missing_ok=True)
    for part in FILES:
        shutil.rmtree(folder / part, ignore_errors=True)
    jobs = [(str(folder), part, kind, seed) for kind in reversed(KINDS) for part in FILES]  # slowest jobs first
    for _ in processes.run(_make, jobs):
        pass
    names = [f"{part}/{kind}/{number:02d}.flac" for part in FILES for kind in KINDS for number in range(FILES[part])]
    card = {
        **{"version": VERSION, "licence": LICENCE, "seed": seed, "kinds": list(KINDS)},
        "files": {name: files.digest(folder / name) for name in names},
    }
    files.write_text(folder / "bank.json", json.dumps(card, indent=2) + "\n")


def is_built(folder: Path) -> bool:
    """Whether the bank is made, by this version."""
    return _card(folder).get("version") == VERSION


def check_bank(folder: Path) -> None:
    """Check that the files of a bank are those that were made.

    Raises:
        UserError: some are lost or changed.
    """
    made = _card(folder)["files"]
    found = known_files.digests(folder / name for name in made)
    if wrong := [name for name, digest in made.items() if found.get(folder / name) != digest]:
        raise UserError(f"{folder}: {', '.join(wrong)} lost or changed; remove the folder, and it is made again.")


def _card(folder: Path) -> dict[str, Any]:
    """Return `bank.json`, or nothing where there is none or a damaged one: then the bank is made again."""
    try:
        card = json.loads((folder / "bank.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}
