"""The worlds of blocks: their dynamics and pictures against trajectories of the source, and by hand."""

from __future__ import annotations

import golden
import numpy as np
import pytest

from envs import blocks

MADE = golden.load_flat("cswm/env_shapes")
SPREAD = np.array([[0, 0], [0, 4], [2, 2], [4, 0], [4, 4]])


def test_objects_move_as_in_the_source():
    env = blocks.make("shapes")
    for start, actions, positions in zip(MADE["in/init"], MADE["in/action"], MADE["out/position"], strict=True):
        _, info = env.reset(options={"position": start})
        seen = [info["position"], *(env.step(action)[4]["position"] for action in actions)]
        np.testing.assert_array_equal(seen, positions)


def test_borders_and_other_objects_stop_an_object_as_in_the_source():
    position, seen = MADE["in/hand_init"], [MADE["in/hand_init"]]
    for action in MADE["in/hand_action"]:
        position = blocks.moved(position, action)
        seen.append(position)
    np.testing.assert_array_equal(seen, MADE["out/hand_position"])


def test_objects_are_placed_as_in_the_source():
    rng = np.random.RandomState(1)
    places = [blocks.placed(lambda: rng.choice(np.arange(5))) for _ in MADE["in/init"]]
    np.testing.assert_array_equal(places, MADE["in/init"])


def test_shapes_look_as_in_the_source():
    np.testing.assert_array_equal(blocks.shape_masks(), MADE["out/cell_masks"])
    positions = [MADE["out/position"][tuple(index)] for index in MADE["in/frame_index"]]
    positions += list(MADE["in/hand_frame_position"])
    frames = np.concatenate([MADE["out/frames"], MADE["out/hand_frames"]])
    drawn = [blocks.draw_shapes(position) / 255 for position in positions]
    np.testing.assert_allclose(drawn, frames, rtol=0, atol=1e-7)


def test_an_episode_ends_at_its_limit_without_reward():
    env = blocks.make("shapes", steps=3)
    env.reset(seed=0)
    ends = [env.step(0)[1:4] for _ in range(3)]
    assert ends == [(0.0, False, False), (0.0, False, False), (0.0, False, True)]


@pytest.mark.parametrize("task", ["shapes", "cubes"])
def test_the_same_seed_places_the_same_and_a_state_continues(task):
    env, other = blocks.make(task), blocks.make(task)
    np.testing.assert_array_equal(env.reset(seed=3)[0], other.reset(seed=3)[0])
    env.step(5)
    state = env.get_state()
    other.reset(seed=9)
    other.set_state(state)
    np.testing.assert_array_equal(env.step(6)[0], other.step(6)[0])
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


def test_the_nearer_cube_hides_the_farther_one():
    purple, green = SPREAD.copy(), SPREAD.copy()
    purple[[0, 1]] = [[2, 1], [1, 2]]
    green[[0, 1]] = [[1, 2], [2, 1]]

    def seen(position, color):
        return np.abs(blocks.draw_cubes(position).astype(int) - color).max(-1) < 40

    for near, far, position in ((0, 1, purple), (1, 0, green)):
        colors = np.array(blocks.CUBE_COLORS)
        assert seen(position, colors[near]).sum() > 1.5 * seen(position, colors[far]).sum() > 0


def test_each_cube_is_seen_in_its_color():
    picture = blocks.draw_cubes(SPREAD).astype(int)
    for color in blocks.CUBE_COLORS:
        assert (np.abs(picture - np.array(color)).max(-1) < 30).sum() > 20


def test_an_unknown_world_is_refused():
    with pytest.raises(ValueError, match="blocks has no task 'spheres'"):
        blocks.make("spheres")
