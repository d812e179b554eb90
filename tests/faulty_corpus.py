"""A folder in which every clip has one fault of its own, and the rule that each breaks."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from dmlm.corpus.media import write_video

RATE_HZ = 16_000
SECONDS = 2.0


def speech(seed: int, seconds: float = SECONDS, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Noise as loud as speech, another for each seed: float32 (samples,)."""
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate_hz))
    return samples.clip(-0.9, 0.9).astype(np.float32)


def frames(seed: int, count: int = 50) -> np.ndarray:
    """Grey frames uint8 (T, 32, 32), another for each seed."""
    return np.random.default_rng(seed).integers(0, 255, (count, 32, 32), dtype=np.uint8)


class Folder:
    """Writes clips and the lines of their manifest; a clip is good but for what is said."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines, self.rules = path, list[str](), dict[str, str]()
        path.mkdir(parents=True)

    def add(self, name: str, split: str = "train", rule: str = "", **changes: Any) -> Path:
        """Add a clip that breaks a rule, with these changes of its line; return the path of its audio."""
        audio = self.path / f"{name}.wav"
        soundfile.write(audio, speech(len(self.lines)), RATE_HZ)
        word = "".join(chr(ord("a") + int(digit)) for digit in str(len(self.lines)))
        line = {"id": name, "split": split, "text": f"one two {word}", "audio": audio.name, "duration_s": SECONDS}
        self.lines.append(json.dumps({**line, **changes}, ensure_ascii=False))
        if rule:
            self.rules[name] = rule
        return audio

    def write(self) -> Path:
        """Write the manifest and return its path."""
        path = self.path / "manifest.jsonl"
        path.write_text("".join(line + "\n" for line in self.lines), encoding="utf-8")
        return path


def plant(path: Path) -> tuple[Path, dict[str, str]]:
    """Write 35 clips with a fault each, among good ones; return the manifest, and the rule that each clip breaks."""
    folder = Folder(path)
    for number in range(12):
        split, text = (
            ("train", "one two c d e f g h i j") if number < 10 else ("test", f"two one {number // 11 * 'c '}d")
        )
        folder.add(f"good-{number}", split, text=text)
    folder.add("no-file", rule="missing").unlink()
    folder.add("empty-file", rule="missing").write_bytes(b"")
    folder.add("no-audio", rule="unreadable").write_bytes(b"not audio at all")
    cut = folder.add("cut-wav", rule="truncated")
    cut.write_bytes(cut.read_bytes()[:40_000])
    for suffix in ("flac", "mp3", "ogg"):
        cut = folder.path / f"cut.{suffix}"
        folder.add(f"cut-{suffix}", rule="truncated", audio=cut.name).unlink()
        soundfile.write(cut, speech(1000), RATE_HZ)
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    soundfile.write(folder.add("nan", rule="not_finite"), np.append(speech(1)[:-1], np.nan), RATE_HZ, subtype="FLOAT")
    soundfile.write(folder.add("no-samples", rule="too_short"), speech(1)[:0], RATE_HZ)
    soundfile.write(folder.add("silence", rule="silent"), np.zeros(32_000, np.float32), RATE_HZ)
    soundfile.write(folder.add("whisper", rule="nearly_silent"), speech(2) / 500, RATE_HZ, subtype="FLOAT")
    soundfile.write(folder.add("loud", rule="clipped"), (20 * speech(3)).clip(-1, 1), RATE_HZ)
    soundfile.write(folder.add("offset", rule="dc_offset"), speech(4) + 0.1, RATE_HZ)
    one = speech(5)
    soundfile.write(folder.add("out-of-phase", rule="cancelling"), np.stack([one, -one], axis=1), RATE_HZ)
    soundfile.write(folder.add("telephone", rule="low_rate"), speech(6, rate_hz=8000), 8000)
    soundfile.write(folder.add("odd", rule="odd_rate"), speech(7, rate_hz=17_123), 17_123)
    for name, rule in (
        ("film-30", "frame_rate"), ("film-turned", "rotated"), ("film-gaps", "frame_rate"), ("film-short", "lips_length"),
        ("film-face", "uncropped"), ("film-black", "blank"), ("film-cut", "truncated"),
    ):  # fmt: skip
        film = folder.path / f"{name}.{'mkv' if name == 'film-gaps' else 'mp4'}"
        folder.add(name, rule=rule, lips=film.name)
        write_film(film, name)
    Image.fromarray(np.full((40, 40), 255, np.uint8)).save(folder.path / "blank.png")
    folder.add("blank-page", rule="blank", image="blank.png")
    folder.add("half", rule="duration", duration_s=SECONDS / 2)
    folder.add("in-ms", rule="milliseconds", duration_s=SECONDS * 1000)
    folder.add("span-in-ms", rule="milliseconds", spans=[[100, 1900]])
    folder.add("span-outside", rule="span", spans=[[1.0, 3.0]])
    folder.add("no-text", rule="empty_text", text=" ")
    folder.add("apart", rule="not_nfc", text="one two cafe\u0301")
    folder.add("curly", rule="typographic", text="don\u2019t")
    folder.add("hidden", rule="invisible", text="one\u200btwo")
    folder.add("letters", "test", rule="unseen_letters", text="one \u00fc")
    folder.add("dev", split="dev", rule="line")
    folder.add("good-0-again", rule="repeated_id", id="good-0")
    folder.rules["good-0"] = folder.rules.pop("good-0-again")
    twin = folder.add("twin", "test", rule="same_recording")
    twin.write_bytes((folder.path / "good-5.wav").read_bytes())
    return folder.write(), folder.rules


def write_film(path: Path, name: str) -> None:
    """Write the lip video of a clip of `plant`."""
    pictures = frames(1, {"film-30": 60, "film-short": 30}.get(name, 50))
    if name == "film-black":
        pictures = np.zeros_like(pictures)
    if name == "film-face":
        pictures = pictures.repeat(8, axis=1).repeat(8, axis=2)
    if name in ("film-30", "film-gaps", "film-turned"):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=30 if name == "film-30" else 25)
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
            for number, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p")
                frame.pts = number
                if not (name == "film-gaps" and number % 10 == 4):
                    container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if name == "film-turned":
            turn(path)
        return
    write_video(path, pictures)
    if name == "film-cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turn(path: Path) -> None:
    """Set the display matrix of an MP4 to a quarter turn, as phones do (ISO 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of other fields
    one = 1 << 16
    content[at : at + 36] = np.array([0, one, 0, -one, 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(content)
