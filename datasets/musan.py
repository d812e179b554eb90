"""MUSAN, recordings of noise, music and speech to be added to other speech: 109 hours. Not a corpus, but a noise set.

    musan/noise/{free-sound,sound-bible}/noise-free-sound-0000.wav
    musan/music/{fma,fma-western-art,hd-classical,jamendo,rfm}/music-fma-0000.wav
    musan/speech/{librivox,us-gov}/speech-librivox-0000.wav, 16 kHz, with LICENSE, and some with ANNOTATIONS, beside them
    musan/music/fma/ANNOTATIONS                music-fma-0026 blues Y Cullah: genres, whether there is song, artist

`dmlm noise make musan` deals it to training, validation and test, each with its own artists and speakers, and mixes babble
from the speech of each. The annotations name artists of music, but not speakers: each file of speech counts as a speaker
of its own, and so does each noise, and music without an artist, as a source.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from dmlm.corpus.origin import Origin
from dmlm.errors import UserError
from dmlm.importing.noise import Recording, make_noise

ORIGIN = Origin(
    name="musan",
    title="MUSAN",
    licence="CC BY 4.0; each recording has its own, in the LICENSE file beside it",
    cost="11 GB, no account",
    get="download musan.tar.gz from https://www.openslr.org/17 and unpack it; the folder is musan",
    citation="Snyder, Chen and Povey 2015, arXiv 1510.08484",
)
KINDS = ("noise", "music", "speech")


class Settings(BaseModel):
    """Equal settings and recordings give the same noise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = Field(default=None, description="musan, if it lies elsewhere")
    voices: int = Field(default=6, ge=2, le=50, description="of a babble file, at equal loudness")
    babble_s: float = Field(default=60.0, gt=1, le=600, description="length of a babble file")


PRESETS = {"all": Settings()}


def require(settings: Settings) -> None:
    """Check that the recordings are there.

    Raises:
        UserError: they are not; says how to get them.
    """
    folder = ORIGIN.folder(settings.folder)
    if missing := [kind for kind in KINDS if not any((folder / kind).glob("*/*.wav"))]:
        raise UserError(f"{folder} has no recordings in {', '.join(missing)}. {ORIGIN.sentence}.")


def prepare_noise(settings: Settings, folder: Path, workers: int | None = None) -> Path:
    """Make the noise folder, or what of it is missing.

    Raises:
        UserError: as `require`; or a part has fewer speakers than voices, or a recording cannot be read.
    """
    require(settings)
    card = {"name": ORIGIN.name, "version": "1", "licence": ORIGIN.licence}
    card |= {"source": ORIGIN.sentence, "citation": ORIGIN.citation}
    found = recordings(ORIGIN.folder(settings.folder))
    return make_noise(found, folder, card, voices=settings.voices, babble_s=settings.babble_s, workers=workers)


def recordings(folder: Path) -> list[Recording]:
    """Return all recordings, by kind and path, with the artist of music as its source."""
    found = []
    for kind in KINDS:
        for path in sorted((folder / kind).glob("*/*.wav")):
            artists = _artists(path.parent / "ANNOTATIONS") if kind == "music" else {}
            found.append(Recording(path, kind, artists.get(path.stem, path.stem)))
    return found


def _artists(annotations: Path) -> dict[str, str]:
    """Return the artist of each piece of music: the fourth word of its line."""
    if not annotations.is_file():
        return {}
    lines = (line.split() for line in annotations.read_text("utf-8", errors="replace").splitlines())
    return {line[0]: line[3] for line in lines if len(line) > 3}
