"""Five objects on a grid, moved one at a time: `make("shapes")` or `make("cubes")`. Needs only numpy and Pillow.

The worlds of Kipf, van der Pol, Welling 2020 (C-SWM), in code of our own. There is no reward: the worlds are for
learning a model, and for reaching a goal that a picture shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from ._suite import find_task

SIDE, OBJECTS, CELL = 5, 5, 10  # cells of the grid; objects; pixels of a cell
PIXELS = SIDE * CELL
STEPS = 100
MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])  # up, right, down, left, as (row, column)
SHAPE_COLORS = np.array([[228, 26, 28], [55, 126, 184], [77, 175, 74], [152, 78, 163], [255, 127, 0]], np.uint8)
CUBE_COLORS = [(128, 0, 128), (0, 128, 0), (255, 165, 0), (0, 0, 255), (165, 42, 42)]
Draw = Callable[[np.ndarray], np.ndarray]


class Blocks(gymnasium.Env):
    """A grid of 5 x 5 cells with five objects, each in a cell of its own.

    Observation: image uint8 [50, 50, 3]. Action: an index from 0 to 19: object index // 4 moves up, right, down or left
    (index % 4). A move out of the grid or into another object does nothing. The reward is always 0. Episodes are
    truncated after `steps` steps. `info` holds "position" int64 [5, 2], the (row, column) of each object.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, draw: Draw, steps: int = STEPS, render_mode: str | None = None):
        self.draw, self.steps, self.render_mode = draw, steps, render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (PIXELS, PIXELS, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(OBJECTS * len(MOVES))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Places the objects at random, or at options["position"], int [5, 2]."""
        super().reset(seed=seed)
        given = (options or {}).get("position")
        if given is None:
            self.position = placed(lambda: int(self.np_random.integers(SIDE)))
        else:
            self.position = np.array(given, np.int64)
        self.time = 0
        return self.draw(self.position), {"position": self.position.copy()}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Moves an object by one cell if it can move."""
        self.position = moved(self.position, int(action))
        self.time += 1
        return self.draw(self.position), 0.0, False, self.time >= self.steps, {"position": self.position.copy()}

    def render(self) -> np.ndarray:
        """Returns the observation, four times as large: uint8 [200, 200, 3]."""
        return self.draw(self.position).repeat(4, 0).repeat(4, 1)

    def get_state(self) -> Any:
        """Returns everything that the next steps depend on."""
        return self.position.copy(), self.time, self.np_random.bit_generator.state

    def set_state(self, state: Any) -> None:
        """Continues from a state that `get_state` returned."""
        self.position, self.time = state[0].copy(), state[1]
        self.np_random.bit_generator.state = state[2]


def placed(number: Callable[[], int]) -> np.ndarray:
    """Places the objects in turn: draws row and column by `number()`, 0 to 4, until the cell is free. int64 [5, 2]."""
    cells: list[tuple[int, int]] = []
    while len(cells) < OBJECTS:
        cell = int(number()), int(number())
        if cell not in cells:
            cells.append(cell)
    return np.array(cells, np.int64)


def moved(position: np.ndarray, action: int) -> np.ndarray:
    """Returns the position [5, 2] after an action. It is unchanged if the object cannot move."""
    which, direction = divmod(action, len(MOVES))
    goal = position[which] + MOVES[direction]
    if ((goal < 0) | (goal >= SIDE)).any() or (position == goal).all(-1).any():
        return position
    after = position.copy()
    after[which] = goal
    return after


# --- shapes -----------------------------------------------------------------------------------------


def shape_masks() -> np.ndarray:
    """Returns the pixels of a cell that an object covers, bool [5, 10, 10]: disc, triangle, square, disc, triangle."""
    i, j = np.mgrid[:CELL, :CELL]
    disc = (i - 5) ** 2 + (j - 5) ** 2 < 25
    triangle = (10 - i <= 2 * j) & (2 * j < 10 + i)
    kinds = (disc, triangle, np.ones_like(disc))
    return np.stack([kinds[index % 3] for index in range(OBJECTS)])


def draw_shapes(position: np.ndarray) -> np.ndarray:
    """Draws the shapes on black: position [5, 2] -> uint8 [50, 50, 3]."""
    picture = np.zeros((PIXELS, PIXELS, 3), np.uint8)
    for (row, column), mask, color in zip(CELL * position, _MASKS, SHAPE_COLORS, strict=True):
        picture[row : row + CELL, column : column + CELL][mask] = color
    return picture


_MASKS = shape_masks()


# --- cubes ------------------------------------------------------------------------------------------

FIGURE = 640, 480  # pixels of the figure that the source draws
CROP = 80, 215, 570, 455  # left, top, right, bottom of its part that becomes the observation
FINE = 2  # the figure is drawn this many times larger
ELEVATION, AZIMUTH, DISTANCE = np.deg2rad(30), np.deg2rad(-60), 10.0  # of the eye, in cubes of the whole grid
WINDOW = -0.0945, 0.0905  # what the figure shows of the projection, in both directions
MARGIN = 0.15  # cells between the grid and the ends of the axes
PANE = 0.11  # cells by which the floor is larger and deeper than the axes
FLOOR, EDGE = (128, 128, 128), 2


def project(points: np.ndarray) -> np.ndarray:
    """Projects points [.., 3] of the grid, 0 to 5, to pixels [.., 2] of the crop, (x, y). The third axis is up."""
    eye = DISTANCE * np.array(
        [np.cos(ELEVATION) * np.cos(AZIMUTH), np.cos(ELEVATION) * np.sin(AZIMUTH), np.sin(ELEVATION)]
    )
    back = eye / DISTANCE
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    seen = (np.asarray(points) - SIDE / 2) / (SIDE + 2 * MARGIN) - eye
    depth = -(seen @ back)
    flat = np.stack([seen @ right, seen @ np.cross(back, right)], -1) / depth[..., None]
    unit = (flat - WINDOW[0]) / (WINDOW[1] - WINDOW[0])
    pixels = np.stack([unit[..., 0], 1 - unit[..., 1]], -1) * FIGURE
    return FINE * (pixels - CROP[:2])


def draw_cubes(position: np.ndarray) -> np.ndarray:
    """Draws the cubes on a grey floor, from the farthest to the nearest: position [5, 2] -> uint8 [50, 50, 3]."""
    from PIL import Image, ImageDraw

    width, height = FINE * (CROP[2] - CROP[0]), FINE * (CROP[3] - CROP[1])
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    for color, corners in _faces(position):
        points = [tuple(point) for point in project(corners)]
        pen.polygon(points, fill=color)
        if color != FLOOR:
            pen.line([*points, points[0]], fill="black", width=EDGE)
    return np.asarray(picture.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS))


def _faces(position: np.ndarray) -> list[tuple[tuple[int, int, int], np.ndarray]]:
    """Returns the color and the corners [4, 3] of the floor and of the faces that can be seen, farthest first."""
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    wide = (SIDE + 2 * (MARGIN + PANE)) * square - (MARGIN + PANE)
    faces: list[tuple[tuple[int, int, int], np.ndarray]] = [(FLOOR, np.insert(wide, 2, -MARGIN - PANE, axis=1))]
    # The eye is at a large x and a small y.
    for index in np.argsort(position[:, 0] - position[:, 1], kind="stable"):
        corner = np.array([*position[index], 0])
        for axis, at in ((1, 0), (0, 1), (2, 1)):
            faces.append((CUBE_COLORS[index], corner + np.insert(square, axis, at, axis=1)))
    return faces


TASKS: dict[str, Draw] = {"shapes": draw_shapes, "cubes": draw_cubes}


def make(task: str, steps: int = STEPS, render_mode: str | None = None) -> gymnasium.Env:
    """Makes one task. steps: the length of an episode. Raises ValueError for an unknown name or no steps."""
    draw = TASKS[find_task("blocks", task, list(TASKS))]
    if steps < 1:
        raise ValueError(f"an episode needs at least one step, not {steps}")
    return Blocks(draw, steps, render_mode)
