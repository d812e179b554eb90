"""The noise bank: noise files by kind, known by their content, dealt by source to training, validation and test.

A source is a track, a speaker or a session. Parts share no source of a kind and no content, so a model never hears in a
test what it heard in training. Names matter only where a source is found by its name.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from dmlm import known_files, processes, progress
from dmlm.corpus.noise_clips import NoiseFile, examine
from dmlm.corpus.noise_sources import PARTS, deal, source_of
from dmlm.errors import UserError
from dmlm.files import below

FACTS = "noise/1"  # what `examine` finds; the number changes with it
FEW_SOURCES = 6  # of a kind in the test part; fewer are mentioned
MANY = 100  # files to examine from which on a progress bar is shown
NAMED = 20  # files in a sentence
# Names of what libsndfile reads. Not all of its formats: .mat, .raw or .iff files hold other things more often.
ENDINGS = (
    ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".sph", ".w64", ".wav"
)  # fmt: skip
Noise = Mapping[str, tuple[NoiseFile, ...]]  # kind -> files, ordered by content


@dataclass(frozen=True)
class NoiseBank:
    """Noise files by part (`test`, `val`, `train`) and kind, ordered by content, so that names change no draw."""

    folder: Path
    files: Mapping[str, Noise]

    @classmethod
    def open(
        cls, folder: Path, kinds: Sequence[str], sources: str = "file", leave_out: Sequence[str] = ()
    ) -> "NoiseBank":
        """Open `folder/{train,val,test}/KIND/**`, or `folder/KIND/**`, whose sources are dealt to the parts (`deal`).

        Each file is read to its end once, ever; see `dmlm.known_files`.

        Args:
            folder: of the files
            kinds: names of sub-folders
            sources: what is one source, see `NoiseSettings`
            leave_out: files that are not used, relative to the folder

        Raises:
            UserError: a kind has too few files or sources, files are unusable or have no source, or two parts share
                a source or a content.
        """
        fixed = any((folder / part / kind).is_dir() for part in PARTS for kind in kinds)
        if beside := [kind for kind in kinds if fixed and (folder / kind).is_dir()]:
            raise UserError(
                f"Noise folder {folder} has {beside[0]!r} in parts (train, test) and beside them; keep one of the two."
            )
        places = [(part, kind) for part in (PARTS if fixed else ("",)) for kind in kinds]
        listed = {(part, kind): _audio_files(folder / part / kind) for part, kind in places}
        _check_left_out(folder, leave_out, listed)
        listed = {
            place: [path for path in paths if path.relative_to(folder).as_posix() not in leave_out]
            for place, paths in listed.items()
        }
        for (part, kind), paths in listed.items():
            if not paths and part != "val":
                raise UserError(_nothing(folder, part, kind))
        files = _opened(folder, listed, sources)
        if fixed:
            dealt = {part: {kind: files[part, kind] for kind in kinds} for part in PARTS}
        else:
            parts = {kind: deal({file.source for file in files["", kind]}) for kind in kinds}
            dealt = {
                part: {kind: tuple(f for f in files["", kind] if parts[kind][f.source] == part) for kind in kinds}
                for part in PARTS
            }
        for kind in kinds:
            if not (dealt["test"][kind] and dealt["train"][kind]):
                raise UserError(
                    f"Noise folder {folder} has one source of kind {kind!r}; training and test need one each, and split"
                    " val a third: add files, or set noise.sources."
                )
        _check_apart(folder, dealt)
        return cls(folder, dealt)

    @cached_property
    def digests(self) -> dict[str, str]:
        """One SHA-256 for each part, over the contents of its files."""
        return {
            part: known_files.digest_of(f"{kind} {file.digest}" for kind, files in kinds.items() for file in files)
            for part, kinds in self.files.items()
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each kind whose test noise is from so few sources that results speak of these only."""
        counts = {kind: len({file.source for file in files}) for kind, files in self.files["test"].items()}
        return tuple(
            f"noise    test noise of kind {kind!r} is from {count} source{'s'[: count > 1]}: results are for"
            f" {f'these {count}' if count > 1 else 'this one'} only"
            for kind, count in counts.items()
            if count < FEW_SOURCES
        )

    def part(self, part: str) -> Noise:
        """Return the files of a part.

        Raises:
            UserError: a kind has none, which only `val` may lack.
        """
        if missing := [kind for kind, files in self.files[part].items() if not files]:
            raise UserError(
                f"Noise folder {self.folder} has no {part} file of kind {missing[0]!r}, which scoring split {part} needs; give"
                f" the kind three sources, or put files into {self.folder / part / missing[0]} if there are such folders."
            )
        return self.files[part]


def _audio_files(folder: Path) -> list[Path]:
    """List the audio files below a folder, by name. Links to folders are followed; names with a dot in front are not."""
    return [
        path
        for path in below(folder)
        if path.name.lower().endswith(ENDINGS)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _check_left_out(folder: Path, leave_out: Sequence[str], listed: Mapping[tuple[str, str], list[Path]]) -> None:
    """Check that each file to leave out is one that would be used, or of a kind that is not.

    Raises:
        UserError: one is neither, so its name is mistaken.
    """
    used = {path.relative_to(folder).as_posix() for paths in listed.values() for path in paths}
    kinds = tuple(f"{PurePosixPath(*place)}/" for place in listed)
    unused = {name: os.path.relpath(folder / name, folder) for name in leave_out if name not in used}
    if strays := [n for n, path in unused.items() if path.startswith(kinds) or not (folder / path).is_file()]:
        raise UserError(
            f"noise.leave_out: {named(strays)} is no noise file of {folder}; give paths relative to it, such as"
            f" {min(used, default='noise/n7.wav')}."
        )


def _nothing(folder: Path, part: str, kind: str) -> str:
    """Return a sentence about a kind without files: which kinds there are, and which endings were looked for."""
    at = folder / part
    kinds = (
        sorted(path.name for path in at.iterdir() if path.is_dir() and not path.name.startswith("."))
        if at.is_dir()
        else []
    )
    change = f", such as 'noise.kinds=[{', '.join(kinds)}]'" if kinds else ""
    return (
        f"Noise folder {folder} has no {part or 'audio'} file of kind {kind!r}; there, {at} has the sub-folders"
        f" {named(kinds) or '(none)'}, and audio is what ends with {' '.join(ENDINGS)}. Add files or change"
        f" noise.kinds{change}."
    )


def _opened(
    folder: Path, listed: Mapping[tuple[str, str], list[Path]], sources: str
) -> dict[tuple[str, str], tuple[NoiseFile, ...]]:
    """Return the files of each part and kind, ordered by content, with what is known of each.

    Raises:
        UserError: files are unusable or have no source; all of them are named.
    """
    paths = [path for paths in listed.values() for path in paths]
    digests = known_files.digests(paths)
    facts = _examined(folder, paths, digests)
    source_at = source_of(sources)
    found = {}
    without = []
    for (part, kind), of_kind in listed.items():
        files = []
        for path in of_kind:
            name = path.relative_to(folder / part / kind).as_posix()
            source = digests[path] if source_at is None else source_at(path.relative_to(folder).as_posix(), name)
            if source is None:
                without.append(path.relative_to(folder).as_posix())
            else:
                files.append(NoiseFile(path=path, source=source, digest=digests[path], **facts[digests[path]]))
        found[part, kind] = tuple(sorted(files, key=lambda file: (file.digest, file.path)))
    if without:
        raise UserError(
            f"noise.sources: {sources!r} gives no source for {named(without)} of {folder}; change it, or list them in"
            " noise.leave_out."
        )
    return found


def _examined(folder: Path, paths: Sequence[Path], digests: Mapping[Path, str]) -> dict[str, dict[str, Any]]:
    """Return what `examine` finds in each content; only contents that are new are read.

    Raises:
        UserError: some files are unusable; all of them are named.
    """
    known = known_files.facts(FACTS, digests.values())
    new = {path: None for path in paths if digests.get(path) not in known}

    def look(path: Path) -> dict[str, Any] | str:
        try:
            return examine(path)
        except UserError as error:
            return str(error)

    faults: dict[Path, str] = {}
    with ThreadPoolExecutor(processes.count()) as threads:
        looks = zip(new, threads.map(look, new), strict=True)
        shown = progress.track(looks, "noise files", len(new), "file") if len(new) >= MANY else looks
        for some in known_files.in_batches(shown):
            faults |= {path: facts for path, facts in some if isinstance(facts, str)}
            found = {digests[path]: facts for path, facts in some if not isinstance(facts, str)}
            known_files.keep(FACTS, found)
            known |= found
    if faults:
        names = named([path.relative_to(folder).as_posix() for path in faults])
        raise UserError(
            f"Noise folder {folder}: {names} cannot be used; list what is so in noise.leave_out. The first:"
            f" {next(iter(faults.values()))}"
        )
    return known


def _check_apart(folder: Path, dealt: Mapping[str, Noise]) -> None:
    """Check that no content, and no source of a kind, is in two parts.

    Raises:
        UserError: one is.
    """
    first: dict[tuple[str, str], tuple[str, NoiseFile]] = {}
    for part, kinds in dealt.items():
        for kind, files in kinds.items():
            for file in files:
                for what, key in (("content", ("", file.digest)), (f"source {file.source}", (kind, file.source))):
                    other_part, other = first.setdefault(key, (part, file))
                    if other_part != part:
                        names = named([path.relative_to(folder).as_posix() for path in (other.path, file.path)])
                        raise UserError(
                            f"Noise folder {folder}: {names} are of the same {what}, but in parts {other_part} and {part};"
                            " list one of them in noise.leave_out, or change noise.sources."
                        )


def named(names: Sequence[str]) -> str:
    """Return names for a sentence: all, or the first and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
