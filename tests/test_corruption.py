"""Random damage to the media of a finished corpus never goes unnoticed: 500 cases, of every kind of file.

`DMLM_TEST_MEDIA` names a folder of real recordings and videos to take instead of synthetic ones.
"""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from faulty_corpus import RATE_HZ, frames, speech
from PIL import Image

from dmlm.corpus.check import check_corpus
from dmlm.corpus.manifest import Corpus, Utterance, read_corpus, write_corpus
from dmlm.corpus.media import write_video
from dmlm.modalities import FILES

CASES = 500
FORMATS = {"wav": {}, "flac": {}, "ogg": {}, "mp3": {}, "opus": {"format": "OGG", "subtype": "OPUS"}}


def in_this_process(function, jobs):
    return map(function, jobs)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """Two clips of every format, with lips and a page."""
    folder, utterances = tmp_path_factory.mktemp("corpus"), []
    for number in range(2 * len(FORMATS)):
        suffix = list(FORMATS)[number % len(FORMATS)]
        media = {"audio": f"{number}.{suffix}", "lips": f"{number}.mp4", "image": f"{number}.png"}
        soundfile.write(folder / media["audio"], speech(number), RATE_HZ, **FORMATS[suffix])
        write_video(folder / media["lips"], frames(number))
        Image.fromarray(frames(number, 1)[0]).save(folder / media["image"])
        if real := os.environ.get("DMLM_TEST_MEDIA"):
            for field, pattern in (("audio", "**/*.flac"), ("lips", "**/*.mp4")):
                shutil.copy(sorted(Path(real).glob(pattern))[number], folder / media[field])
        duration_s = soundfile.info(folder / media["audio"]).duration
        split = "test" if number % 3 == 0 else "train"
        utterances.append(Utterance(id=str(number), split=split, text=f"one {number}", duration_s=duration_s, **media))
    return write_corpus(folder, utterances, {"name": "mine", "version": "1", "licence": "CC0-1.0"})


def damage(path: Path, other: Path, kind: str, rng: random.Random) -> None:
    """Flip bytes of a file, cut it, lengthen it, rename it, or swap it with another."""
    content = bytearray(path.read_bytes())
    if kind == "flipped":
        for _ in range(rng.choice((1, 8, 64))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "lengthened":
        path.write_bytes(content + bytes(rng.randrange(1, 4096)))
    elif kind == "renamed":
        path.rename(path.with_name(f"{path.name}.old"))
    else:
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)


def test_no_damage_goes_unnoticed(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    faults, _ = check_corpus(corpus, FILES, in_this_process)
    assert [fault for fault in faults if fault.is_error] == []
    paths = [corpus.folder / name for utterance in corpus.utterances for name in utterance.media.values()]
    rng, unnoticed = random.Random(0), []
    for case in range(CASES):
        kind = ("flipped", "cut", "lengthened", "renamed", "swapped")[case % 5]
        path = paths[case % len(paths)]
        other = rng.choice([one for one in paths if one != path and one.suffix == path.suffix])
        before = {each: each.read_bytes() for each in (path, other)}
        damage(path, other, kind, rng)
        if path.exists() and path.read_bytes() == before[path]:  # a bit that was flipped back
            continue
        faults, _ = check_corpus(read_corpus(corpus.folder), FILES, in_this_process)
        named = {fault.file for fault in faults if fault.rule in ("changed", "missing") and fault.is_error}
        damaged = {str(path), str(other)} if kind == "swapped" else {str(path)}
        if named != damaged:
            unnoticed.append((kind, path.name, named))
        for each, content in before.items():
            each.write_bytes(content)
        path.with_name(f"{path.name}.old").unlink(missing_ok=True)
    assert unnoticed == []
    assert [fault for fault in check_corpus(corpus, FILES, in_this_process)[0] if fault.is_error] == []


def test_a_file_of_another_kind_under_the_name_is_named(corpus, tmp_path, monkeypatch):
    """Before there is a corpus, when no digest says what a file was."""
    from dmlm.corpus.inspection import inspect

    for path, kind in (
        (corpus.folder / "0.png", "audio"),
        (corpus.folder / "0.wav", "image"),
        (corpus.folder / "0.wav", "video"),
    ):
        assert inspect(path, kind)["unreadable"]
    assert np.isfinite(inspect(corpus.folder / "0.wav", "audio")["rms"])
