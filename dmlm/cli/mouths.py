"""The command `mouths`: crop mouths from videos of faces."""

from pathlib import Path
from typing import Annotated

import typer

from dmlm.errors import UserError


def mouths(
    videos: Annotated[list[Path] | None, typer.Argument(help="Videos of a talking face.")] = None,
    to: Annotated[Path, typer.Option(help="Folder for the mouth videos, NAME.mp4 each.")] = Path("mouths"),
    landmarks: Annotated[str, typer.Option(help="Face detector: mediapipe or dlib.")] = "mediapipe",
    fetch: Annotated[bool, typer.Option("--fetch", help="Download the model of mediapipe first.")] = False,
) -> None:
    """Crop the mouth from videos of a talking face: 96 x 96 grey pixels, 25 frames a second."""
    from dmlm.corpus import mouth_roi
    from dmlm.weights import published

    if not videos and not fetch:
        raise UserError("Say which videos: dmlm mouths talk.mp4 --to FOLDER.")
    for video in videos or []:
        if not video.is_file():
            raise UserError(f"There is no video {video}.")
    if to.exists() and not to.is_dir():
        raise UserError(f"--to {to} is a file; give a folder.")
    if fetch and landmarks != "mediapipe":
        raise UserError(f"--fetch brings the model of mediapipe, not of {landmarks}; leave one of the two out.")
    if fetch:
        card = published.Card(
            "https://ai.google.dev/edge/mediapipe", "Apache-2.0", (published.File(**mouth_roi.MODEL),)
        )
        print("\n".join(map(str, published.fetch(card, "mouth_roi"))))
    if videos:
        for mouth in mouth_roi.crop_all(videos, to, mouth_roi.detector(landmarks)):
            print(
                f"{mouth.path}: {mouth.frames} frames, the face found in {mouth.frames_with_face / mouth.frames:.0%} of them"
            )
