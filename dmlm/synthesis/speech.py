"""Synthesise speech with espeak-ng through ctypes: text and a speaker in, samples with phoneme and word times out.

The library and its data come with the wheel `espeakng_loader`; no system package is needed. Properties of the library:

- It is not reproducible within a process: the same sentence spoken twice differs by some milliseconds, because the voice
  source keeps its state. Fresh processes that make the same calls in the same order agree bit by bit, but only if the
  random seed of the library is set: by default it is the time of day, and breathy voices use random numbers.
- It silently replaces an unknown variant of a voice by the plain voice; `say` checks the name first.
- It keeps one voice per process and is not thread-safe.
- It silently truncates the path of its data at 160 bytes; `_short_path` works around that.
"""

import ctypes
import hashlib
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import firwin, resample_poly

from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.errors import UserError, did_you_mean

# values of espeak-ng/speak_lib.h
SYNCHRONOUS = 2
PHONEME_EVENTS, PHONEME_IPA, DONT_EXIT = 0x0001, 0x0002, 0x8000
END, WORD, PHONEME = 0, 1, 7
UTF8 = 1
RATE, VOLUME, PITCH, PITCH_RANGE = 1, 2, 3, 4

SEED = 1
VOLUME_PERCENT = 60  # at 100 some voices clip
LONGEST_PATH = 150  # bytes; the library appends file names within char[160]
WITHOUT_STRESS = str.maketrans("", "", "ˈˌ")
RESPELLED = {"a": "eigh"}  # a single "a" would be read as the article


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # 1-based, in characters
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speaker:
    """A voice of espeak-ng, its speaking rate in words per minute, its pitch and pitch range (0..99)."""

    name: str
    voice: str
    rate_wpm: int
    pitch: int
    pitch_range: int


@dataclass(frozen=True)
class Speech:
    """Synthesised speech: `samples` float32 (N,) at 16 kHz in [-1, 1], with times.

    `phones` are (start in seconds, IPA without stress marks) in order of time; an empty symbol is a pause, and the last
    one marks the end of the speech. `words` are (start in seconds, word); a word that espeak-ng runs into the previous
    one is missing.
    """

    samples: np.ndarray
    phones: tuple[tuple[float, str], ...]
    words: tuple[tuple[float, str], ...]

    @property
    def span_s(self) -> tuple[float, float]:
        """Start of the first phoneme and end of the last one, in seconds."""
        return self.phones[0][0], self.phones[-1][0]


def _pool() -> tuple[Speaker, ...]:
    """Male and female voices in turn. Left out: whispers, robots, unnatural pitches, and the slow Klatt voices."""
    men = ("Gene", "Lee", "Mario", "Michael", "Henrique", "Nguyen", "boris", "m3", "m7", "max", "miguel", "travis")
    women = ("Alicia", "Andrea", "Annie", "anika", "aunty", "belinda", "f2", "f3", "f5", "linda", "shelby", "steph")
    speakers = []
    for number, name in enumerate(name for pair in zip(men, women, strict=True) for name in pair):
        rate_wpm = 150 + (number * 7) % 40  # 150 to 189 words per minute; the paper speaks at 175
        style = dict(rate_wpm=rate_wpm, pitch=38 + (number * 11) % 25, pitch_range=40 + (number * 5) % 20)
        speakers.append(Speaker(name.lower(), f"en-us+{name}", **style))
    return tuple(speakers)


SPEAKERS = _pool()


def _short_path(path: Path) -> Path:
    """Return a path to the same folder that the library does not truncate: itself, or a link in the temporary folder.

    Raises:
        UserError: the path of the temporary folder is too long as well, or the name of the link is taken.
    """
    if len(os.fsencode(path)) <= LONGEST_PATH:
        return path
    link = Path(tempfile.gettempdir()) / f"dmlm-espeak-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    if len(os.fsencode(link)) > LONGEST_PATH:
        raise UserError(
            f"espeak-ng needs paths up to {LONGEST_PATH} bytes, unlike {link}; set TMPDIR to a short folder."
        )
    try:
        link.symlink_to(path, target_is_directory=True)
    except FileExistsError:
        if not link.is_symlink() or os.readlink(link) != str(path):
            raise UserError(f"{link} is in the way of a link to espeak-ng's data; remove it.") from None
    return link


class Espeak:
    """The initialised library. Use `engine()`, since there must be one per process."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise UserError("Speech needs the espeak-ng wheel; install it with: pip install espeakng-loader") from None
        data = _short_path(Path(espeakng_loader.get_data_path()))
        self._variants = frozenset(path.name for path in (data / "voices" / "!v").glob("*"))
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
            ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        options = PHONEME_EVENTS | PHONEME_IPA | DONT_EXIT
        self._rate_hz = self._library.espeak_Initialize(SYNCHRONOUS, 0, os.fsencode(data), options)
        if self._rate_hz <= 0:
            raise UserError(f"espeak-ng cannot read its data in {data}; mend it with: pip install -I espeakng-loader")
        self._callback = _Callback(self._receive)  # keep a reference: ctypes does not
        self._library.espeak_SetSynthCallback(self._callback)
        divisor = int(np.gcd(self._rate_hz, SAMPLE_RATE_HZ))
        self._up, self._down = SAMPLE_RATE_HZ // divisor, self._rate_hz // divisor
        longest = max(self._up, self._down)
        self._window = firwin(20 * longest + 1, 1 / longest, window=("kaiser", 5.0)).astype(np.float32)
        self._blocks: list[np.ndarray] = []
        self._events: list[tuple[int, float, int, str]] = []

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        """Collect a block of audio (pointer to int16) and its events (pointer, ended by END); called by the library."""
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        number = 0
        while (event := events[number]).type != END:
            raw = ctypes.string_at(ctypes.addressof(event.id), 8) if event.type == PHONEME else b""
            symbol = raw.split(b"\0")[0].decode("utf-8", "ignore").translate(WITHOUT_STRESS)
            self._events.append((event.type, event.audio_position / 1000, event.text_position - 1, symbol))
            number += 1
        return 0

    def say(self, text: str, speaker: Speaker) -> Speech:
        """Speak lower-case words and numbers separated by single spaces. Single letters are spoken by their names.

        Raises:
            UserError: the voice is unknown, or the library returned no speech.
        """
        variant = speaker.voice.partition("+")[2]
        if variant and variant not in self._variants:  # the library would silently use the plain voice
            raise UserError(f"espeak-ng has no voice {speaker.voice!r}; {did_you_mean(variant, self._variants)}.")
        if self._library.espeak_SetVoiceByName(speaker.voice.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {speaker.voice!r}; take for instance {SPEAKERS[0].voice}.")
        parameters = {
            RATE: speaker.rate_wpm,
            VOLUME: VOLUME_PERCENT,
            PITCH: speaker.pitch,
            PITCH_RANGE: speaker.pitch_range,
        }
        for parameter, value in parameters.items():
            self._library.espeak_SetParameter(parameter, value, 0)
        self._library.espeak_ng_SetRandSeed(SEED)
        words = text.split()
        spoken = [RESPELLED.get(word, word) for word in words]
        raw = " ".join(spoken).encode() + b"\0"
        self._blocks, self._events = [], []
        self._library.espeak_Synth(raw, len(raw), 0, 1, 0, UTF8, None, None)
        self._library.espeak_Synchronize()
        phones = tuple((start_s, symbol) for kind, start_s, _, symbol in self._events if kind == PHONEME)
        if not self._blocks or not any(symbol for _, symbol in phones):
            raise UserError(f"espeak-ng says nothing for {text!r}; give words or numbers.")
        samples = np.concatenate(self._blocks).astype(np.float32) / 32768
        samples = resample_poly(samples, self._up, self._down, window=self._window)
        return Speech(samples.astype(np.float32), phones, self._word_times(words, spoken))

    def _word_times(self, words: list[str], spoken: list[str]) -> tuple[tuple[float, str], ...]:
        """Start of each word; a number has several events, a word run into the previous one has none and is left out."""
        offsets = np.cumsum([0] + [len(word) + 1 for word in spoken[:-1]])
        starts_s: dict[int, float] = {}
        for kind, start_s, position, _ in self._events:
            if kind == WORD:
                starts_s.setdefault(int(np.searchsorted(offsets, position, side="right")) - 1, start_s)
        return tuple((starts_s[index], word) for index, word in enumerate(words) if index in starts_s)


@cache
def engine() -> Espeak:
    """Return the synthesiser of this process.

    Raises:
        UserError: its wheel is not installed, or its data cannot be read.
    """
    return Espeak()
