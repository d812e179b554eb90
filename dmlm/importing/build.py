"""Make a corpus from clips: media in processes, then splits, manifest and card. An interrupted import goes on.

    import.jsonl    what was made of each clip so far, by a key of its description, its files and the settings

A clip whose key and files are as they were is not made again.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dmlm import files, known_files, processes, progress
from dmlm.corpus.faults import Fault, listing, summary
from dmlm.corpus.manifest import Corpus, Utterance, read_corpus, write_corpus
from dmlm.errors import UserError
from dmlm.importing.clip import Clip
from dmlm.importing.copying import Copied, copy_clips, groups
from dmlm.importing.settings import ImportSettings
from dmlm.importing.splits import assign
from dmlm.modalities import FILES
from dmlm.plurals import counted

RECORDS = "import.jsonl"
SAFE = " !#$&'()+,;@[]^{}~"  # in the names of files, besides letters, digits and _.-
MADE_BY = "import/1"  # counts up with every change of this program that changes the media it makes
LONGEST_NAME = 150  # bytes


def make_corpus(
    clips: Sequence[Clip],
    folder: Path,
    card: Mapping[str, Any],
    settings: ImportSettings | None = None,
    faults: Sequence[Fault] = (),
    workers: int | None = None,
) -> Corpus:
    """Make the corpus of some clips in a folder, or what of it is missing.

    Args:
        clips: in the order of the manifest
        folder: gets audio, lips, image, import.jsonl, the manifest, and the card last
        card: name, version, licence, and more facts
        settings: splits, spans and so on
        faults: what the source lacks, each fault about one clip that is not among `clips`
        workers: number of processes; the result does not depend on it

    Raises:
        UserError: clips have faults that `settings.leave_out` does not settle (they are listed), or the clips cannot be
            split as asked.
    """
    settings = settings or ImportSettings()
    digest = described(clips, settings, faults)
    faults = [*faults, *_repeated(clips), *_without_text(clips)]
    faulty = {fault.utterance for fault in faults}
    sound = [clip for clip in clips if clip.id not in faulty]
    _settle(folder, faults, settings)  # before any work
    copied = _copied(sound, _keys(clips, settings), folder, settings, workers or processes.count())
    for clip in sound:
        if fault := copied[clip.id].get("fault"):
            rule, what, file = fault
            faults.append(clip.fault(rule, what, file))
    left_out = _settle(folder, faults, settings)
    kept = [clip for clip in sound if "fault" not in copied[clip.id]]
    if not kept:
        raise UserError(f"{folder.name}: no clip is left to import.")
    assigned, splits = assign(kept, settings)
    facts: dict[str, Any] = {**card, "splits": splits, "described": digest}
    facts["folds"] = settings.folds or len({clip.fold for clip in assigned} - {None}) or None
    facts |= {"import": settings.model_dump(mode="json"), "not_imported": dict(left_out)}
    facts["notes"] = dict(Counter(note for clip in kept for note in copied[clip.id]["notes"]))
    (folder / "corpus.json").unlink(missing_ok=True)  # it describes a manifest that is about to be replaced
    corpus = write_corpus(folder, [_utterance(clip, copied[clip.id]) for clip in assigned], facts)
    _remove_others(corpus)
    return corpus


def _remove_others(corpus: Corpus) -> None:
    """Remove the media of clips that are not in the corpus any more: somebody may have withdrawn a recording."""
    named = {name for utterance in corpus.utterances for name in utterance.media.values()}
    for kind in FILES:
        for path in (corpus.folder / kind).glob("*"):
            if path.is_file() and f"{kind}/{path.name}" not in named:
                path.unlink()


def is_made(clips: Sequence[Clip], folder: Path, settings: ImportSettings, faults: Sequence[Fault] = ()) -> bool:
    """Whether a folder holds the corpus of these very clips and settings, of files that have not changed since."""
    if not (folder / "corpus.json").is_file():
        return False
    corpus = read_corpus(folder)
    if corpus.card.get("described") != described(clips, settings, faults):
        return False
    records, keys = _records(folder), _keys(clips, settings)
    return all(_known(keys[utterance.id][1], records, folder) for utterance in corpus.utterances)


def described(clips: Sequence[Clip], settings: ImportSettings, faults: Sequence[Fault] = ()) -> str:
    """Return the digest of what a source says of its clips, and lacks, of their files as they are, and of the settings."""
    said = (clip.model_dump_json(exclude={"source"}) for clip in clips)
    keys = (key for _, key in _keys(clips, settings).values())
    lacks = (f"{fault.rule} {fault.utterance}" for fault in faults)
    return known_files.digest_of([settings.model_dump_json(), *lacks, *said, *keys])


def _repeated(clips: Sequence[Clip]) -> Iterator[Fault]:
    first: dict[str, Clip] = {}
    for clip in clips:
        if first.setdefault(clip.id, clip) is not clip:
            yield clip.fault("repeated_id", f"the id is already used by {first[clip.id].source or 'another clip'}")


def _without_text(clips: Sequence[Clip]) -> Iterator[Fault]:
    return (clip.fault("empty_text", "the text is empty") for clip in clips if not clip.text.strip())


def _settle(folder: Path, faults: Sequence[Fault], settings: ImportSettings) -> Counter[str]:
    """Count the clips that are left out, by rule.

    Raises:
        UserError: faults remain; lists them, and says how they can be settled.
    """
    errors = [fault for fault in faults if fault.rule not in settings.leave_out]
    if errors:
        raise UserError(summary(f"{folder.name}: the source has", errors, "--leave-out '{}'"), listing(errors))
    return Counter(fault.rule for fault in faults)


def _copied(
    clips: Sequence[Clip], keys: Mapping[str, tuple[str, str]], folder: Path, settings: ImportSettings, workers: int
) -> dict[str, Copied]:
    """Copy the media of every clip that is not there yet; return by id what was made."""
    folder.mkdir(parents=True, exist_ok=True)
    records = _records(folder)
    done = {clip.id: found for clip in clips if (found := _known(keys[clip.id][1], records, folder))}
    missing = [(clip, keys[clip.id][0]) for clip in clips if clip.id not in done]
    if not missing:
        return done
    (folder / "corpus.json").unlink(missing_ok=True)  # it describes media that are about to be replaced
    for part in folder.glob("*/.*.part"):  # of an import that was killed
        part.unlink(missing_ok=True)
    _forget(folder, records, {name for _, name in missing})
    jobs = groups(folder, missing, settings, workers)
    with (folder / RECORDS).open("a", encoding="utf-8") as file, progress.bar("import", len(clips), "clip") as bar:
        file.write("\n")  # ends a line that a kill cut short
        bar.update(len(done))
        for some in processes.run(copy_clips, jobs, workers, tasks_per_process=None):
            for clip_id, made in some:
                done[clip_id] = made
                if "fault" not in made:
                    file.write(_record(keys[clip_id][1], made))
            file.flush()
            bar.update(len(some))
    return done


def _forget(folder: Path, records: Mapping[str, Copied], names: set[str]) -> None:
    """Drop the records of files of these names, without suffix, which are about to be made anew: of another recording, say."""
    kept = {key: made for key, made in records.items() if Path(made["media"]["audio"]).stem not in names}
    if len(kept) < len(records):
        files.write_text(folder / RECORDS, "".join(_record(key, made) for key, made in kept.items()))


def _record(key: str, made: Copied) -> str:
    return json.dumps({"key": key, **made}, ensure_ascii=False) + "\n"


def _keys(clips: Sequence[Clip], settings: ImportSettings) -> dict[str, tuple[str, str]]:
    """Return by id the name of the files of each clip, and the key of what is made of it."""
    names = file_names([clip.id for clip in clips])
    return {clip.id: (names[clip.id], _key(clip, names[clip.id], settings)) for clip in clips}


def file_names(ids: Sequence[str]) -> dict[str, str]:
    """Return the name of the files of each id, without suffix: the id, where a file may be called so.

    Two names that differ in case alone are one on some systems, so they get a digest, after a `=` that no other name has.

    >>> file_names(["bbaf2n", "a/b", "A%2Fb"])["bbaf2n"], file_names(["x/.."])["x/.."]
    ('bbaf2n', 'x%2F..')
    """
    plain = {clip_id: quote(clip_id, safe=SAFE) for clip_id in ids}
    count = Counter(name.casefold() for name in plain.values())
    return {
        clip_id: name
        if count[name.casefold()] == 1 and len(name) <= LONGEST_NAME and not name.startswith(".")
        else f"{name[:LONGEST_NAME].lstrip('.')}={hashlib.sha256(clip_id.encode()).hexdigest()[:16]}"
        for clip_id, name in plain.items()
    }


def _key(clip: Clip, name: str, settings: ImportSettings) -> str:
    """Return a digest of what the media of a clip depend on, and of their name."""
    stats = [(path.stat().st_size, path.stat().st_mtime_ns) if os.path.isfile(path) else None for path in clip.files]
    described = clip.model_dump_json(include={"audio", "lips", "image", "spans"})
    chosen = settings.model_dump_json(include={"spans", "lips", "landmarks", "image_px"})
    return known_files.digest_of([MADE_BY, name, described, chosen, repr(stats)])


def _records(folder: Path) -> dict[str, Copied]:
    """Read what was made so far, by key; a line that a kill cut short is passed over."""
    path = folder / RECORDS
    records: dict[str, Copied] = {}
    for line in path.read_text("utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            record = json.loads(line)
            records[record.pop("key")] = record
        except (ValueError, KeyError, AttributeError):
            continue
    return records


def _known(key: str, records: Mapping[str, Copied], folder: Path) -> Copied | None:
    """Return what was made of a clip earlier, if all of it is still there."""
    found = records.get(key)
    return found if found and all((folder / name).is_file() for name in found["media"].values()) else None


def _utterance(clip: Clip, made: Copied) -> Utterance:
    said = clip.model_dump(include={"id", "split", "ocr", "speaker", "category", "translations", "fold"})
    timed = {"duration_s": made["duration_s"], "spans": made["spans"]}
    return Utterance.model_validate({**said, "text": clip.text, **made["media"], **timed})


def describe(corpus: Corpus) -> list[str]:
    """Return what a user should know of an imported corpus, a line each."""
    hours = sum(utterance.duration_s for utterance in corpus.utterances) / 3600
    sizes = ", ".join(f"{count:,} {split}" for split, count in corpus.counts.items())
    lines = [f"{counted(len(corpus.utterances), 'clip')}, {hours:.2f} h: {sizes} ({corpus.card['splits']})"]
    for field in ("lips", "image", "ocr"):
        if having := sum(getattr(utterance, field) is not None for utterance in corpus.utterances):
            lines.append(f"with {field}: {'all' if having == len(corpus.utterances) else f'{having:,}'}")
    for rule, count in corpus.card["not_imported"].items():
        lines.append(f"left out: {counted(count, 'clip')} ({rule})")
    lines += [f"{counted(count, 'clip')}: {note}" for note, count in corpus.card["notes"].items()]
    return lines
