"""The command `mouths`: crop mouths, or faces, from videos of faces."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dmlm.errors import UserError


def mouths(
    videos: Annotated[list[Path] | None, typer.Argument(help="Videos of a talking face.")] = None,
    to: Annotated[Path | None, typer.Option(help="Folder for the crops, NAME.mp4 each; mouths or faces.")] = None,
    landmarks: Annotated[str, typer.Option(help="Face detector: mediapipe or dlib.")] = "mediapipe",
    face: Annotated[bool, typer.Option("--face", help="The whole face: 224 x 224 pixels in colour.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one for each core.")] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Download the model of mediapipe first.")] = False,
) -> None:
    """Crop the mouth from videos of a talking face: 96 x 96 grey pixels, 25 frames a second. Interrupted, it goes on."""
    from dmlm import processes
    from dmlm.corpus import face_points, mouth_roi
    from dmlm.weights import published

    if not videos and not fetch:
        raise UserError("Say which videos: dmlm mouths talk.mp4 --to FOLDER.")
    for video in videos or []:
        if not video.is_file():
            raise UserError(f"There is no video {video}.")
    region = mouth_roi.FACE if face else mouth_roi.MOUTH
    folder = to or Path(f"{region.name}s")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder} is a file; give a folder.")
    if fetch and landmarks != "mediapipe":
        raise UserError(f"--fetch brings the model of mediapipe, not of {landmarks}; leave one of the two out.")
    if fetch:
        card = published.Card(
            "https://ai.google.dev/edge/mediapipe", "Apache-2.0", (published.File(**face_points.MODEL),)
        )
        print("\n".join(map(str, published.fetch(card, "mouth_roi"))))
    if videos:
        run = partial(processes.run, workers=workers, tasks_per_process=None)
        for done in mouth_roi.crop_all(videos, folder, landmarks, region, run):
            print(
                f"{done.path}: {done.frames} frames, the face found in {done.frames_with_face / done.frames:.0%} of them"
            )
