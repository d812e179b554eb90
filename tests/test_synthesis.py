"""Speech, mouth, video and the noise bank: what a synthetic corpus is made of."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dmlm import paths
from dmlm.corpus.media import SAMPLE_RATE_HZ, read_audio, read_video, write_video
from dmlm.corpus.noise import NoiseSettings
from dmlm.corpus.noise_files import NoiseBank
from dmlm.errors import UserError
from dmlm.seeding import generator
from dmlm.sweep.parts import open_bank
from dmlm.synthesis import bank, speech
from dmlm.synthesis.mouth import MouthStyle, render
from dmlm.synthesis.viseme import PARAMETERS, VISEMES, movement, visemes_of

SENTENCE = "16 minus 17 over 35 a to the power of 3 equals log of 15 m"
STILL = MouthStyle(jitter=0.0, effort_least=1.0, sway_px=0.0, light_drift=0.0, noise=0.0)
OPENING = PARAMETERS.index("opening")


@pytest.fixture(scope="module")
def spoken() -> speech.Speech:
    return speech.engine().say(SENTENCE, speech.SPEAKERS[0])


def test_phone_and_word_times_run_forward_and_stay_in_the_clip(spoken):
    duration_s = len(spoken.samples) / SAMPLE_RATE_HZ
    starts_s = [start_s for start_s, _ in spoken.phones]
    assert spoken.samples.dtype == np.float32
    assert starts_s == sorted(starts_s)
    assert starts_s[0] >= 0
    assert starts_s[-1] <= duration_s + 0.02
    assert [word for _, word in spoken.words] == SENTENCE.split()
    assert all(a < b for (a, _), (b, _) in zip(spoken.words, spoken.words[1:], strict=False))


def test_the_span_holds_the_energy(spoken):
    start, end = (round(bound_s * SAMPLE_RATE_HZ) for bound_s in spoken.span_s)
    assert np.sum(spoken.samples[start:end] ** 2) > 0.999 * np.sum(spoken.samples**2)


def test_a_lone_a_is_the_letter_not_the_article():
    phones = [symbol for _, symbol in speech.engine().say("5 a plus a", speech.SPEAKERS[0]).phones if symbol]
    assert phones.count("eɪ") == 2
    assert "ɐ" not in phones


def test_every_speaker_speaks_and_sounds_different():
    lengths = {speaker.name: len(speech.engine().say("5 x", speaker).samples) for speaker in speech.SPEAKERS}
    assert len(lengths) == len(speech.SPEAKERS) == 24
    assert len({speaker.voice for speaker in speech.SPEAKERS}) == 24
    assert min(lengths.values()) > 0.3 * SAMPLE_RATE_HZ


def test_an_unknown_voice_and_an_empty_text_are_refused():
    for voice in ("en-us+lynda", "xx-yy"):
        with pytest.raises(UserError, match="no voice"):
            speech.engine().say("5", speech.Speaker("x", voice, 160, 50, 50))
    with pytest.raises(UserError, match="says nothing"):
        speech.engine().say("", speech.SPEAKERS[0])


def test_a_missing_wheel_names_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match="pip install espeakng-loader"):
        speech.Espeak()


def test_a_data_path_over_160_bytes_works_and_fresh_processes_agree(tmp_path):
    import espeakng_loader

    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (deep / "data").symlink_to(espeakng_loader.get_data_path())
    code = (
        "import sys, hashlib, espeakng_loader\n"
        "if sys.argv[1]: espeakng_loader.get_data_path = lambda: sys.argv[1]\n"
        "from dmlm.synthesis.speech import SPEAKERS, engine\n"
        "breathy = next(s for s in SPEAKERS if s.name == 'f5')\n"
        "samples = [engine().say('17 over 35', s).samples.tobytes() for s in (breathy, SPEAKERS[0])]\n"
        "print(hashlib.sha256(b''.join(samples)).hexdigest())\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
        for path in (str(deep / "data"), "")
    ]
    spoken = [process.communicate()[0] for process in started]
    assert len(spoken[0]) == 65
    assert spoken[0] == spoken[1]


def test_a_temporary_folder_that_is_too_deep_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(speech.tempfile, "gettempdir", lambda: "/" + "t" * 200)
    with pytest.raises(UserError, match="TMPDIR"):
        speech._short_path(tmp_path / ("d" * 200))


def test_the_link_is_not_made_through_somebody_elses_file(tmp_path, monkeypatch):
    monkeypatch.setattr(speech.tempfile, "gettempdir", lambda: str(tmp_path))
    link = speech._short_path(Path("/") / ("d" * 200))
    assert link == speech._short_path(Path("/") / ("d" * 200))  # made once, used again
    link.unlink()
    link.symlink_to("/somewhere/else")
    with pytest.raises(UserError, match="in the way"):
        speech._short_path(Path("/") / ("d" * 200))


def test_phonemes_that_look_alike_share_a_viseme():
    assert visemes_of("p") == visemes_of("b") == visemes_of("m")
    assert visemes_of("f") == visemes_of("v")
    assert visemes_of("t") == visemes_of("d") == visemes_of("n")
    assert visemes_of("aɪ") == ["a", "i"]
    assert visemes_of("ɑːɹ") == ["a", "r"]
    assert {name for name in VISEMES if name != "rest"} == {v for s in "pfθtlsʃkɹwiɛaʌɔu" for v in visemes_of(s)}


def test_every_phoneme_that_is_spoken_has_a_viseme():
    text = " plus ".join([*map(str, range(1, 51)), *"abcdefghijklmnopqrstuvwxyz", "equals minus over log of the power"])
    symbols = {symbol for _, symbol in speech.engine().say(text, speech.SPEAKERS[0]).phones if symbol}
    assert len(symbols) > 30
    assert [symbol for symbol in symbols if not visemes_of(symbol)] == []


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_the_lips_close_for_p_b_and_m(spoken, jitter):
    ends_s = [start_s for start_s, _ in spoken.phones[1:]]
    closed = [(a + b) / 2 for (a, s), b in zip(spoken.phones, ends_s, strict=False) if s in ("p", "b", "m")]
    duration_s = len(spoken.samples) / SAMPLE_RATE_HZ
    opening = movement(spoken.phones, duration_s, np.array(closed), 0.03, jitter, np.random.default_rng(0))[:, OPENING]
    assert len(closed) >= 3
    assert opening.max() == 0


def test_p_b_and_m_give_the_same_pictures():
    films = [render([(0.1, s), (0.18, "ɑː"), (0.4, "")], 0.6, "gene", MouthStyle(), generator("x")) for s in "pbm"]
    assert np.array_equal(films[0], films[1])
    assert np.array_equal(films[0], films[2])


def test_an_open_mouth_is_darker_inside_than_a_closed_one():
    film = render([(0.0, "m"), (0.4, "ɑː"), (0.8, "")], 0.9, "gene", STILL, np.random.default_rng(0))
    dark = (film < 70).sum(axis=(1, 2))
    assert dark[15] > 5 * dark[5]


def test_a_short_vowel_does_not_reach_its_target():
    def peak(length_s: float) -> float:
        phones = [(0.2, "t"), (0.3, "ɑː"), (0.3 + length_s, "t"), (0.5 + length_s, "")]
        times_s = np.linspace(0, 1, 500)
        return float(movement(phones, 1.0, times_s, 0.03, 0.0, np.random.default_rng(0))[:, OPENING].max())

    assert peak(0.05) < 0.85 * peak(0.3)


def test_a_film_depends_on_its_seed_and_speaker_only():
    phones = [(0.1, "w"), (0.2, "aɪ"), (0.5, "")]
    first = render(phones, 0.7, "gene", MouthStyle(), np.random.default_rng(1))
    assert (first.shape, first.dtype) == ((18, 96, 96), np.uint8)
    assert np.array_equal(first, render(phones, 0.7, "gene", MouthStyle(), np.random.default_rng(1)))
    assert not np.array_equal(first, render(phones, 0.7, "gene", MouthStyle(), np.random.default_rng(2)))
    assert not np.array_equal(first, render(phones, 0.7, "linda", MouthStyle(), np.random.default_rng(1)))
    same = MouthStyle(face_variation=0)
    assert np.array_equal(*(render(phones, 0.7, who, same, np.random.default_rng(1)) for who in ("gene", "linda")))


def test_the_mouth_stays_in_the_picture_for_every_speaker():
    for speaker in speech.SPEAKERS:
        style = MouthStyle(**{**vars(STILL), "blur_px": 0.0})
        films = [render([(0.0, s)], 0.4, speaker.name, style, np.random.default_rng(0)) for s in ("", "iː", "ɑː")]
        rest, wide, open_ = (film[5].astype(int) for film in films)
        for moved in (wide, open_):
            rows, columns = np.nonzero(np.abs(moved - rest))
            assert rows.min() > 2
            assert rows.max() < 93
            assert columns.min() > 2
            assert columns.max() < 93


def test_a_style_that_makes_no_sense_is_refused():
    for wrong in ({"coarticulation_s": 0.0}, {"noise": -1.0}, {"effort_least": 1.2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MouthStyle(**wrong)


def test_a_video_comes_back_as_it_was_written(tmp_path):
    film = render([(0.1, "w"), (0.2, "aɪ"), (0.5, "")], 1.0, "gene", MouthStyle(noise=0), np.random.default_rng(1))
    write_video(tmp_path / "a.mp4", film)
    write_video(tmp_path / "b.mp4", film)
    back = read_video(tmp_path / "a.mp4").astype(int)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert back.shape == film.shape
    assert np.abs(back - film).mean() < 2
    assert abs(back.mean() - film.mean()) < 0.5  # no change of range
    with pytest.raises(UserError, match="even height"):
        write_video(tmp_path / "c.mp4", film[:, :95])
    with pytest.raises(UserError, match="even height"):
        write_video(tmp_path / "c.mp4", film[:0])


def test_the_noise_bank_is_whole_loud_and_split(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(bank, "FILES", {"train": 1, "val": 1, "test": 1})
    monkeypatch.setattr(bank.processes, "run", lambda function, jobs: map(function, jobs))
    bank.build_bank(tmp_path)
    card = json.loads((tmp_path / "bank.json").read_text())
    assert card["kinds"] == ["noise", "music", "babble"]
    assert len(card["files"]) == 9
    bank.check_bank(tmp_path)
    opened = NoiseBank.open(tmp_path, ("noise", "music", "babble"))
    for kind in card["kinds"]:
        clips = [read_audio(opened.files[part][kind][0].path) for part in ("train", "val", "test")]
        assert {len(samples) for samples in clips} == {12 * SAMPLE_RATE_HZ}
        assert np.abs(np.triu(np.corrcoef(clips), 1)).max() < 0.1
        for samples in clips:
            windows = samples.reshape(-1, SAMPLE_RATE_HZ // 4)
            assert np.sqrt((windows**2).mean(axis=1)).min() > 0.005  # loud everywhere: any piece of it can mask


def test_a_bank_of_an_earlier_version_is_made_again_and_one_that_was_changed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(bank, "FILES", {"train": 1, "val": 1, "test": 1})
    monkeypatch.setattr(bank, "KINDS", {"noise": bank._noise})
    monkeypatch.setattr(bank.processes, "run", lambda function, jobs: map(function, jobs))
    older = paths.noise_bank() / "test" / "noise" / "03.flac"
    older.parent.mkdir(parents=True)
    older.write_bytes(b"of version 1")
    (paths.noise_bank() / "bank.json").write_text('{"version": "1"}')
    opened = open_bank(NoiseSettings(kinds="noise"))
    assert {part: len(kinds["noise"]) for part, kinds in opened.files.items()} == {"train": 1, "val": 1, "test": 1}
    assert not older.exists()
    (paths.noise_bank() / "val" / "noise" / "00.flac").write_bytes(b"another")
    with pytest.raises(UserError, match=r"val/noise/00\.flac lost or changed; remove the folder"):
        open_bank(NoiseSettings(kinds="noise"))


def test_all_six_spectra_of_the_bank_are_different():
    def centroid_hz(number: int) -> float:
        power = np.abs(np.fft.rfft(bank._noise("train", number, np.random.default_rng(0)))) ** 2
        return float((power * np.linspace(0, SAMPLE_RATE_HZ / 2, len(power))).sum() / power.sum())

    centroids = [centroid_hz(number) for number in range(6)]
    assert centroids[0] == pytest.approx(4000, rel=0.02)  # white
    assert centroids[2] < 200 < centroids[1] < 2000 < centroids[4]  # brown, pink, hiss
