"""Three Equations, a synthetic corpus: a page shows three equations, and a speaker reads one or two of them aloud.

It follows the 3-Equations corpus: the same grammar of equations, probabilities, page of 450 x 200 px and second of
silence between two equations. Differences: espeak-ng speaks with 24 voices instead of one, the mouth is drawn instead of
synthesised from a portrait, and the page shows no base of a logarithm, since none is spoken.

    equation = term (plus | minus) term equals term           term = [log of] [coefficient] [letter [to the power of n]]

A fraction that reduces to a whole number is spoken and drawn over 1. The splits share speakers. They share no
transcripts, unless the grammar has too few.
"""

import json
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dmlm import files
from dmlm.corpus.manifest import Corpus, Utterance, write_corpus
from dmlm.corpus.media import SAMPLE_RATE_HZ, write_video
from dmlm.seeding import generator
from dmlm.synthesis import blocks
from dmlm.synthesis.mouth import MouthStyle, render
from dmlm.synthesis.page import draw_page, lay_out
from dmlm.synthesis.speech import SPEAKERS, Speaker, engine

NAME = "three_equations"
VERSION = "1"
LICENCE = "CC0-1.0"
FRAME = SAMPLE_RATE_HZ // 25  # samples per video frame; a clip is padded to full frames
PEAK = 0.7  # largest absolute sample of a clip
PAGE = (450, 200)  # width and height in pixels
TRIES = 200  # draws to find a transcript that is not used yet


class Settings(BaseModel):
    """Everything that determines the corpus. Equal settings give the same corpus, byte by byte."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: int = Field(default=8000, ge=1)
    val: int = Field(default=1000, ge=1)
    test: int = Field(default=1000, ge=1)
    equations_on_page: int = Field(default=3, ge=1, le=4)
    equations_read: int = Field(default=2, ge=1, le=4)
    letters: str = Field(default="abcdefghijklmnopqrstuvwxyz", pattern="^[a-z]+$")
    largest: int = Field(default=50, ge=3, le=999)  # whole numbers are 2..largest, fractions 1..largest over 2..largest
    largest_exponent: int = Field(default=10, ge=2, le=99)
    p_no_letter: float = Field(default=0.33, ge=0, le=1)
    p_fraction: float = Field(default=0.3, ge=0, le=1)
    p_no_number: float = Field(default=0.3, ge=0, le=1)  # given a letter and no fraction
    p_exponent: float = Field(default=0.2, ge=0, le=1)  # given a letter
    p_log: float = Field(default=0.1, ge=0, le=1)  # half of them around the letter, half around number and letter
    pause_s: float = Field(default=1.0, ge=0.1, le=10)  # between two equations
    silence_s: tuple[float, float] = (0.1, 0.3)  # before and after, drawn from this range
    speakers: int = Field(default=len(SPEAKERS), ge=1, le=len(SPEAKERS))
    seed: int = 0
    mouth: MouthStyle = MouthStyle()

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        if self.equations_read > self.equations_on_page:
            raise ValueError(
                f"equations_read ({self.equations_read}) must not exceed equations_on_page ({self.equations_on_page})"
            )
        if not 0 <= self.silence_s[0] <= self.silence_s[1]:
            raise ValueError(f"silence_s {self.silence_s} must be a range: least, most")
        return self


SMALL: dict[str, Any] = dict(
    letters="fmrwxy", largest=12, largest_exponent=4, equations_read=1, speakers=4,
    p_fraction=0.15, p_exponent=0.1, p_log=0.05,
)  # fmt: skip
PRESETS = {
    "smoke": Settings(train=64, val=8, test=16, **SMALL),
    "tiny": Settings(train=3000, val=100, test=300, **SMALL),
    "paper": Settings(),
}


@dataclass(frozen=True)
class Term:
    """`[log] c v^e` with c = upper / lower; `log` is "", "letter" (around v^e) or "all" (around c v^e)."""

    upper: int | None
    lower: int | None
    letter: str
    exponent: int | None
    log: str

    def format(self, separator: str, power: str, log: str, fraction: str) -> str:
        """Format the term with patterns for a fraction `{u} {l}`, a power `{v} {e}` and a logarithm `{x}`.

        `separator` joins the coefficient and the letter.
        """
        coefficient = "" if self.upper is None else str(self.upper)
        if self.lower is not None:
            coefficient = fraction.format(u=self.upper, l=self.lower)
        letter = self.letter if self.exponent is None else power.format(v=self.letter, e=self.exponent)
        if self.log == "letter":
            letter = log.format(x=letter)
        term = separator.join(part for part in (coefficient, letter) if part)
        return log.format(x=term) if self.log == "all" else term


@dataclass(frozen=True)
class Equation:
    """`left + right = answer` or `left - right = answer`, as words, as LaTeX, and as a line of text."""

    left: Term
    sign: str
    right: Term
    answer: Term

    def _format(self, plus: str, minus: str, equals: str, *patterns: str) -> str:
        """Format the equation; `patterns` are the arguments of `Term.format`."""
        left, right, answer = (term.format(*patterns) for term in (self.left, self.right, self.answer))
        return f"{left} {plus if self.sign == '+' else minus} {right} {equals} {answer}"

    @property
    def spoken(self) -> str:
        """As it is spoken: lower-case words and numbers separated by spaces."""
        return self._format("plus", "minus", "equals", " ", "{v} to the power of {e}", "log of {x}", "{u} over {l}")

    @property
    def latex(self) -> str:
        """As it is drawn on the page."""
        return self._format("+", "-", "=", "", "{v}^{{{e}}}", "\\log({x})", "\\frac{{{u}}}{{{l}}}")

    @property
    def line(self) -> str:
        """As a perfect OCR engine would read it."""
        return self._format("+", "-", "=", "", "{v}^{e}", "log({x})", "{u}/{l}")


def draw_term(settings: Settings, rng: np.random.Generator) -> Term:
    """Draw a term with the probabilities in the settings; fractions are reduced."""
    upper: int | None = int(rng.integers(2, settings.largest + 1))
    lower: int | None = None
    letter, exponent, log = "", None, ""
    if rng.random() >= settings.p_no_letter:
        letter = settings.letters[rng.integers(len(settings.letters))]
        if rng.random() < settings.p_exponent:
            exponent = int(rng.integers(2, settings.largest_exponent + 1))
    if rng.random() < settings.p_fraction:
        numerator, denominator = int(rng.integers(1, settings.largest + 1)), int(rng.integers(2, settings.largest + 1))
        divisor = gcd(numerator, denominator)
        upper, lower = numerator // divisor, denominator // divisor
    elif letter and rng.random() < settings.p_no_number:
        upper = None
    if rng.random() < settings.p_log:
        log = "all" if rng.random() < 0.5 else "letter" if letter else ""
    return Term(upper, lower, letter, exponent, log)


def draw_equation(settings: Settings, rng: np.random.Generator) -> Equation:
    """Draw an equation of three terms; it need not be true."""
    left, right, answer = (draw_term(settings, rng) for _ in range(3))
    return Equation(left, "+" if rng.random() < 0.5 else "-", right, answer)


def plan(settings: Settings) -> list[blocks.Record]:
    """Plan what each utterance shows and speaks, in manifest order.

    The test split is drawn first, so that the training split avoids its transcripts.
    """
    transcripts: set[str] = set()
    items = {}
    for split in ("test", "val", "train"):
        for number in range(getattr(settings, split)):
            name = f"{split}-{number:05d}"
            rng = generator(settings.seed, name, "equations")
            for _ in range(TRIES):
                page = [draw_equation(settings, rng) for _ in range(settings.equations_on_page)]
                spoken = [page[i].spoken for i in rng.permutation(len(page))[: settings.equations_read]]
                if " ".join(spoken) not in transcripts:
                    break
            transcripts.add(" ".join(spoken))
            speaker = int(rng.integers(settings.speakers))
            latex, lines = [equation.latex for equation in page], [equation.line for equation in page]
            items[name] = {
                "id": name, "split": split, "spoken": spoken, "latex": latex, "lines": lines, "speaker": speaker
            }  # fmt: skip
    return sorted(items.values(), key=lambda item: (("train", "val", "test").index(item["split"]), item["id"]))


def make_block(card: str, items: list[blocks.Record], folder: Path) -> list[blocks.Record]:
    """Make the media of some utterances, in order; called in a fresh process by `blocks.make`."""
    settings = Settings.model_validate(json.loads(card)["settings"])
    return [_make(settings, item, folder) for item in items]


def _make(settings: Settings, item: blocks.Record, folder: Path) -> blocks.Record:
    name, speaker = item["id"], SPEAKERS[item["speaker"]]
    rng = generator(settings.seed, name, "silence")
    samples, phones, spans = _speak(settings, item["spoken"], speaker, rng)
    duration_s = len(samples) / SAMPLE_RATE_HZ
    frames = render(phones, duration_s, speaker.name, settings.mouth, generator(settings.seed, name, "mouth"))
    page = draw_page(item["latex"], generator(settings.seed, name, "page"), *PAGE)
    order = _top_to_bottom(item["latex"], generator(settings.seed, name, "page"))
    names = {"audio": f"audio/{name}.flac", "lips": f"lips/{name}.mp4", "image": f"image/{name}.png"}
    _save(folder, names, samples, frames, page)
    text, ocr = " ".join(item["spoken"]), " ".join(item["lines"][index] for index in order)
    utterance = {"id": name, "split": item["split"], "text": text, **names, "ocr": ocr, "speaker": speaker.name}
    utterance |= {"duration_s": duration_s, "spans": spans}
    return {"files": list(names.values()), "utterance": utterance, "phones": phones}


def _speak(
    settings: Settings, sentences: list[str], speaker: Speaker, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[float, str]], list[tuple[float, float]]]:
    """Speak the sentences of a clip: samples (N,), phones, and the span of each sentence; times in seconds."""
    least, most = (round(1000 * bound_s) for bound_s in settings.silence_s)
    before, after = (int(ms) * SAMPLE_RATE_HZ // 1000 for ms in rng.integers(least, most, 2, endpoint=True))
    pieces: list[np.ndarray] = [np.zeros(before, np.float32)]
    phones: list[tuple[float, str]] = []
    spans = []
    for number, sentence in enumerate(sentences):
        if number:
            pieces.append(np.zeros(round(settings.pause_s * SAMPLE_RATE_HZ), np.float32))
        start_s = sum(map(len, pieces)) / SAMPLE_RATE_HZ
        speech = engine().say(sentence, speaker)
        phones += [(round(start_s + at_s, 5), symbol) for at_s, symbol in speech.phones]
        spans.append((round(start_s + speech.span_s[0], 5), round(start_s + speech.span_s[1], 5)))
        pieces.append(speech.samples)
    length = sum(map(len, pieces)) + after
    samples = np.concatenate([*pieces, np.zeros(after + -length % FRAME, np.float32)])
    return samples * (PEAK / np.abs(samples).max()), phones, spans


def _top_to_bottom(latex: list[str], rng: np.random.Generator) -> list[int]:
    """Indices of the equations from top to bottom. `rng` must equal that of `draw_page`, so that the layout is the same."""
    corners = [corner for corner, _ in lay_out(latex, rng, *PAGE)]
    return sorted(range(len(latex)), key=lambda index: corners[index])


def _save(folder: Path, names: dict[str, str], samples: np.ndarray, frames: np.ndarray, page: np.ndarray) -> None:
    import soundfile
    from PIL import Image

    soundfile.write(folder / names["audio"], samples, SAMPLE_RATE_HZ, subtype="PCM_16")
    write_video(folder / names["lips"], frames)
    Image.fromarray(page).save(folder / names["image"], compress_level=1)


def prepare(settings: Settings, folder: Path, workers: int | None = None) -> Corpus:
    """Make the corpus in a folder, or the missing part of it.

    Args:
        settings: for instance `PRESETS["tiny"]`
        folder: gets audio, lips, image, phones.jsonl, manifest.jsonl and, last, corpus.json
        workers: number of processes; the result does not depend on it
    """
    card: dict[str, Any] = {"name": NAME, "version": VERSION, "licence": LICENCE, "language": "en"}
    card["settings"] = settings.model_dump(mode="json")
    if (old := folder / "corpus.json").is_file() and any(
        json.loads(old.read_text("utf-8")).get(key) != value for key, value in card.items()
    ):
        old.unlink()  # it describes media that are about to be replaced
    for kind in ("audio", "lips", "image"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    records = blocks.make(Path(__file__), json.dumps(card), plan(settings), folder, workers)
    lines = [json.dumps({"id": r["utterance"]["id"], "phones": r["phones"]}, ensure_ascii=False) for r in records]
    files.write_text(folder / "phones.jsonl", "\n".join(lines) + "\n")
    return write_corpus(folder, [Utterance.model_validate(record["utterance"]) for record in records], card)
