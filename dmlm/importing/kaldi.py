"""A Kaldi data folder: wav.scp, text, and perhaps segments and utt2spk; or a folder of such folders, one for each split.

    wav.scp    RECORDING FILE              segments    UTTERANCE RECORDING START_S END_S (-1: to its end)
    text       UTTERANCE WORDS             utt2spk     UTTERANCE SPEAKER
    lips.scp   RECORDING FILE, cut as the recording is          image.scp   UTTERANCE FILE          ocr   UTTERANCE WORDS
    utt2category, utt2split, utt2fold      UTTERANCE VALUE

Without segments, a recording is an utterance. Of these, Kaldi itself knows those of the first two lines. Nothing is ever
executed: of a pipe that only decodes a file, such as `flac -c -d -s FILE |`, the file is read.
"""

import re
import shlex
from pathlib import Path

from dmlm.errors import UserError
from dmlm.importing.source import Reading, Source, lines_of, split_named

OPTIONAL = {"ocr": "ocr", "category": "utt2category", "split": "utt2split", "fold": "utt2fold", "speaker": "utt2spk"}
OUTPUT = {"-", "pipe:1", "pipe:"}
SOUND = r"wav(pcm)?|flac|mp3|ogg|vorbis|opus|sph|aiff|au"  # not raw samples, whose rate no file says
# options by program that change no more than an import does itself: a rate of 16 kHz, one channel; with what they may say
DECODERS: dict[str, dict[str, str | None]] = {
    "cat": {},
    "flac": {"-[cdsf]+": None, "--(decode|stdout|silent|force)": None},
    "sph2pipe": {"-p": None, "-f": "wav|rif"},
    "sox": {"-[qGD]": None, "-V[0-6]?": None, "-t": SOUND, "-r": "16000|16k", "-c": "1", "-b": "16", "-e": "signed.*"},
    "ffmpeg": {
        "-(vn|y|nostdin|hide_banner)": None,
        "-(i|threads|loglevel|v)": ".*",
        "-f": "wav",
        "-ar": "16000|16k",
        "-ac": "1",
        "-(acodec|c:a|codec:a)": "pcm_s16le",
    },
}
Rows = dict[str, tuple[str, str]]  # value and place, by key


def read(folder: Path | str, reading: Reading) -> Source:
    """Read a data folder, or the data folders in a folder.

    Raises:
        UserError: a file is missing, a line is wrong, or a recording is made by a pipe that does more than decode a file.
    """
    folder = Path(folder)
    source = Source("kaldi")
    if (folder / "wav.scp").is_file():
        _read_one(source, folder, reading, None)
        return source
    folders = sorted(path.parent for path in folder.glob("*/wav.scp"))
    if not folders:
        raise UserError(f"{folder} has no wav.scp, nor has a folder in it; give a Kaldi data folder.")
    for one in folders:
        split = split_named(one.name)
        if split is None:
            raise UserError(
                f"The name of {one} says no split; call it train, dev or test, or import that folder alone."
            )
        _read_one(source, one, reading, split)
    return source


def _read_one(source: Source, folder: Path, reading: Reading, split: str | None) -> None:
    start = reading.media or folder
    recordings, texts = _rows(folder / "wav.scp", needed=True), _rows(folder / "text", needed=True)
    videos, pictures = _rows(folder / "lips.scp"), _rows(folder / "image.scp")
    facts = {field: _rows(folder / name) for field, name in OPTIONAL.items()}
    segments = _rows(folder / "segments") or {key: (key, where) for key, (_, where) in recordings.items()}
    for clip_id, (said, where) in segments.items():
        recording, times = _times(said, where)
        if recording not in recordings:
            source.lack("no_audio", f"wav.scp has no recording {recording}", where, clip_id)
            continue
        if clip_id not in texts:
            source.lack("no_text", "text has no line of it", where, clip_id)
            continue
        fields = {field: rows[clip_id][0] for field, rows in facts.items() if clip_id in rows}
        if split:
            fields["split"] = split
        source.add(
            where,
            id=clip_id,
            text=texts[clip_id][0],
            audio=({"path": start / decoded_file(*recordings[recording]), **times},),
            lips={"path": start / videos[recording][0], **times} if recording in videos else None,
            image=start / pictures[clip_id][0] if clip_id in pictures else None,
            **fields,
        )
    for clip_id, (_, where) in texts.items():
        if clip_id not in segments:
            source.lack("no_audio", "no recording or segment is called so", where, clip_id)


def _rows(path: Path, needed: bool = False) -> Rows:
    """Read a file of lines `KEY VALUE`; none if there is no such file.

    Raises:
        UserError: it is needed and missing, or a key is repeated.
    """
    if not path.is_file():
        if needed:
            raise UserError(f"There is no {path}; a Kaldi data folder has it.")
        return {}
    rows: Rows = {}
    for where, line in lines_of(path):
        key, _, value = re.sub(r"[ \t]+", " ", line.strip()).partition(" ")
        if key in rows:
            raise UserError(f"{where}: {key} is already on {rows[key][1].rpartition(', ')[2]}; ids must differ.")
        rows[key] = value, where
    return rows


def _times(said: str, where: str) -> tuple[str, dict[str, float]]:
    """Return the recording and the times of a line of segments, without its utterance; or of an utterance that has none."""
    recording, *numbers = said.split(" ")
    if not numbers:
        return recording, {}
    try:
        start_s, end_s = map(float, numbers[:2])
    except ValueError:
        raise UserError(f"{where} must read UTTERANCE RECORDING START_S END_S; correct the line.") from None
    return recording, {"start_s": start_s} | ({"end_s": end_s} if end_s != -1 else {})


def decoded_file(value: str, where: str) -> str:
    """Return the file of a value of wav.scp: itself, or what a pipe decodes.

    Raises:
        UserError: it is a pipe that may do more, or it points into an archive.

    >>> decoded_file("sph2pipe -f wav -p /a/b.sph |", "wav.scp, line 1")
    '/a/b.sph'
    """
    if not value.endswith("|"):
        if re.search(r"\.ark:\d+$", value):
            raise UserError(f"{where} points into an archive of Kaldi; write its recordings as files (wav-copy).")
        return value
    try:
        program, *words = shlex.split(value[:-1])
    except ValueError:  # an open quotation mark, or no word
        program, words = "", []
    options = DECODERS.get(Path(program).name, {})
    files, expected = list[str](), False
    position = 0
    while position < len(words):
        word = words[position]
        known = next((said for name, said in options.items() if re.fullmatch(name, word)), "")
        if known == "":  # no option of this program
            files += [word] if word not in OUTPUT else []
            expected |= word.startswith("-") and word not in OUTPUT
        elif known is not None:
            position += 1
            argument = words[position] if position < len(words) else ""
            expected |= not re.fullmatch(known, argument)
            files += [argument] if word == "-i" else []
        position += 1
    if Path(program).name not in DECODERS or expected or len(files) != 1 or set("|;&<>`$") & set(value[:-1]):
        raise UserError(
            f"{where}: the pipe `{value}` may do more than decode one file, and commands are not run; write its output to a"
            " file, and name that."
        )
    return files[0]
