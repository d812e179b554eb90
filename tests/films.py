"""Small videos for tests, written with PyAV."""

import struct
from fractions import Fraction

import av
import numpy as np

TURNS = {90: (0, 1, -1, 0), -90: (0, -1, 1, 0), 180: (-1, 0, 0, -1)}  # x' = a x + c y, y' = b x + d y


def write(path, frames, fps, pictures=None, without=(), codec="libx264", options=None):
    """A colour video whose frame n has grey level 5 n (or the pictures), lossless; frames `without` are left out."""
    with av.open(str(path), "w") as container:
        if options is None:
            options = {"qp": "0", "bf": "0"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        height, width = (64, 96) if pictures is None else pictures[0].shape[:2]
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            if number in without:
                continue
            shown = np.full((height, width, 3), 5 * number % 256, np.uint8) if pictures is None else pictures[number]
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            frame.pts, frame.time_base = number, 1 / Fraction(fps).limit_denominator(1001)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def turn(path, degrees):
    """Let an MP4 file say that it is to be shown turned; the matrix of its track header (ISO 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in TURNS[degrees])
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
