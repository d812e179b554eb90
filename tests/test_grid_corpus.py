"""The recipe of the GRID corpus, on small trees laid out as its owners' archives unpack, and on the real one if it is here."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from small_corpus import in_this_process

from dmlm import recipes
from dmlm.corpus.check import check_folder
from dmlm.errors import UserError

recipe = recipes.load("datasets", "grid_corpus")
WORDS = {
    "bbaf2n": "bin blue at f two now",
    "lwwz9s": "lay white with z nine soon",
    "prbazp": "place red by a zero please",
}
TIMES = [0, 15_000, 22_000, 27_000, 30_000, 36_000, 42_000, 50_000, 75_000]


@pytest.fixture(autouse=True)
def no_recordings(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_RECORDINGS", str(tmp_path / "recordings"))
    return tmp_path / "recordings"


def film(path: Path, tone_hz: float = 440.0) -> None:
    """Three seconds of MPEG-1 as GRID has it: 360 x 288, 25 frames a second, and a stereo track of 44.1 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mpeg") as container:
        video = container.add_stream("mpeg1video", rate=25)
        video.width, video.height, video.pix_fmt = 360, 288, "yuv420p"
        track = container.add_stream("mp2", rate=44_100)
        track.layout = "stereo"
        for number in range(75):
            frame = av.VideoFrame.from_ndarray(np.full((288, 360, 3), 3 * number, np.uint8), format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        sound = 0.3 * np.sin(2 * np.pi * tone_hz * np.arange(3 * 44_100) / 44_100)
        samples = np.repeat((32_767 * sound).astype(np.int16), 2)[None]
        blocks = av.AudioResampler("s16", "stereo", 44_100, frame_size=1152)
        whole = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
        whole.rate = 44_100
        at = 0
        for block in (*blocks.resample(whole), *blocks.resample(None)):
            block.pts, at = at, at + block.samples
            container.mux(track.encode(block))
        container.mux(track.encode(None))


def align(path: Path, words: str) -> None:
    """An align file as published: times in 1/25,000 s, silence before and after, a short pause after the second word."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spoken = words.split()
    labels = ["sil", *spoken[:2], "sp", *spoken[2:], "sil"]
    times = [*TIMES[:3], TIMES[2] + 500, *TIMES[3:]] if len(spoken) == 6 else TIMES
    lines = [f"{start} {end} {label}\n" for start, end, label in zip(times, [*times[1:], 75_000], labels, strict=False)]
    path.write_text("".join(lines))


def clips(**settings):
    chosen = recipe.Settings(**settings)
    found = recipe.scan(chosen)
    source = recipe.sentences(found, chosen)
    return {clip.id: clip for clip in source.clips}, {fault.utterance: fault.rule for fault in source.faults}


@pytest.mark.parametrize("video", ["{s}/{n}.mpg", "{s}/video/mpg_6000/{n}.mpg", "video/{s}/{n}.mpg"])
@pytest.mark.parametrize("text", ["alignments/{s}/{n}.align", "{s}/align/{n}.align"])
def test_every_layout_of_the_archives_is_read(no_recordings, video, text):
    for speaker in ("s1", "s2"):
        for name, words in WORDS.items():
            path = no_recordings / "grid" / video.format(s=speaker, n=name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            align(no_recordings / "grid" / text.format(s=speaker, n=name), words)
    found, lacking = clips()
    assert not lacking
    assert len(found) == 6
    clip = found["s2_bbaf2n"]
    assert (clip.text, clip.speaker) == (WORDS["bbaf2n"], "s2")
    assert clip.spans == ((15_000 / 25_000, 50_000 / 25_000),)  # of the first to the last word, in seconds
    assert clip.audio[0].path == clip.lips.path == no_recordings / "grid" / video.format(s="s2", n="bbaf2n")
    assert len(clips(speakers=("s2",))[0]) == 3


def test_what_grid_lacks_is_counted_and_the_rest_is_made(no_recordings, tmp_path):
    grid = no_recordings / "grid"
    more = {"sgbe3a": "set green by e three again", "sgbe4p": "set green by e four please"}
    for number, (name, words) in enumerate({**WORDS, **more}.items()):
        film(grid / "s1" / f"{name}.mpg", 300 + 100 * number)
        align(grid / "alignments" / "s1" / f"{name}.align", words)
    (grid / "s1" / "bgbe1a.mpg").write_bytes(b"cut off")  # as some of speaker 8
    align(grid / "alignments" / "s1" / "bgbe1a.align", "bin green by e one again")
    film(grid / "s1" / "bgbe2a.mpg")  # no align file
    film(grid / "s1" / "bgbe3a.mpg")
    align(grid / "alignments" / "s1" / "bgbe3a.align", "bin green by e four again")  # another sentence
    align(grid / "alignments" / "s1" / "bgbe4a.align", "bin green by e four again")  # no recording
    corpus = recipe.prepare(recipe.Settings(lips=False, test=0.2, val=0.2), tmp_path / "corpus")
    assert corpus.card["not_imported"] == {"no_text": 2, "no_audio": 1, "unreadable": 1}
    assert corpus.counts == {"train": 3, "val": 1, "test": 1}
    assert {u.text for u in corpus.utterances} >= set(WORDS.values())
    assert all(u.duration_s == pytest.approx(3, abs=0.05) for u in corpus.utterances)
    assert not [fault for fault in check_folder(corpus.folder, in_this_process) if fault.is_error]


def test_a_speaker_without_video_has_sound_alone(no_recordings, tmp_path):
    for name, words in WORDS.items():
        path = no_recordings / "grid" / "audio_25k" / "s21" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(len(words)).normal(0, 0.1, 40_000), 25_000)
        align(no_recordings / "grid" / "alignments" / "s21" / f"{name}.align", words)
    assert set(clips()[1].values()) == {"lacking"}
    with pytest.raises(UserError, match="no clip is left"):
        recipe.prepare(recipe.Settings(), tmp_path / "corpus")
    corpus = recipe.prepare(recipe.Settings(lips=False), tmp_path / "corpus")
    assert [u.spans for u in corpus.utterances] == [((0.0, 1.6),)] * 3  # the times of the align files do not hold


def test_align_folders_under_the_name_of_another_speaker_are_found_by_their_sentences(no_recordings):
    theirs = {"s5": {"bbaf2n", "lwwz9s", "prbazp"}, "s6": {"sgbe3a", "bgbe1a", "bgbe4a"}}
    for speaker, other in (("s5", "s6"), ("s6", "s5")):
        for name in theirs[speaker]:
            path = no_recordings / "grid" / speaker / f"{name}.mpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            (no_recordings / "grid" / "alignments" / other).mkdir(parents=True, exist_ok=True)
            (no_recordings / "grid" / "alignments" / other / f"{name}.align").touch()
    found = recipe.scan(recipe.Settings())
    assert {speaker: set(found.align_files(speaker, names)) for speaker, names in theirs.items()} == theirs
    assert found.align_files("s5", {"bbaf2n", "x", "y"}) == found.aligned["s5"]  # too few to be those of s6


def test_what_is_missing_is_said_with_licence_cost_and_how_to_get_it(no_recordings):
    with pytest.raises(UserError, match=r"no folder .*grid .*CC BY 4.0; .*16 GB.*zenodo.org/records/3625687"):
        recipe.require(recipe.PRESETS["all"])
    (no_recordings / "grid" / "s2").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no recordings below .*zenodo"):
        recipe.require(recipe.PRESETS["all"])
    (no_recordings / "grid" / "s2" / "bbaf2n.mpg").touch()
    with pytest.raises(UserError, match=r"no recordings of speaker s1; known: s2\. .*zenodo"):
        recipe.require(recipe.PRESETS["s1"])
    with pytest.raises(UserError, match=r"no align files"):
        recipe.require(recipe.PRESETS["all"])


REAL = Path(os.environ.get("DMLM_RECORDINGS", "")) / "grid_s1"


@pytest.mark.skipif(not REAL.is_dir(), reason="DMLM_RECORDINGS has no grid_s1")
def test_real_recordings_with_cropped_mouths(monkeypatch):
    monkeypatch.setenv("DMLM_RECORDINGS", str(REAL.parent))
    recipe.require(recipe.PRESETS["s1"])
    found, lacking = clips(speakers=("s1",))
    assert not lacking
    assert len(found) >= 900
    assert {clip.lips.path.parent.name for clip in found.values()} == {"lips"}
    ends_s = [clip.spans[0][1] for clip in found.values()]
    assert 1.5 < np.mean(ends_s) < max(ends_s) <= 2.98
