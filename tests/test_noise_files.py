"""The noise bank: known by content, split by source, found wherever it lies, and the same as when it was first used."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import small_cell

from dmlm import paths
from dmlm.corpus import noise_clips, noise_files
from dmlm.corpus.media import read_audio
from dmlm.corpus.noise import NoiseSettings
from dmlm.corpus.noise_clips import NoiseFile, examine, stretch
from dmlm.corpus.noise_files import NoiseBank
from dmlm.corpus.noise_sources import deal
from dmlm.errors import UserError
from dmlm.files import digest
from dmlm.sweep.parts import noise_notes, open_bank
from dmlm.sweep.requirements import check_settings


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A noise folder of one kind with ten files."""
    for number in range(10):
        write(tmp_path / "bank" / "noise" / f"n{number}.wav", number)
    return tmp_path / "bank"


def write(path: Path, seed: int, samples: int = 4_000, rate_hz: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, (0.1 * np.random.default_rng(seed).standard_normal(samples)).clip(-1, 1), rate_hz)


def settings_of(folder: Path, **changes: object) -> NoiseSettings:
    return NoiseSettings(**{"set": str(folder), "kinds": "noise"} | changes)


def names(bank: NoiseBank, kind: str = "noise") -> dict[str, set[str]]:
    """Names of the files of each part."""
    return {part: {file.path.name for file in kinds[kind]} for part, kinds in bank.files.items()}


# Known by content


def test_a_file_replaced_by_one_of_the_same_name_and_size_is_another_bank(folder):
    before = NoiseBank.open(folder, ("noise",))
    for part, files in before.files.items():
        path = files["noise"][0].path
        kept = path.read_bytes()
        write(path, 99)
        assert path.stat().st_size == len(kept)
        assert NoiseBank.open(folder, ("noise",)).digests[part] != before.digests[part]
        path.write_bytes(kept)
    assert NoiseBank.open(folder, ("noise",)).digests == before.digests


def test_a_noise_file_is_decoded_once(folder, monkeypatch):
    NoiseBank.open(folder, ("noise",))
    monkeypatch.setattr(noise_files, "examine", lambda path: pytest.fail("it was decoded again"))
    shutil.copytree(folder, folder.with_name("copy"))
    NoiseBank.open(folder, ("noise",))
    NoiseBank.open(folder.with_name("copy"), ("noise",))


# Changed since


def test_a_folder_that_changed_since_its_first_use_is_refused_with_every_file_named(folder):
    open_bank(settings_of(folder))
    open_bank(settings_of(folder))
    (folder / "noise" / "n1.wav").unlink()
    write(folder / "noise" / "n2.wav", 99)
    write(folder / "noise" / "n11.wav", 11)
    with pytest.raises(UserError) as refused:
        open_bank(settings_of(folder))
    for words in ("noise/n1.wav (lost)", "noise/n2.wav (replaced)", "noise/n11.wav (added)"):
        assert words in str(refused.value)
    (record,) = (paths.home() / "noise" / "known").glob("bank-*.json")
    assert str(record) in str(refused.value)
    record.unlink()
    open_bank(settings_of(folder))


def test_only_the_first_twenty_changes_are_named(folder):
    open_bank(settings_of(folder))
    for number in range(20, 45):
        write(folder / "noise" / f"n{number}.wav", number)
    with pytest.raises(UserError, match=r"and 5 more\. Restore"):
        open_bank(settings_of(folder))


def test_another_choice_of_files_has_a_record_of_its_own(folder):
    open_bank(settings_of(folder))
    open_bank(settings_of(folder, leave_out=("noise/n3.wav",)))
    assert len(list((paths.home() / "noise" / "known").iterdir())) == 2


# Split by source


@given(st.sets(st.text(min_size=1), min_size=3, max_size=40))
def test_every_part_gets_a_source_and_a_lost_one_moves_others_only_to_keep_it_so(sources):
    parts = deal(sources)
    counts = {part: list(parts.values()).count(part) for part in ("test", "val", "train")}
    assert min(counts.values()) >= 1
    natural = deal(sources | {f"other {number}" for number in range(200)})  # so many that no part has to be given one
    if any(parts[source] != natural[source] for source in sources):
        return
    for lost in sources:
        if counts[parts[lost]] > 1 and len(sources) > 3:
            assert deal(sources - {lost}) == {source: parts[source] for source in sources - {lost}}


def test_two_sources_are_for_training_and_test():
    assert sorted(deal({"a", "b"}).values()) == ["test", "train"]


def test_most_sources_are_for_training():
    parts = list(deal({f"{number}" for number in range(2_000)}).values())
    assert [round(parts.count(part) / 2_000, 1) for part in ("test", "val", "train")] == [0.2, 0.1, 0.7]


@pytest.mark.parametrize("how", ["folder", r"^s(\d)/", "listed"])
def test_a_source_is_in_one_part(tmp_path, how):
    for number in range(24):
        write(tmp_path / "bank" / "noise" / f"s{number % 6}" / f"a b {number}.wav", number)
    if how == "listed":
        how = str(tmp_path / "sources.txt")
        lines = [f"noise/s{number % 6}/a b {number}.wav  speaker{number % 6}\n" for number in range(24)]
        Path(how).write_text("".join(lines))
    bank = open_bank(settings_of(tmp_path / "bank", sources=how))
    parts = [{file.path.parent.name for file in kinds["noise"]} for kinds in bank.files.values()]
    assert sum(map(len, parts)) == 6
    assert set.union(*parts) == {f"s{number}" for number in range(6)}
    assert all(parts)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("folder", "'folder' gives no source for noise/n0.wav, noise/n1.wav"),
        (r"^([a-m])", r"gives no source for noise/n0\.wav"),
        (r"^n\d", "is none of `file`, `folder`"),
        ("(", "is none of `file`, `folder`"),
        ("no/such/file.txt", "is none of `file`, `folder`"),
    ],
)
def test_a_source_that_is_not_found_is_named(folder, how, complaint):
    with pytest.raises(UserError, match=complaint):
        open_bank(settings_of(folder, sources=how))


def test_folders_of_parts_are_taken_as_they_are(tmp_path):
    for number, part in enumerate(("train", "train", "test", "val")):
        write(tmp_path / "bank" / part / "noise" / f"n{number}.wav", number)
    bank = NoiseBank.open(tmp_path / "bank", ("noise",))
    assert names(bank) == {"train": {"n0.wav", "n1.wav"}, "test": {"n2.wav"}, "val": {"n3.wav"}}


def test_a_kind_may_be_called_train(tmp_path):
    for kind in ("train", "car"):
        for number in range(4):
            write(tmp_path / "bank" / kind / f"{number}.wav", number + len(kind) * 10)
    bank = NoiseBank.open(tmp_path / "bank", ("car", "train"))
    assert set.union(*names(bank, "train").values()) == {f"{number}.wav" for number in range(4)}


def test_one_content_in_two_parts_is_refused(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / "bank" / part / "noise" / f"{part}.wav", 0)
    with pytest.raises(UserError, match=r"test/noise/test\.wav, train/noise/train\.wav are of the same content"):
        NoiseBank.open(tmp_path / "bank", ("noise",))


def test_one_speaker_in_two_parts_is_refused(tmp_path):
    for number, part in enumerate(("train", "test")):
        write(tmp_path / "bank" / part / "noise" / f"s1-{number}.wav", number)
    NoiseBank.open(tmp_path / "bank", ("noise",))
    with pytest.raises(UserError, match="are of the same source s1, but in parts test and train"):
        NoiseBank.open(tmp_path / "bank", ("noise",), r"^(s\d)-")


def test_without_a_part_for_val_only_scoring_on_it_is_refused(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / "bank" / part / "noise" / "n.wav", len(part))
    noise = {"set": str(tmp_path / "bank"), "kinds": "noise"}
    check_settings([small_cell(tmp_path, noise=noise, snr_db={"train": [0], "test": [0]})])
    with pytest.raises(UserError, match=r"no val file of kind 'noise'.*val/noise"):
        check_settings([small_cell(tmp_path, noise=noise, snr_db={"train": [0], "test": [0]}, split="val")])


def test_few_sources_of_test_noise_are_mentioned_once(folder):
    cells = [small_cell(folder, noise={"set": str(folder), "kinds": "noise"}, seed=seed) for seed in (0, 1)]
    count = len(open_bank(cells[0].noise).files["test"]["noise"])
    assert count < 6
    (note,) = noise_notes(cells)
    assert f"'noise' is from {count} source" in note


# Wherever it lies


def test_links_to_folders_are_followed_but_not_in_circles(folder, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "noise").symlink_to(folder / "noise", target_is_directory=True)
    (folder / "noise" / "again").symlink_to(folder / "noise", target_is_directory=True)
    (tmp_path / "below" / "noise").mkdir(parents=True)
    (tmp_path / "below" / "noise" / "free-sound").symlink_to(folder / "noise", target_is_directory=True)
    for at in (folder, linked, tmp_path / "below"):
        parts = names(NoiseBank.open(at, ("noise",)))
        assert sum(map(len, parts.values())) == 10


def test_names_with_a_dot_in_front_are_passed_over(folder):
    (folder / "noise" / "._n3.wav").write_bytes(b"Mac OS X")
    write(folder / "noise" / ".trash" / "n.wav", 50)
    assert sum(map(len, names(NoiseBank.open(folder, ("noise",))).values())) == 10


@pytest.mark.parametrize("ending", ["aiff", "au", "caf", "FLAC", "mp3", "ogg", "opus", "w64"])
def test_formats_of_libsndfile_are_noise(tmp_path, ending):
    for number in range(3):
        path = tmp_path / "bank" / "noise" / f"{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = 0.1 * np.random.default_rng(number).standard_normal(16_000)
        form = {"opus": ("OGG", "OPUS"), "ogg": ("OGG", "VORBIS")}.get(ending, (ending.upper(), None))
        soundfile.write(path, samples, 16_000, format=form[0], subtype=form[1])
    bank = NoiseBank.open(tmp_path / "bank", ("noise",))
    for kinds in bank.files.values():
        assert np.array_equal(stretch(kinds["noise"][0], 5_000, 3_000), read_audio(kinds["noise"][0].path)[5_000:8_000])


def test_a_missing_kind_is_named_with_what_there_is(folder):
    write(folder / "music" / "a.txt.wav", 1)
    (folder / "speech").mkdir()
    (folder / "speech" / "notes.txt").write_text("no audio")
    with pytest.raises(UserError, match=r"kind 'babble'.*music, noise, speech.*\.flac"):
        NoiseBank.open(folder, ("noise", "babble"))
    with pytest.raises(UserError, match=r"no audio file of kind 'speech'"):
        NoiseBank.open(folder, ("speech",))


def test_every_unusable_file_is_named_and_may_be_left_out(folder):
    soundfile.write(folder / "noise" / "silent.wav", np.zeros(4_000), 16_000)
    soundfile.write(folder / "noise" / "constant.wav", np.full(4_000, 0.25), 16_000)
    soundfile.write(folder / "noise" / "nan.wav", np.full(4_000, np.nan), 16_000, "FLOAT")
    (folder / "noise" / "torn.flac").write_bytes(b"fLaC")
    (folder / "noise" / "gone.wav").symlink_to(folder / "nowhere.wav")
    unusable = [f"noise/{name}" for name in ("constant.wav", "gone.wav", "nan.wav", "silent.wav", "torn.flac")]
    with pytest.raises(UserError) as refused:
        NoiseBank.open(folder, ("noise",))
    assert ", ".join(unusable) in str(refused.value)
    assert "noise.leave_out" in str(refused.value)
    (folder / "noise" / "gone.wav").unlink()
    unusable.remove("noise/gone.wav")
    assert "torn.flac" not in str(names(NoiseBank.open(folder, ("noise",), leave_out=unusable)))
    for stray in ("noise/n99.wav", "./noise/n1.wav", str(folder / "noise" / "n1.wav"), "n1.wav"):
        with pytest.raises(UserError, match=rf"leave_out: {stray} is no noise file"):
            NoiseBank.open(folder, ("noise",), leave_out=(stray,))


def test_one_file_to_leave_out_needs_no_list():
    assert NoiseSettings(leave_out="noise/n1.wav").leave_out == ("noise/n1.wav",)


def test_one_file_is_too_few(tmp_path):
    write(tmp_path / "bank" / "noise" / "n.wav", 0)
    with pytest.raises(UserError, match="has one source of kind 'noise'"):
        NoiseBank.open(tmp_path / "bank", ("noise",))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_named(folder):
    (folder / "noise" / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match=r"closed cannot be listed"):
        NoiseBank.open(folder, ("noise",))


# Stretches


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("name", ["n.wav", "n.flac", "n.ogg"])
def test_a_stretch_is_that_part_of_the_whole_file(tmp_path, rate_hz, name):
    write(tmp_path / name, 0, 3 * rate_hz + 17, rate_hz)
    file = NoiseFile(tmp_path / name, "s", digest(tmp_path / name), **examine(tmp_path / name))
    whole = read_audio(tmp_path / name)
    assert file.samples == len(whole)
    assert file.power == pytest.approx(np.var(whole, dtype=np.float64), rel=1e-6)
    for start, samples in [
        (0, 1),
        (0, 500),
        (1_234, 16_001),
        (file.samples - 1, 1),
        (file.samples - 300, 300),
        (7, 40_000),
    ]:
        assert np.array_equal(stretch(file, start, samples), whole[start : start + samples])
    looped = np.concatenate([whole, whole, whole])
    for start, samples in [(file.samples - 10, 500), (100, file.samples), (5, 2 * file.samples)]:
        assert np.array_equal(stretch(file, start, samples), looped[start : start + samples])


def test_a_long_file_is_not_read_whole(tmp_path, monkeypatch):
    write(tmp_path / "n.wav", 0, 20 * 44_100, 44_100)
    monkeypatch.setattr(noise_clips, "PIECE", 16_000)
    read = []
    original = soundfile.read

    def watched(*arguments, **options):
        frames, rate_hz = original(*arguments, **options)
        read.append(len(frames))
        return frames, rate_hz

    monkeypatch.setattr(soundfile, "read", watched)
    file = NoiseFile(tmp_path / "n.wav", "s", digest(tmp_path / "n.wav"), **examine(tmp_path / "n.wav"))
    stretch(file, 150_000, 16_000)
    assert max(read) < 2 * 44_100


def test_files_that_must_be_decoded_whole_are_kept_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(noise_clips, "_kept", {})
    monkeypatch.setattr(noise_clips, "KEPT_BYTES", 40_000)
    for number, samples in enumerate((4_000, 4_000, 4_000, 16_000)):
        write(tmp_path / f"{number}.ogg", number, samples)
        path = tmp_path / f"{number}.ogg"
        file = NoiseFile(path, "s", digest(path), **examine(path))
        assert file.rate_hz is None
        stretch(file, 0, 100)
        assert sum(clip.nbytes for clip in noise_clips._kept.values()) <= 40_000
    assert list(noise_clips._kept) == [digest(tmp_path / f"{number}.ogg") for number in (1, 2)]


def test_noise_that_is_replaced_while_it_is_in_use_is_never_mixed(folder):
    """A worker was sent the files before: their digests are those of the condition that its tokens are cached under."""
    (file, *_) = NoiseBank.open(folder, ("noise",)).part("train")["noise"]
    stretch(file, 0, 100)
    write(file.path, 99)
    with pytest.raises(UserError, match="changed while it was in use; run the same command again"):
        stretch(file, 0, 100)


def test_kinds_are_distinct_names_of_sub_folders():
    for kinds in (("",), ("../x",), ("noise", "noise"), ("noise/",), (".",)):
        with pytest.raises(ValueError, match=r"no name of a sub-folder|stands twice"):
            NoiseSettings(kinds=kinds)


def test_a_kind_in_parts_and_beside_them_is_refused(folder):
    write(folder / "train" / "noise" / "n.wav", 1)
    with pytest.raises(UserError, match=r"has 'noise' in parts .* and beside them; keep one"):
        NoiseBank.open(folder, ("noise",))
