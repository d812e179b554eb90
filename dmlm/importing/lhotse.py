"""A CutSet of lhotse: JSONL, perhaps compressed; or a folder of such files, one for each split.

A cut is a clip. The texts of its supervisions are joined, and each is a sentence span; one supervision that spans the whole
cut says nothing of where speech is. Fields that lhotse does not know are looked up in `custom`, of the cut or of its first
supervision: `lips` (or `video`; cut as the recording is), `image`, `ocr`, `category`, `split`, `fold`, `translations`.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmlm.errors import UserError
from dmlm.importing.source import Reading, Source, holds_cuts, split_named
from dmlm.modalities import SAMPLE_RATE_HZ

CUSTOM = ("ocr", "category", "split", "fold", "translations")
SAME_S = 1e-3  # times that lhotse rounds


def read(path: Path | str, reading: Reading) -> Source:
    """Read cuts.

    Raises:
        UserError: the package is missing, a file is damaged, or a cut is more than a stretch of one recording in a file.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(file for file in path.glob("*.jsonl*") if holds_cuts(file))
    if not files:
        raise UserError(f"{path} holds no cuts of lhotse; give a CutSet as .jsonl or .jsonl.gz.")
    source = Source("lhotse")
    for file in files:
        split = split_named(file.name) if len(files) > 1 else None
        if len(files) > 1 and split is None:
            raise UserError(f"The name of {file} says no split; call it cuts_train, cuts_dev or cuts_test.")
        for number, cut in enumerate(_cuts(file), start=1):
            _add(source, f"{file}, cut {number}", cut, reading.media or file.parent, split)
    return source


def _cuts(path: Path) -> Iterator[Any]:
    try:
        from lhotse import CutSet
    except ImportError:
        raise UserError('Cuts of lhotse need a package; run: pip install -e ".[lhotse]"') from None
    try:
        yield from CutSet.from_jsonl_lazy(path)
    except UserError:  # of who reads the cuts
        raise
    except Exception as error:  # of the JSON, of the compression, or a field of its own that lhotse asserts
        raise UserError(f"{path} cannot be read as cuts ({type(error).__name__}: {error}); write it again.") from None


def _add(source: Source, where: str, cut: Any, folder: Path, split: str | None) -> None:
    recording = _recording(cut, where)
    custom = {**(getattr(cut.supervisions[0], "custom", None) or {} if cut.supervisions else {}), **(cut.custom or {})}
    times: dict[str, float] = {}
    if cut.start > 0 or cut.duration < recording.duration - SAME_S:
        times = {"start_s": cut.start, "end_s": cut.end}
    said = sorted((one for one in cut.supervisions if (one.text or "").split()), key=lambda one: one.start)
    if not said:
        source.lack("no_text", "no supervision of it has a text", where, cut.id)
        return
    speakers = {one.speaker for one in said}
    fields: dict[str, Any] = {name: custom[name] for name in CUSTOM if custom.get(name) is not None}
    fields |= {"split": split} if split else {}
    audio = {"path": folder / recording.sources[0].source, **times}
    video = custom.get("lips") or custom.get("video")
    lips = {"path": folder / video, **times} if video else None
    source.add(
        where,
        id=cut.id,
        text=" ".join(word for one in said for word in one.text.split()),
        audio=(audio,),
        lips=audio if lips is None and getattr(recording, "has_video", False) else lips,
        image=folder / custom["image"] if custom.get("image") else None,
        speaker=speakers.pop() if len(speakers) == 1 else None,
        spans=_spans(said, cut.duration),
        **fields,
    )


def _recording(cut: Any, where: str) -> Any:
    """Return the recording that a cut is a stretch of.

    Raises:
        UserError: it is made otherwise: mixed, padded, changed, of several files, or one channel of several.
    """
    kind = type(cut).__name__
    if kind not in ("MonoCut", "MultiCut"):
        raise UserError(f"{where} ({cut.id}) is a {kind}; only cuts of one recording are read: MonoCut and MultiCut.")
    recording = cut.recording
    if recording is None:
        raise UserError(f"{where} ({cut.id}) has no recording; write the CutSet with its recordings.")
    kinds = [one.type for one in recording.sources]
    if kinds != ["file"]:
        raise UserError(
            f"{where} ({cut.id}) is stored as {', '.join(kinds)}; save it as one file: cut.save_audio(PATH)."
        )
    chosen = [cut.channel] if isinstance(cut.channel, int) else list(cut.channel)
    if sorted(chosen) != sorted(recording.channel_ids):
        raise UserError(
            f"{where} ({cut.id}) is a channel of several; save it as a file of its own: cut.save_audio(PATH)."
        )
    for change in recording.transforms or ():
        name, rate_hz = _change(change)
        if not (name == "Resample" and rate_hz >= SAMPLE_RATE_HZ):
            raise UserError(f"{where} ({cut.id}) is changed by {name}; save it as it sounds: cut.save_audio(PATH).")
    return recording


def _change(change: Any) -> tuple[str, float]:
    """Return the name of a transform of a recording, and the rate that it resamples to, if it does."""
    if not isinstance(change, dict):
        change = change.to_dict()
    return change["name"], change.get("kwargs", {}).get("target_sampling_rate", math.nan)


def _spans(said: list[Any], duration_s: float) -> tuple[tuple[float, float], ...] | None:
    """Return start and end of each supervision, inside the cut; None if one spans all of it."""
    spans = tuple((max(0.0, one.start), min(duration_s, one.end)) for one in said)
    whole = len(spans) == 1 and spans[0][0] < SAME_S and spans[0][1] > duration_s - SAME_S
    return None if whole else spans
