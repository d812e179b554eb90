"""The page of `dmlm corpus look`: one HTML file with its media inside, on which everything with a clock shares one axis.

Places on the time axis are per cent of its length, so the page fits any width.
"""

import base64
from collections import Counter
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np

import dmlm
from dmlm import snr
from dmlm.modalities import FRAMES_HZ, MODALITIES, SAMPLE_RATE_HZ
from dmlm.results.drawing import COLOURS
from dmlm.results.look import PAGE, Look, PackedSequence, Stream, Transcript
from dmlm.score.normalisers import of_stored
from dmlm.score.wer import word_pairs

TEMPLATE = "look.html.j2"
HUES = dict(zip("ALIOT", (COLOURS[1], COLOURS[3], COLOURS[4], COLOURS[5], COLOURS[2]), strict=True))
WINDOW, HOP = 400, 160  # samples of the spectrogram: 25 and 10 ms
FFT = 512
RANGE_DB = 70.0  # below the loudest point of both spectrograms; what is quieter is white
BINS = 1600  # columns of a waveform
COLUMNS = 3000  # of a spectrogram, at most
FILM_FRAMES = 1500  # lip frames that the axis can show, at most
FILM_HEIGHT, FILM_COLUMNS = 64, 30  # pixels; pictures side by side in the film
STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)  # between ticks
TICKS = 12  # at most
GOLDEN = 0.6180339887  # spreads neighbouring IDs over the colours


def render(look: Look, folder: Path) -> str:
    """Return the page; `folder` holds the media files of the look."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    frames = len(look.lips) if look.lips is not None else 0
    end_s = max(len(look.sound.clean) / SAMPLE_RATE_HZ, frames / FRAMES_HZ)
    clocked = [stream for stream in look.streams.values() if stream.rate_hz]
    return environment.get_template(TEMPLATE).render(
        look=look,
        noisy=snr.noisy(look.sound.snr_db_measured),
        facts=_facts(look),
        end_s=end_s,
        ticks=_ticks(end_s),
        spans=[(100 * a / end_s, 100 * (b - a) / end_s) for a, b in look.sound.noisy_spans_s],
        spectrograms=_spectrograms(look, end_s),
        waves=_waves(look, end_s),
        wave_width=100 * len(look.sound.clean) / SAMPLE_RATE_HZ / end_s,
        clocked=[_cells(stream, end_s) for stream in clocked],
        unclocked=[_cells(stream, end_s) for stream in look.streams.values() if not stream.rate_hz],
        film=_film(look.lips),
        media={path.name: _url(path) for path in sorted(folder.iterdir()) if path.suffix in TYPES},
        transcripts=[_marked(transcript) for transcript in look.transcripts],
        sequences=[_sequence(sequence) for sequence in look.sequences],
        names=sorted(path.name for path in folder.iterdir() if path.name != PAGE),
        version=dmlm.__version__,
        hues=HUES,
        modalities=MODALITIES,
    )


TYPES = {".wav": "audio/wav", ".mp4": "video/mp4", ".png": "image/png"}


def _url(path: Path) -> str:
    return _data_url(path.read_bytes(), TYPES[path.suffix])


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _facts(look: Look) -> list[tuple[str, str]]:
    utterance, file = look.utterance, look.sound.noise_file
    facts = [("corpus", f"{look.corpus}, split {utterance.split}"), ("opened as", look.source)]
    facts.append(("speaker", utterance.speaker or "not recorded"))
    facts.append(("length", f"{len(look.sound.clean) / SAMPLE_RATE_HZ:.2f} s"))
    if utterance.spans:
        facts.append(("spoken", ", ".join(f"{start:.2f} to {end:.2f} s" for start, end in utterance.spans)))
    if file is None:
        return [*facts, ("noise", "none")]
    places = ", ".join(f"{start:.2f} to {end:.2f} s" for start, end in look.sound.noisy_spans_s)
    part = look.condition.noise.placement.replace("_", " ")
    measured_db = round(look.sound.snr_db_measured, 2) + 0.0  # no -0.00
    return [
        *facts,
        ("SNR", f"{measured_db:.2f} dB measured, {look.condition.snr_db:g} dB asked for"),
        (
            "noise",
            f"{file.parent.name}/{file.name}, {part} of {'each sentence' if utterance.spans else 'the clip'}: {places}",
        ),
    ]


def _ticks(end_s: float) -> list[tuple[str, float]]:
    """Return label and place (per cent) of the ticks of the time axis."""
    step_s = next((step for step in STEPS_S if end_s / step <= TICKS), STEPS_S[-1])
    return [(f"{number * step_s:g}", 100 * number * step_s / end_s) for number in range(int(end_s / step_s) + 1)]


def _spectrograms(look: Look, end_s: float) -> list[dict[str, Any]]:
    """Return title, picture and width (per cent of the axis) of each spectrogram; all have one scale of grey."""
    tracks = {name: samples for name, samples in look.sound.tracks.items() if name != "noise"}
    hop = max(HOP, -(-len(look.sound.clean) // COLUMNS))
    levels_db = {name: _levels_db(samples, hop) for name, samples in tracks.items()}
    top_db = max(float(levels.max()) for levels in levels_db.values())
    rows = []
    for name, levels in levels_db.items():
        grey = 255 * np.clip((top_db - levels) / RANGE_DB, 0, 1)
        width = 100 * levels.shape[1] * hop / SAMPLE_RATE_HZ / end_s
        rows.append({"title": f"{name.capitalize()} audio", "url": _picture(grey.astype(np.uint8)), "width": width})
    return rows


def _levels_db(samples: np.ndarray, hop: int) -> np.ndarray:
    """Return the spectrogram in dB, (257, columns): high frequencies first; column k covers samples k * hop to (k + 1) * hop."""
    columns = -(-len(samples) // hop)
    padded = np.pad(samples, (WINDOW // 2, WINDOW + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[hop // 2 :: hop][:columns]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), FFT)) ** 2
    return np.asarray(10 * np.log10(power + 1e-12).T[::-1])


def _picture(pixels: np.ndarray, kind: str = "PNG") -> str:
    from PIL import Image

    content = BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return _data_url(content.getvalue(), f"image/{kind.lower()}")


def _waves(look: Look, end_s: float) -> list[tuple[str, str]]:
    """Return name and SVG points of the waveforms that are drawn, the one behind first: x is 0 to `BINS`, y -1 to 1 upwards."""
    names = [name for name in ("noisy", "clean") if name in look.sound.tracks]
    return [(name, _outline(look.sound.tracks[name])) for name in names]


def _outline(samples: np.ndarray) -> str:
    edges = np.linspace(0, len(samples), min(BINS, len(samples)) + 1).astype(int)[:-1]
    highest, lowest = np.maximum.reduceat(samples, edges), np.minimum.reduceat(samples, edges)
    x = np.arange(len(edges)) * BINS / len(edges)
    points = [*zip(x, highest, strict=True), *reversed([*zip(x, lowest, strict=True)])]
    return " ".join(f"{at:.1f},{-value:.3f}" for at, value in points)


def _film(frames: np.ndarray | None) -> dict[str, Any] | None:
    """Return the lip frames, made small, in rows of one picture, and how many there are of what rate."""
    if frames is None:
        return None
    from PIL import Image

    every = -(-len(frames) // FILM_FRAMES)
    shown, (height, width) = frames[::every], frames.shape[1:]
    small = max(1, round(FILM_HEIGHT * width / height)), FILM_HEIGHT
    film = Image.new("L", (FILM_COLUMNS * small[0], -(-len(shown) // FILM_COLUMNS) * small[1]))
    for number, frame in enumerate(shown):
        place = number % FILM_COLUMNS * small[0], number // FILM_COLUMNS * small[1]
        film.paste(Image.fromarray(frame).resize(small), place)
    facts = {"count": len(shown), "rate_hz": FRAMES_HZ / every, "aspect": small[0] / small[1]}
    return {"url": _picture(np.asarray(film), "JPEG"), "columns": FILM_COLUMNS, **facts}


def _cells(stream: Stream, end_s: float) -> dict[str, Any]:
    """Return what the template draws of a stream: title, width of the axis in per cent, cells, and rate."""
    name = MODALITIES[stream.letter].name
    rate = f", {stream.rate_hz:g} a second" if stream.rate_hz else ""
    distinct = len({*stream.ids.tolist()})
    cells = []
    for number, token in enumerate(stream.ids.tolist()):
        time = f", {number / stream.rate_hz:.2f} to {(number + 1) / stream.rate_hz:.2f} s" if stream.rate_hz else ""
        piece = stream.pieces[number] if stream.pieces else ""
        hint = (
            f"{stream.letter} {token}"
            + (f" {piece!r}" if piece else "")
            + f", token {number + 1} of {len(stream.ids)}{time}"
        )
        cells.append({"text": piece or str(token), "hint": hint, **_colour(token)})
    return {
        "letter": stream.letter,
        "title": f"{stream.letter}, {name}",
        "about": f"{len(cells)} tokens{rate}, {distinct} different, of {stream.vocab_size:,}; {stream.encoder}",
        "width": 100 * len(cells) / stream.rate_hz / end_s if stream.rate_hz else 100.0,
        "rate_hz": stream.rate_hz,
        "ids": stream.ids.tolist(),
        "text": stream.text,
        "cells": cells,
    }


def _colour(token: int) -> dict[str, Any]:
    """Return the colour of an ID, of a scale that people with any colour vision see alike, and whether it is dark."""
    red, green, blue, _ = matplotlib.colormaps["cividis"](token * GOLDEN % 1.0)
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
    return {"colour": matplotlib.colors.to_hex((red, green, blue)), "dark": dark}


def _marked(transcript: Transcript) -> dict[str, Any]:
    """Return a transcript word by word, each with what is wrong with it."""
    result = transcript.result
    words = []
    for left, right in word_pairs(result.reference, result.hypothesis, of_stored(transcript.normaliser)):
        kind = "" if left == right else "S" if left and right else "D" if left else "I"
        words.append({"kind": kind, "word": right or left, "instead": left})
    return {"transcript": transcript, "words": words, "errors": result.errors, "of": result.reference_words}


def _sequence(sequence: PackedSequence) -> dict[str, Any]:
    """Return what the template draws of a packed sequence."""
    total, roles = len(sequence.packed), sequence.roles
    cells = []
    for position, (token, role, name) in enumerate(
        zip(sequence.packed.ids.tolist(), roles, sequence.names, strict=True)
    ):
        is_unit = role and name.startswith(f"<{role}_")
        shown = name[3:-1] if is_unit else name
        where = f"position {position}, ID {token}, {name!r}" + (
            f", counts as {role}" if role else ", counts for nothing"
        )
        cells.append({"role": role, "text": shown, "hint": where})
    return {
        "notation": sequence.template.notation,
        "total": total,
        "vocabulary_size": sequence.vocabulary_size,
        "counts": _counts(roles),
        "segments": [(role, 100 * (end - start) / total) for role, start, end in sequence.segments()],
        "cells": cells,
    }


def _counts(roles: Iterable[str]) -> list[tuple[str, int]]:
    """Return how many positions have each role, in their order; those of tags under an empty letter, last."""
    counts = Counter(roles)
    tags = counts.pop("", 0)
    return [*counts.items(), ("", tags)]
