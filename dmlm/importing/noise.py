"""Make a noise folder of recordings that others publish: sources dealt to the parts, and babble mixed from the speech.

FOLDER/PART/KIND/SOURCE/NAME    links to the recordings; PART is train, val or test, as `noise_sources.deal` says
FOLDER/PART/babble/ID/ID.flac   some voices at a time, of speakers of that part alone
FOLDER/noise.json               what it was made of, and the speakers of each babble file; written last
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from dmlm import files, known_files, processes, progress
from dmlm.corpus.noise_sources import PARTS, deal
from dmlm.corpus.recordings import read_any_audio
from dmlm.corpus.voice_activity import speech_spans
from dmlm.errors import UserError
from dmlm.modalities import SAMPLE_RATE_HZ

CARD = "noise.json"
SPEECH, BABBLE = "speech", "babble"  # kinds
PEAK = 0.7  # largest absolute sample of a babble file
SAFE = " !#$&'()+,;=@[]^{}~"  # in the names of folders, besides letters, digits and _.-


@dataclass(frozen=True, order=True)
class Recording:
    """A recording of a noise set."""

    path: Path
    kind: str
    source: str  # whom or what it is from: an artist, a speaker; parts share none


@dataclass(frozen=True)
class Mixture:
    """A babble file to be: one recording of each voice."""

    voices: tuple[Recording, ...]
    target: Path
    seconds: float


def make_noise(
    recordings: Sequence[Recording],
    folder: Path,
    card: Mapping[str, Any],
    *,
    voices: int,
    babble_s: float,
    workers: int | None = None,
) -> Path:
    """Make a noise folder, or what of it is missing.

    Args:
        recordings: of any kinds; those of kind `speech` are mixed to babble too
        folder: that becomes, or is, the noise folder
        card: name, licence, and more facts
        voices: speakers of a babble file; every speaker is in one file at most
        babble_s: length of a babble file, if its recordings are as long
        workers: number of processes; the result does not depend on it

    Raises:
        UserError: a part has fewer speakers than voices, or a recording cannot be read.
    """
    (folder / CARD).unlink(missing_ok=True)
    part_of = {kind: deal({r.source for r in recordings if r.kind == kind}) for kind in {r.kind for r in recordings}}
    links = {
        folder / part_of[r.kind][r.source] / r.kind / quote(r.source, safe=SAFE) / r.path.name: r.path.resolve()
        for r in recordings
    }
    mixtures = _mixtures([r for r in recordings if r.kind == SPEECH], part_of[SPEECH], folder, voices, babble_s)
    _remove_others(folder, {*links, *(mixture.target for mixture in mixtures)})
    for link, path in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() or link.readlink() != path:
            link.unlink(missing_ok=True)
            link.symlink_to(path)
    missing = [mixture for mixture in mixtures if not mixture.target.is_file()]
    done = processes.run(mix, missing, workers or processes.count())
    for _ in progress.track(done, BABBLE, len(missing), "file"):
        pass
    speakers = {m.target.relative_to(folder).as_posix(): [v.source for v in m.voices] for m in mixtures}
    facts = {**card, "voices": voices, "babble_s": babble_s, "parts": _counts([*links, *speakers], folder)}
    files.write_text(folder / CARD, json.dumps({**facts, BABBLE: speakers}, indent=1, ensure_ascii=False) + "\n")
    return folder


def _mixtures(
    speech: Sequence[Recording], part_of: Mapping[str, str], folder: Path, voices: int, babble_s: float
) -> list[Mixture]:
    """Return the babble files of every part. A speaker's first recording is used; speakers that are left over are not.

    Raises:
        UserError: a part has fewer speakers than voices.
    """
    first = {r.source: r for r in sorted(speech, reverse=True)}
    found = []
    for part in PARTS:
        speakers = sorted(source for source in first if part_of[source] == part)
        if len(speakers) < voices:
            raise UserError(
                f"voices: {voices} voices at a time need as many speakers in each part, and part {part} has"
                f" {len(speakers)}; lower it."
            )
        speakers = [speakers[n] for n in np.random.default_rng(0).permutation(len(speakers))]
        for start in range(0, len(speakers) - voices + 1, voices):
            chosen = tuple(first[source] for source in sorted(speakers[start : start + voices]))
            name = known_files.digest_of([str(babble_s), *(f"{r.source} {r.path.name}" for r in chosen)])[:12]
            found.append(Mixture(chosen, folder / part / BABBLE / name / f"{name}.flac", babble_s))
    return found


def mix(mixture: Mixture) -> None:
    """Write a babble file, as long as its shortest recording, at most `seconds`. All voices are equally loud.

    The middle of each recording is taken, since readings begin and end with the same words. Its loudness is the power of
    its speech, without the pauses.
    """
    import soundfile

    recordings = [read_any_audio(voice.path) for voice in mixture.voices]
    length = min(round(mixture.seconds * SAMPLE_RATE_HZ), *(len(samples) for samples in recordings))
    babble = np.zeros(length)
    for voice, samples in zip(mixture.voices, recordings, strict=True):
        start = (len(samples) - length) // 2
        piece = samples[start : start + length].astype(np.float64)
        if not (loudness := loudness_of(piece)):
            raise UserError(f"{voice.path} is silent; replace the recording, or take it out of the folder.")
        babble += piece / loudness
    with files.atomic(mixture.target) as temporary:
        soundfile.write(temporary, babble * (PEAK / np.abs(babble).max()), SAMPLE_RATE_HZ, "PCM_16", format="FLAC")


def loudness_of(samples: np.ndarray) -> float:
    """Return the root mean square of the speech in samples (N,), or of all of them where none is found."""
    spans = [slice(round(a * SAMPLE_RATE_HZ), round(b * SAMPLE_RATE_HZ)) for a, b in speech_spans(samples)]
    speech = np.concatenate([samples[span] for span in spans]) if spans else samples
    return float(np.sqrt(np.mean(np.square(speech - speech.mean()))))


def _remove_others(folder: Path, wanted: set[Path]) -> None:
    """Remove what other settings, or other recordings, have left in the parts of a noise folder."""
    for part in PARTS:
        for path in (folder / part).rglob("*"):
            if (path.is_file() or path.is_symlink()) and path not in wanted:
                path.unlink()


def _counts(names: Sequence[Path | str], folder: Path) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {part: {} for part in PARTS}
    for name in names:
        part, kind = (name.relative_to(folder) if isinstance(name, Path) else Path(name)).parts[:2]
        counts[part][kind] = counts[part].get(kind, 0) + 1
    return counts
