"""Render a talking mouth from phonemes: 25 frames a second, 96 x 96 grey pixels.

Filled polygons in sub-pixel coordinates are blurred and get camera noise. The picture is not realistic, but it shows what
a lip reader uses (opening, width, rounding, teeth, tongue) and hides the same phonemes that a real mouth hides.

Shapes: T frames, K points along a lip, 96 x 96 pixels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import cv2
import numpy as np

from dmlm.synthesis.viseme import movement

FRAMES_HZ = 25
SIZE = 96
POINTS = 13  # K
SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates
NOISE_BANK = 1 << 18  # samples of camera noise


@dataclass(frozen=True)
class MouthStyle:
    """How hard the mouth is to read. A corpus recipe may set every field."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    coarticulation_s: float = 0.022  # time constant: how far neighbouring visemes blend
    jitter: float = 0.05  # error of each target, relative to its parameter's range
    effort_least: float = 0.9  # each utterance draws its articulation effort from this to 1
    sway_px: float = 0.4  # slow movement of the head
    face_variation: float = 0.6  # difference between speakers; 0: all look the same
    contrast: float = 1.0  # of lips, teeth and tongue against the skin
    light_drift: float = 1.5  # slow change of brightness, grey levels
    blur_px: float = 0.6  # of the lens, standard deviation
    noise: float = 1.5  # of the camera, standard deviation in grey levels

    def __post_init__(self) -> None:
        if self.coarticulation_s <= 0:
            raise ValueError(f"coarticulation_s must be above 0, not {self.coarticulation_s}")
        for field, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{field} must not be negative, not {value}")
        if self.effort_least > 1:
            raise ValueError(f"effort_least must not exceed 1, not {self.effort_least}")


@dataclass(frozen=True)
class Face:
    """The looks of a speaker: sizes in pixels, tones in grey levels."""

    x: float
    y: float
    half_width: float
    upper_lip: float
    lower_lip: float
    bow: float  # depth of the cupid's bow, as a fraction of the upper lip
    drop: float  # how far the lower lip falls when the mouth is wide open
    slant: float  # radians
    skin: float
    lip: float
    cavity: float
    teeth: float
    tongue: float
    light_x: float  # grey levels from one side of the picture to the other
    light_y: float
    beard: float

    @classmethod
    def of(cls, speaker: str, variation: float) -> "Face":
        """Return the face of a speaker name; with variation 0 all faces are equal."""
        seed = int.from_bytes(hashlib.sha256(speaker.encode()).digest()[:8], "big")
        z = np.random.default_rng(seed).uniform(-1.0, 1.0, 16) * variation
        skin = 165 + 40 * z[8]
        return cls(
            x=48 + 3 * z[0],
            y=44 + 3 * z[1],
            half_width=27 + 3 * z[2],
            upper_lip=6.0 + 1.5 * z[3],
            lower_lip=8.0 + 1.8 * z[4],
            bow=0.28 + 0.16 * z[5],
            drop=25 + 3 * z[6],
            slant=0.04 * z[7],
            skin=skin,
            lip=skin * (0.66 + 0.07 * z[9]),
            cavity=28 + 10 * z[10],
            teeth=min(235.0, skin * 0.5 + 130 + 12 * z[11]),
            tongue=skin * 0.47 + 8 * z[12],
            light_x=30 * z[13],
            light_y=-18 + 12 * z[14],
            beard=max(0.0, 18 * z[15]),
        )


def frame_count(duration_s: float) -> int:
    """Number of frames of a clip: one for each started 40 ms, at least one.

    >>> frame_count(2.0), frame_count(2.001)
    (50, 51)
    """
    return max(1, int(np.ceil(duration_s * FRAMES_HZ - 1e-6)))


def render(
    phones: Sequence[tuple[float, str]], duration_s: float, speaker: str, style: MouthStyle, rng: np.random.Generator
) -> np.ndarray:
    """Render the mouth that speaks these phones, uint8 (T, 96, 96); frame k shows the time (k + 1/2) / 25 s.

    Args:
        phones: (start in seconds, IPA symbol) in order of time; an empty symbol is a pause
        duration_s: of the clip
        speaker: whose face
        style: how hard it is to read
        rng: draws articulation errors, effort, sway, light and camera noise
    """
    count = frame_count(duration_s)
    times_s = (np.arange(count) + 0.5) / FRAMES_HZ
    moves = movement(phones, duration_s, times_s, style.coarticulation_s, style.jitter, rng)
    effort = rng.uniform(style.effort_least, 1.0)
    moves[:, :3] *= effort
    sway = _slow(times_s, 3, rng)  # (T, 3)
    face = Face.of(speaker, style.face_variation)
    outlines = _outlines(moves, face, sway[:, :2] * style.sway_px)
    light = np.rint(sway[:, 2] * style.light_drift).astype(np.int16)
    return _draw(outlines, face, style, light, rng)


def _slow(times_s: np.ndarray, channels: int, rng: np.random.Generator) -> np.ndarray:
    """Slow random curves (T, channels) of about unit size: three sine waves each, 0.1 to 0.6 Hz."""
    rate_hz = rng.uniform(0.1, 0.6, (3, channels))
    phase = rng.uniform(0, 2 * np.pi, (3, channels))
    return np.sin(2 * np.pi * rate_hz * times_s[:, None, None] + phase).sum(axis=1) / 1.5


def _outlines(moves: np.ndarray, face: Face, sway: np.ndarray) -> dict[str, np.ndarray]:
    """Polygons of each part, fixed-point int32 (T, points, 2), from mouth parameters (T, P) and head shifts (T, 2)."""
    opening, width, rounding, teeth, tongue, tuck = (column[:, None] for column in moves.T)  # each (T, 1)
    s = np.linspace(-1, 1, POINTS)[None, :]  # along the lip, corner to corner
    arch = np.sqrt(1 - s**2)
    half = face.half_width * (1 + 0.16 * width - 0.36 * rounding)
    pressed = np.clip(1 - opening / 0.08, 0, 1)
    plump = (1 + 0.30 * rounding - 0.12 * width) * (1 - 0.22 * pressed)
    rise, drop = 0.26 * face.drop * opening, face.drop * opening * (1 - 0.25 * rounding)
    corner = (0.10 * s**2) * face.drop * (opening - 0.6 * np.clip(width, 0, 1))  # corners sink, or rise with a smile
    inner_half = half * (0.90 - 0.12 * rounding)
    inner_top = -rise * arch**1.3 + 0.5 * corner
    inner_low = np.maximum(drop * arch**1.2 - 0.16 * face.drop * tuck * arch, -0.05 * face.drop) + 0.5 * corner
    inner_low = np.maximum(inner_low, inner_top)
    bow = 1 - face.bow * np.exp(-((s / 0.16) ** 2)) + 0.12 * np.exp(-(((np.abs(s) - 0.32) / 0.16) ** 2))
    outer_top = -rise * arch - face.upper_lip * plump * bow * arch**1.1 + corner
    outer_low = np.maximum(drop * arch - 0.12 * face.drop * tuck * arch, 0) + corner
    outer_low = outer_low + face.lower_lip * plump * (1 - 0.45 * tuck) * arch**0.8
    edge = inner_top + (0.22 * face.drop * teeth * (0.35 + 0.65 * np.minimum(1, opening / 0.3))) * (1 - s**4)
    edge = np.minimum(edge, np.where(tuck > 0.4, inner_low + 1.5 * tuck, inner_low))
    hump = inner_low - (inner_low - inner_top) * 0.75 * tongue * (1 - (s / 0.8) ** 2).clip(0)

    outer_x, inner_x, tooth_x = half * s, inner_half * s, inner_half * 0.86 * s
    cos, sin = np.cos(face.slant), np.sin(face.slant)

    def ring(x_a: np.ndarray, a: np.ndarray, x_b: np.ndarray, b: np.ndarray, least_px: float = 0.0) -> np.ndarray:
        x = np.concatenate([x_a, x_b[:, ::-1]], axis=1)
        y = np.concatenate([a, b[:, ::-1]], axis=1)
        y = (
            y + np.where(np.abs(b - a).max(axis=1) < least_px, 1000.0, 0.0)[:, None]
        )  # too thin to show: move it out of the picture
        turned = np.stack([cos * x - sin * y + face.x, sin * x + cos * y + face.y], axis=2) + sway[:, None, :]
        return np.rint(turned * (1 << SHIFT)).astype(np.int32)

    mid = slice(POINTS // 4, POINTS - POINTS // 4)
    gloss = inner_low + 0.35 * (outer_low - inner_low)
    shade = outer_low + 1.5
    return {
        "shade": ring(outer_x[:, mid], shade[:, mid] - 1, outer_x[:, mid] * 0.8, shade[:, mid] + 4),
        "upper": ring(outer_x, outer_top, inner_x, inner_top),
        "lower": ring(inner_x, inner_low, outer_x, outer_low),
        "cavity": ring(inner_x, inner_top - 0.35, inner_x, inner_low + 0.35),
        "tongue": ring(inner_x, hump, inner_x, inner_low, 1.5),
        "teeth": ring(tooth_x, inner_top, tooth_x, edge, 1.0),
        "gloss": ring(outer_x[:, mid] * 0.7, gloss[:, mid], outer_x[:, mid] * 0.7, gloss[:, mid] + 1.2),
    }


@lru_cache(maxsize=64)
def _backdrop(face: Face) -> np.ndarray:
    """Lit skin with the shadows of nose and chin, uint8 (96, 96)."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - 0.5
    skin = face.skin + face.light_x * x + face.light_y * y - 40 * (x**2 + 0.5 * y**2)
    nose_x, nose_y = (face.x / SIZE - 0.5), (face.y - 34) / SIZE - 0.5
    skin -= 26 * np.exp(-(((np.abs(x - nose_x) - 0.075) / 0.055) ** 2) - ((y - nose_y) / 0.035) ** 2)
    groove = np.exp(-(((x - nose_x) / 0.03) ** 2) - ((y - nose_y - 0.17) / 0.09) ** 2)
    chin = np.exp(-((x - nose_x) ** 2) / 0.05 - ((y - nose_y - 0.86) / 0.06) ** 2)
    skin -= 9 * groove + 16 * chin + face.beard * np.minimum(1, 8 * (y - 0.1).clip(0))
    return np.clip(skin, 0, 255).astype(np.uint8)


@lru_cache(maxsize=4)
def _noise_bank(sigma: float) -> np.ndarray:
    """Camera noise (NOISE_BANK,) int16, of which each frame takes a random part; the same in every process."""
    return np.rint(np.random.default_rng(0).normal(0.0, sigma, NOISE_BANK)).astype(np.int16)


def _draw(
    outlines: dict[str, np.ndarray], face: Face, style: MouthStyle, light: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Fill the polygons on the skin, blur, add light and noise: uint8 (T, 96, 96)."""
    tones = {
        "shade": face.skin - 22,
        "upper": face.lip - 10 + face.light_y * 0.2,
        "lower": face.lip - 2 - face.light_y * 0.2,
        "cavity": face.cavity,
        "tongue": face.tongue,
        "teeth": face.teeth,
        "gloss": face.lip + 22,
    }
    parts = [
        (outlines[part], float(np.clip(face.skin + (tone - face.skin) * style.contrast, 0, 255)))
        for part, tone in tones.items()
    ]
    skin = _backdrop(face)
    frames = np.repeat(skin[None], len(light), axis=0)
    for number, frame in enumerate(frames):
        for points, tone in parts:
            cv2.fillPoly(frame, [points[number]], tone, cv2.LINE_AA, SHIFT)
    if style.blur_px > 0:
        taps = np.exp(-0.5 * (np.arange(-2, 3) / style.blur_px) ** 2)
        strip = frames.reshape(-1, SIZE)  # all frames at once
        cv2.sepFilter2D(strip, -1, taps / taps.sum(), taps / taps.sum(), dst=strip)
        frames[:, :2], frames[:, -2:] = skin[:2], skin[-2:]  # where one frame blurred into the next
    bank = _noise_bank(style.noise)
    offsets = rng.integers(0, NOISE_BANK - SIZE * SIZE, len(light))
    for frame, offset, level in zip(frames, offsets, light, strict=True):
        noise = bank[offset : offset + SIZE * SIZE].reshape(SIZE, SIZE) + level
        cv2.add(frame, noise, dst=frame, dtype=cv2.CV_8U)
    return frames
