"""Whether an audio file holds what its header promises: libsndfile reads a file that was cut as a shorter one.

libsndfile writes into its log where a header promises more than there is. Ogg, MP3 and NIST get a look of our own.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDLESS = 0x7FFF_F000  # bytes; who writes a header without knowing the length promises this or more
CHUNK = re.compile(  # bytes promised and bytes found
    r"^ *(?:data|SSND|BODY|Data Size|Data length|riff|Riff size) *:? (\d+) \(?should be (\d+)", re.MULTILINE
)
COUNT = re.compile(r"^ +(?:Frames|(?:Rows : \d+ +)?Cols) +: (\d+)", re.MULTILINE)  # samples promised
NIST_COUNT = re.compile(rb"sample_count -i (\d+)")
OGG_HOLE = re.compile("reports a hole|looking for the next page|Junk after the last page", re.IGNORECASE)
OGG_PAGE = 65_307  # bytes of the longest page
OGG_END = 4  # flag of the last page
KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # of MP3: MPEG-1
KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # MPEG-2 and MPEG-2.5
MP3_HZ = (44_100, 48_000, 32_000)
MP3_HALVED = {3: 0, 2: 1, 0: 2}  # how often: MPEG-1, MPEG-2, MPEG-2.5
MP3_SLACK = 4  # frames: delay and padding of the encoder, which are not read


@dataclass(frozen=True)
class Length:
    """What a header says of the length of a file, against what was read."""

    promised: int | None  # samples per channel; None if the header does not say
    fault: str | None  # what is wrong, as the end of a sentence; None if nothing is


def check(file: Any, read: int) -> Length:
    """Hold the header of an open `soundfile.SoundFile` against the samples per channel that were read, to its end."""
    path = Path(file.name)
    promised: int | None = max([file.frames, *_counts(file, path, read)])
    cut = "eems to be a truncated file" in file.extra_info
    if file.format == "OGG":
        cut = not _has_last_page(path)
        if not cut and OGG_HOLE.search(file.extra_info):
            return Length(promised, "is damaged: a part of it is missing")
    elif file.subtype == "MPEG_LAYER_III":
        held, cut, tagged = _mp3_samples(path.read_bytes())
        promised = file.frames if tagged else None
        if not cut and file.frames <= read < held:
            return Length(promised, f"holds more than the {read:,} samples that are read of it")
    cut |= promised is not None and promised > read
    return Length(promised, "ends before its header says" if cut else None)


def _counts(file: Any, path: Path, read: int) -> list[int]:
    """Return the numbers of samples that a header promises, beside `file.frames`."""
    counts = [int(count) for count in COUNT.findall(file.extra_info) if file.format != "RF64"]  # often wrong there
    if file.format == "NIST":
        with path.open("rb") as raw:
            counts += [int(count) for count in NIST_COUNT.findall(raw.read(1024))]
    for wanted, found in CHUNK.findall(file.extra_info):
        if int(found) < int(wanted) < ENDLESS:
            counts.append(max(read + 1, read * int(wanted) // max(1, int(found))))
    return counts


def _has_last_page(path: Path) -> bool:
    """Whether the last page of an Ogg file is whole and marked as the end of its stream (RFC 3533, section 6)."""
    with path.open("rb") as raw:
        raw.seek(max(0, path.stat().st_size - OGG_PAGE))
        tail = raw.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27 or not page[5] & OGG_END:
        return False
    lengths = page[27 : 27 + page[26]]
    return len(page) >= 27 + page[26] + sum(lengths)


def _mp3_samples(content: bytes) -> tuple[int, bool, bool]:
    """Walk over the frames of an MP3 file (ISO 11172-3, 2.4.1.3; the tag of their number is that of Xing and LAME).

    Returns:
        the samples that it holds at least, whether its last frame is cut, and whether a tag says how many there are.
    """
    position, samples, tagged = 0, 0, False
    while content[position : position + 3] == b"ID3":
        a, b, c, d = content[position + 6 : position + 10]
        position += 10 + (a << 21 | b << 14 | c << 7 | d)
    while position + 4 <= len(content) and content[position] == 0xFF and content[position + 1] & 0xE6 == 0xE2:
        version, third = content[position + 1] >> 3 & 3, content[position + 2]
        rate, padding = third >> 2 & 3, third >> 1 & 1
        if version not in MP3_HALVED or rate == 3 or third >> 4 in (0, 15):
            break
        if samples == 0 and not tagged and re.search(b"Xing|Info", content[position : position + 64]):
            tagged = True
        else:
            samples += 1152 if version == 3 else 576
        kbps = (KBPS_1 if version == 3 else KBPS_2)[third >> 4]
        step = 144_000 if version == 3 else 72_000
        position += step * kbps // (MP3_HZ[rate] >> MP3_HALVED[version]) + padding
    return samples - MP3_SLACK * 1152, position > len(content), tagged
