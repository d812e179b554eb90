"""The box of a face is looked for once a second, and again where the face is lost."""

import numpy as np
import pytest

from dmlm.corpus.face_points import follow

WIDTH = 40  # of the face


class Film:
    """Frames of a textured square that moves, and a detector that sees where it is; None: an empty room."""

    def __init__(self, places):
        rng = np.random.default_rng(0)
        self.face, self.room = (
            np.kron(rng.integers(0, 256, (height // 20, width // 20, 3)), np.ones((20, 20, 1)))
            for height, width in ((WIDTH, WIDTH), (120, 400))
        )
        self.places, self.looked = places, []

    def frames(self):
        for number, place in enumerate(self.places):
            self.number = number
            frame = self.room.astype(np.uint8)
            if place is not None:
                frame[40 : 40 + WIDTH, place : place + WIDTH] = self.face
            yield frame

    def box(self, frame):
        self.looked.append(self.number)
        place = self.places[self.number]
        return None if place is None else (place, 40, place + WIDTH, 40 + WIDTH)

    def landmarks(self, frame, box):
        """Like a shape predictor, it answers in every box, in the middle of it if there is no face."""
        place = self.places[self.number]
        left = box[0] if place is None or abs(place - box[0]) > WIDTH / 2 else place
        return np.array([[left, 40.0], [left + WIDTH, 80.0]])

    def lefts(self, every=25):
        points = follow(self.frames(), self.box, self.landmarks, every)
        return [None if face is None else int(face[0, 0]) for face in points]


@pytest.mark.parametrize(
    ("places", "looked"),
    [
        ([100] * 60, [0, 25, 50]),
        ([10 + 8 * n for n in range(40)], [0, 25]),  # much farther than the box is wide
        ([100] * 10 + [300] * 10, [0, 10]),  # a cut
        ([100] * 10 + [None] * 3 + [100] * 10, [0, 10, 11, 12, 13]),  # the face is away
        ([None] * 3, [0, 1, 2]),
    ],
)
def test_the_face_is_found_in_each_frame_and_looked_for_when_it_must_be(places, looked):
    film = Film(places)
    assert film.lefts() == places
    assert film.looked == looked


def test_the_box_may_be_looked_for_in_each_frame():
    film = Film([100] * 5)
    film.lefts(every=1)
    assert film.looked == [0, 1, 2, 3, 4]


def test_a_box_at_the_edge_of_the_picture_is_followed():
    film = Film([0] * 5)
    film.box = lambda frame: film.looked.append(film.number) or (-15, -10, WIDTH, 130)
    film.landmarks = lambda frame, box: np.array([[0.0, 40.0], [WIDTH, 80.0]])
    assert film.lefts() == [0] * 5
    assert film.looked == [0]
