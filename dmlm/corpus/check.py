"""Find every fault of a corpus before anything is made from it: manifest, media files, lengths, texts and splits.

Each media file is read to its end once; what was found is kept by the digest of its content (`dmlm.known_files`), so the
next check only looks whether a file has changed. The rules are in `dmlm.corpus.faults`.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlm import known_files
from dmlm.corpus import texts
from dmlm.corpus.faults import Fault, describe_left_out
from dmlm.corpus.inspection import FACTS, inspect_all
from dmlm.corpus.manifest import EMPTY, SPLITS, Corpus, Line, Utterance, read_corpus, read_lines
from dmlm.errors import UserError
from dmlm.modalities import FIELDS, FILES, FRAMES_HZ, SAMPLE_RATE_HZ
from dmlm.processes import Map

SHORTEST_S = 0.05  # of audio; every audio tokenizer gives a token for this length
DURATION_OFF_S = 0.06  # largest accepted difference of `duration_s` and the audio: one frame of video, and rounding
LIPS_OFF_S = 0.2  # largest accepted difference of lips and audio
MOUTH_PX = 224  # the largest picture that an encoder of mouths reads; they are cropped to 96
QUIET_RMS = 1e-3  # of full scale, -60 dB
CLIPPED_SHARE = 1e-3
OFFSET = 0.01  # of full scale
CANCELLING_DB = -20.0  # power of the mean of the channels, relative to the mean of their powers
RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000)

Found = Iterator[tuple[str, str]]  # rules that are broken, and what is wrong


class Unread(Exception):
    """There are media files that were never read to their end, and they were not to be read now."""


@dataclass(frozen=True)
class Media:
    """What is known of the media files of a corpus, by their path in the manifest."""

    digests: Mapping[str, str]  # of the files that exist
    facts: Mapping[str, dict[str, Any]]  # see `dmlm.corpus.inspection`; and `file`: audio, video or image


def check_folder(folder: Path, run: Map) -> list[Fault]:
    """Return every fault of a folder with a manifest: of a corpus, or of what is to become one.

    Raises:
        UserError: there is no manifest, or it is not UTF-8.
    """
    path, card = folder / "manifest.jsonl", folder / "corpus.json"
    if not card.is_file() or not path.is_file():
        return check_manifest(path, run)
    try:
        corpus = read_corpus(folder)
    except UserError as error:
        return [Fault("changed", f"{error}", str(card)), *check_manifest(path, run)]
    return check_corpus(corpus, FILES, run)[0]


def check_manifest(path: Path, run: Map) -> list[Fault]:
    """Return every fault of a manifest and its media, also of one that cannot be opened as a corpus.

    Raises:
        UserError: there is no such file, or it is not UTF-8.
    """
    lines = list(read_lines(path))
    faults = [*_line_faults(path, lines)]
    valid = [(line.number, line.utterance) for line in lines if line.utterance]
    names = {name: kind for _, utterance in valid for kind, name in utterance.media.items()}
    return _sorted([*faults, *_faults(path, valid, look_at(path.parent, names, run), {}, FILES)])


def check_corpus(
    corpus: Corpus, fields: Collection[str], run: Map | None, splits: Collection[str] = SPLITS
) -> tuple[list[Fault], Media]:
    """Return every fault of a corpus that is not left out, and what is known of its media.

    Args:
        corpus: with all its utterances
        fields: media to look at: `audio`, `lips`, `image`
        run: maps a function over jobs, with which new files are read; None: no file is read
        splits: whose media are looked at, so that a search never opens those of the test

    Raises:
        Unread: `run` is None, and there are files that were never read.
    """
    valid = list(enumerate(corpus.utterances, start=1))
    used = (utterance for utterance in corpus.utterances if utterance.split in splits)
    media = look_at(corpus.folder, {name: kind for u in used for kind, name in u.media.items() if kind in fields}, run)
    path = corpus.folder / "manifest.jsonl"
    return _sorted(_faults(path, valid, media, corpus.media_digests, fields, splits)), media


def look_at(folder: Path, kinds: Mapping[str, str], run: Map | None) -> Media:
    """Find digest and facts of media files; `kinds` gives the field of each by its path. Only new content is read.

    Raises:
        Unread: `run` is None, and there is new content.
    """
    by_path, refused = known_files.readable(folder / name for name in kinds)
    digests = {name: digest for name in kinds if (digest := by_path.get(folder / name))}
    facts = {name: {"unreadable": reason} for name in kinds if (reason := refused.get(folder / name))}
    for kind in dict.fromkeys(kinds.values()):
        form = FIELDS[kind].file
        assert form is not None
        names = {digests[name]: name for name in kinds if kinds[name] == kind and digests.get(name, EMPTY) != EMPTY}
        known = known_files.facts(FACTS[form], names)
        unknown = {folder / name: digest for digest, name in names.items() if digest not in known}
        if unknown and run is None:
            raise Unread
        looked = inspect_all([(path, form) for path in unknown], run) if run and unknown else ()
        for some in known_files.in_batches(looked):
            known |= {unknown[path]: found for path, found in some}
            still, _ = known_files.readable(path for path, _ in some)
            same = {digest: known[digest] for path, digest in still.items() if digest == unknown[path]}
            known_files.keep(FACTS[form], same)  # not of a file that changed while it was read
        of_kind = [name for name in kinds if kinds[name] == kind and digests.get(name) in known]
        facts |= {name: {**known[digests[name]], "file": form} for name in of_kind}
    return Media(digests, facts)


def errors_of(faults: Iterable[Fault]) -> list[Fault]:
    """Return those that a run refuses."""
    return [fault for fault in faults if fault.is_error]


def _sorted(faults: Iterable[Fault]) -> list[Fault]:
    """Return errors first, and among equals the order of the manifest; faults of splits at the end."""
    return sorted(faults, key=lambda fault: (not fault.is_error, fault.line is None, fault.line or 0))


def _line_faults(path: Path, lines: Sequence[Line]) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for line in lines:
        if line.utterance is None:
            empty = line.field == "text" and "empty" in line.problem
            what = f"{line.field}: {line.problem}" if line.field and not empty else line.problem
            yield Fault("empty_text" if empty else "line", what, str(path), line.number, line.id)
        elif first.setdefault(line.utterance.id, line.number) != line.number:
            what = f"the id is already used on line {first[line.utterance.id]}"
            yield Fault("repeated_id", what, str(path), line.number, line.id, line.utterance.split)


def _faults(
    path: Path,
    lines: Sequence[tuple[int, Utterance]],
    media: Media,
    recorded: Mapping[str, str],
    fields: Collection[str],
    splits: Collection[str] = SPLITS,
) -> Iterator[Fault]:
    manifest = str(path)
    sound: list[tuple[int, Utterance]] = []  # whose files have no error
    for number, utterance in lines:

        def fault(rule: str, what: str, file: str, number: int = number, of: Utterance = utterance) -> Fault:
            return Fault(rule, what, file, number, of.id, of.split)

        looked_at = utterance.media if utterance.split in splits else {}
        files = {kind: name for kind, name in looked_at.items() if kind in fields}
        of_files = [
            fault(rule, what, str(path.parent / name))
            for kind, name in files.items()
            for rule, what in _file_faults(kind, name, media, recorded)
        ]
        yield from of_files
        if not errors_of(of_files):
            sound.append((number, utterance))
            lengths = {kind: media.facts[name] for kind, name in files.items()}
            yield from (fault(rule, what, manifest) for rule, what in _length_faults(utterance, lengths))
        yield from (fault(rule, what, manifest) for rule, what in texts.form_faults(utterance.text))
    yield from texts.unseen_letters(lines, manifest)
    yield from _repeated_recordings(sound, media.digests, manifest)
    yield from split_faults([utterance for _, utterance in lines], manifest)


def _file_faults(kind: str, name: str, media: Media, recorded: Mapping[str, str]) -> Found:
    """Yield what is wrong with one file; of several causes of one trouble the first."""
    digest, facts = media.digests.get(name), media.facts.get(name, {})
    if digest is None and not facts:
        yield "missing", f"there is no such {kind} file"
    elif digest == EMPTY:
        yield "missing", f"the {kind} file is empty"
    elif digest and recorded.get(name, digest) != digest:
        yield "changed", f"the {kind} file is not the one that the corpus was made with"
    elif reason := facts.get("unreadable"):
        yield "unreadable", f"it cannot be read as {FIELDS[kind].file} ({reason})"
    elif facts["file"] != FIELDS[kind].file:
        yield "unreadable", f"it is given as {FIELDS[kind].file} here, elsewhere as {facts['file']}"
    elif facts.get("truncated"):
        yield "truncated", f"it {facts.get('fault') or 'ends before its header says'}"
    else:
        yield from {"audio": _audio_faults, "lips": _video_faults, "image": _image_faults}[kind](facts)


def _audio_faults(facts: Mapping[str, Any]) -> Found:
    duration_s, rate_hz = facts["duration_s"], facts["rate_hz"]
    if duration_s < SHORTEST_S:
        yield "too_short", f"it has {facts['samples']} samples; {SHORTEST_S} s are needed"
    elif facts["not_finite"]:
        yield "not_finite", f"{facts['not_finite']} samples are NaN or infinite"
    elif facts["cancel_db"] < CANCELLING_DB:
        yield "cancelling", f"its {facts['channels']} channels cancel when they are averaged"
    elif facts["rms"] == 0:
        yield "silent", "every sample is the same"
    elif facts["rms"] < QUIET_RMS:
        yield "nearly_silent", f"its level is {facts['rms']:.1e} of full scale"
    if facts["clipped_share"] > CLIPPED_SHARE:
        yield "clipped", f"{facts['clipped_share']:.1%} of its samples are cut off at the top"
    if abs(facts["dc"]) > OFFSET and facts["rms"] > 0:
        yield "dc_offset", f"its mean is {facts['dc']:+.3f} of full scale"
    if rate_hz not in RATES_HZ:
        yield "odd_rate", f"it has {rate_hz:,} samples a second, which no recorder uses"
    elif rate_hz < SAMPLE_RATE_HZ:
        yield "low_rate", f"it has {rate_hz:,} samples a second"


def _video_faults(facts: Mapping[str, Any]) -> Found:
    if facts["corrupt"]:
        yield "truncated", f"it is damaged: {facts['corrupt'][0]}"
    if facts["irregular"]:
        yield "frame_rate", f"{facts['irregular']} of its frames are missing or not on time"
    elif facts["frames"] != facts["frames_at_25"]:
        yield "frame_rate", f"it has {facts['frames'] / max(facts['duration_s'], 1e-9):.4g} frames a second"
    if facts["rotation"]:
        yield "rotated", f"it is to be shown turned by {facts['rotation']} degrees"
    if facts["constant"]:
        yield "blank", "every frame is the same"
    if min(facts["width"], facts["height"]) > MOUTH_PX:
        yield "uncropped", f"its pictures are {facts['width']} x {facts['height']} pixels, as of a face"


def _image_faults(facts: Mapping[str, Any]) -> Found:
    if facts["constant"]:
        yield "blank", "every pixel is the same"


def _length_faults(utterance: Utterance, facts: Mapping[str, Mapping[str, Any]]) -> Found:
    """Yield where the manifest, the audio and the lips disagree in length; `facts` are of the files, by field."""
    said_s, audio_s = utterance.duration_s, facts["audio"]["duration_s"] if "audio" in facts else utterance.duration_s
    in_ms = [end for _, end in utterance.spans if audio_s < end <= 1000 * (audio_s + DURATION_OFF_S) and end > 100]
    if 900 < said_s / audio_s < 1100:
        yield "milliseconds", f"duration_s is {said_s:g}, but the audio lasts {audio_s:.3f} s"
    elif abs(said_s - audio_s) > DURATION_OFF_S:
        yield "duration", f"duration_s is {said_s:g}, but the audio lasts {audio_s:.3f} s"
    elif in_ms:
        yield "milliseconds", f"a span ends at {in_ms[0]:g}, but the audio lasts {audio_s:.3f} s"
    else:
        yield from _span_faults(utterance, min(said_s, audio_s))
    if "lips" in facts and abs((lips_s := facts["lips"]["frames_at_25"] / FRAMES_HZ) - audio_s) > LIPS_OFF_S:
        yield "lips_length", f"the lips last {lips_s:.2f} s, the audio {audio_s:.2f} s"


def _span_faults(utterance: Utterance, audio_s: float) -> Found:
    last_s = 0.0
    for start_s, end_s in sorted(utterance.spans):
        span = f"span [{start_s:g}, {end_s:g}]"
        if not 0 <= start_s <= end_s <= utterance.duration_s + 1e-6:
            yield "span", f"{span} does not lie inside the clip of {utterance.duration_s:g} s"
        elif end_s - start_s < SHORTEST_S:
            yield "span", f"{span} is shorter than {SHORTEST_S} s"
        elif audio_s - (start_s + end_s) / 2 < SHORTEST_S / 2:
            yield "span", f"half of {span} lies beyond the audio of {audio_s:.3f} s"
        elif start_s < last_s - 1e-6:
            yield "span", f"{span} overlaps the one before"
        last_s = max(last_s, end_s)


def _repeated_recordings(
    lines: Sequence[tuple[int, Utterance]], digests: Mapping[str, str], manifest: str
) -> Iterator[Fault]:
    groups: dict[str, list[tuple[int, Utterance]]] = defaultdict(list)
    for number, utterance in lines:
        if digest := digests.get(utterance.audio):
            groups[digest].append((number, utterance))
    for (_, first), *others in groups.values():
        for number, utterance in others:
            rule = "same_recording" if utterance.split != first.split else "repeated_recording"
            what = f"its audio is that of {first.id!r} in split {first.split}"
            if utterance.text != first.text:
                what += f", and its text another one: {utterance.text!r:.80} here, {first.text!r:.80} there"
            yield Fault(rule, what, manifest, number, utterance.id, utterance.split)


def split_faults(
    utterances: Sequence[Utterance],
    manifest: str,
    left_out: Mapping[str, Mapping[str, int]] | None = None,
    used: Iterable[str] = ("train", "test"),
) -> Iterator[Fault]:
    """Yield what is wrong with the splits: one is empty, has new words, or shares texts or speakers with training.

    Args:
        utterances: that are used.
        manifest: its path, for the faults.
        left_out: how many are not used, by split and rule.
        used: splits that may not be empty.
    """
    for split in used:
        if not any(utterance.split == split for utterance in utterances):
            gone = {split: rules} if (rules := (left_out or {}).get(split)) else {}
            what = f"split {split} has no utterance" + (
                f" left, after leaving out {describe_left_out(gone)}" if gone else ""
            )
            yield Fault("empty_split", what, manifest, split=split)
    yield from texts.unseen_words(utterances, manifest)
    yield from texts.shared_with_training(utterances, manifest)
