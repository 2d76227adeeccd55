"""`dreamer imagine`: scores, starts, given files and dreams, without a run."""

from __future__ import annotations

import dataclasses
import functools
import sys

import jax
import numpy as np
import pytest
import tiny
from scipy import ndimage

from dreamer import agent as agents
from dreamer.apps.imagine import command, files, generating, pictures, scores, starts
from dreamer.apps.imagine.flags import ImagineFlags
from dreamer.behaviors import random
from dreamer.data.episodes import Data, Episode, Found
from dreamer.errors import UserError
from dreamer.runtime.env.rows import EnvRows, empty_step
from dreamer.spaces import MASK, Action, Space, Spec
from envs import blocks

SPEC = tiny.SPECS["image"]
RNG = np.random.default_rng(0)


def pixels(*lead: int, side: int = 16) -> np.ndarray:
    return RNG.integers(0, 256, (*lead, side, side, 3)).astype(np.uint8)


# --- scores -----------------------------------------------------------------------------------------


def test_psnr_by_hand():
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 51, np.uint8)
    grey[1] = 0
    grey[1, 0, 0, 0] = 255
    np.testing.assert_allclose(scores.mse(black, grey), [51**2, 255**2 / 48])
    assert scores.psnr(51**2) == pytest.approx(20 * np.log10(5))  # a difference of a fifth of the range
    assert scores.psnr(255**2 / 48) == pytest.approx(16.8124, abs=1e-4)
    assert scores.psnr(0.0) == np.inf


def own_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 13 of Wang and others 2004 with Gaussian weights, where the whole window lies inside the image."""
    x, y = x.astype(float), y.astype(float)
    blur = functools.partial(ndimage.gaussian_filter, sigma=(1.5, 1.5, 0), radius=(5, 5, 0))
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    whole = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(whole[5:-5, 5:-5].mean())


def test_ssim_is_that_of_its_equation():
    one, noise = pixels(side=24), pixels(side=24)
    near = (0.8 * one + 0.2 * noise).astype(np.uint8)
    assert scores.ssim(one, one) == pytest.approx(1)
    assert scores.ssim(one, near) == pytest.approx(own_ssim(one, near), abs=1e-6)
    assert scores.ssim(one, noise) == pytest.approx(own_ssim(one, noise), abs=1e-6)
    assert scores.ssim(one, near) > 0.5 > scores.ssim(one, noise)


def test_each_horizon_counts_the_dreams_whose_future_reaches_it_and_compares_them_with_copies():
    start, true = pixels(2), [pixels(3), pixels(1)]
    dreamed = np.zeros((2, 4, 16, 16, 3), np.uint8)
    for n, frames in enumerate(true):
        dreamed[n, : len(frames)] = frames
    dreamed[0, 1] ^= 1  # every value is wrong by one
    found = scores.by_horizon(start, dreamed, true)
    assert [(score.horizon, score.dreams) for score in found] == [(1, 2), (2, 1), (3, 1)]
    assert [score.mse for score in found] == [0, 1, 0] and found[0].psnr == np.inf
    assert found[1].psnr == pytest.approx(48.1308, abs=1e-4) and found[0].ssim == pytest.approx(1)
    errors = [np.square(true[n][0].astype(float) - start[n]).mean() for n in range(2)]
    assert found[0].mse_copy == pytest.approx(np.mean(errors))
    assert found[0].psnr_copy == pytest.approx(10 * np.log10(255**2 / np.mean(errors)))
    assert found[2].ssim_copy == pytest.approx(own_ssim(true[0][2], start[0]), abs=1e-6)


def test_scores_are_written_for_other_programs():
    found = scores.by_horizon(pixels(1), pixels(1, 2), [pixels(2)], with_ssim=False)
    head, first, _ = command.as_csv(found).splitlines()
    assert head == "horizon,dreams,mse,mse_copy,psnr,psnr_copy,ssim,ssim_copy"
    assert first.startswith("1,1,") and first.endswith(",,")
    perfect = found[0]._replace(psnr=np.inf)
    assert command._finite(perfect)["psnr"] is None and "above" in command.lines(found, 1)[-1]


def test_ssim_without_its_package_or_of_tiny_frames_is_refused(monkeypatch):
    with pytest.raises(UserError, match="SSIM needs frames of at least 11 x 11 pixels, not 8 x 8: .* --ssim false"):
        scores.by_horizon(pixels(1, side=8), pixels(1, 1, side=8), [pixels(1, side=8)])
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(UserError, match=r"SSIM needs scikit-image.*pip install \"dreamer-jax\[video\]\".*--ssim false"):
        scores.by_horizon(pixels(1), pixels(1, 1), [pixels(1)])
    assert scores.by_horizon(pixels(1), pixels(1, 1), [pixels(1)], with_ssim=False)[0].ssim is None


# --- dreams -----------------------------------------------------------------------------------------


@functools.cache
def dreamer() -> tuple:
    """An agent whose world model does not sample, and its train state after updates."""
    world_model = tiny.parts("image")[0]
    behavior = random.make(random.Config(), SPEC)
    agent = agents.assemble(world_model, behavior, tiny.OPTIMIZER, SPEC)
    state = tiny.jit(agent.init)(jax.random.key(1))
    update = tiny.jit(agent.update)
    for _ in range(3):
        state, _ = update(state, tiny.make_batch(SPEC))
    return agent, state


def observed(batch, count: int) -> starts.Starts:
    prev = np.concatenate([np.zeros_like(batch.action[:, :1]), batch.action[:, :-1]], 1)
    obs = {key: x[:, :count] for key, x in batch.obs.items()}
    return starts.Starts(obs, prev[:, :count], batch.is_first[:, :count], prev[:, count:], lambda actions: None)


def test_frames_are_those_of_the_agents_own_open_loop_report():
    agent, state = dreamer()
    batch = tiny.make_batch(SPEC, batch_size=3, length=8, context=0)
    begun = observed(batch, 4)
    shown = np.asarray(tiny.jit(agent.report)(state, batch)["dream/image"])
    frames, taken = generating.generate(
        agent, agent.variables(state), SPEC, jax.random.key(0), begun, begun.recorded, 4, "image", "mode"
    )
    np.testing.assert_array_equal(taken, begun.recorded)
    apart = np.abs(frames.astype(float) - shown[:, 3:])
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3  # a value between two bytes may be rounded to either
    assert np.ptp(frames.astype(int), axis=1).max() > 0


def test_chunks_make_no_difference_and_a_longer_dream_begins_as_a_shorter_one():
    agent, state = dreamer()
    begun = observed(tiny.make_batch(SPEC, batch_size=2, length=4, context=0), 2)
    made = [
        generating.generate(
            agent, agent.variables(state), SPEC, jax.random.key(0), begun, None, steps, "image", "sample", frames
        )
        for steps, frames in ((7, 100), (7, 6), (5, 100))
    ]
    (whole, taken), (parts, others), (short, fewer) = made
    np.testing.assert_array_equal(taken, others)
    np.testing.assert_array_equal(taken[:, :5], fewer)
    assert np.abs(whole.astype(int) - parts).max() <= 1 and np.abs(whole[:, :6].astype(int) - short).max() <= 1
    assert (taken.sum(-1) == 1).all() and len({tuple(x) for x in taken.reshape(-1, 4)}) > 1


def test_each_start_is_repeated_and_its_dreams_are_averaged():
    begun = observed(tiny.make_batch(SPEC, batch_size=2, length=4, context=0), 2)
    many = starts.repeated(begun, 3)
    for one, several in zip((*begun.obs.values(), *begun[1:3]), (*many.obs.values(), *many[1:3]), strict=True):
        np.testing.assert_array_equal(several[[0, 1, 2, 5]], one[[0, 0, 0, 1]])
    frames = np.array([[1, 9], [2, 9], [6, 9], [4, 0], [4, 0], [5, 0]], np.uint8)[..., None, None, None]
    np.testing.assert_array_equal(generating.mean_of(frames, 3)[..., 0, 0, 0], [[3, 9], [4, 0]])


def test_rows_before_an_episode_do_not_count():
    agent, state = dreamer()
    begun = observed(tiny.make_batch(SPEC, batch_size=2, length=4, context=0), 2)
    first = begun.is_first.copy()
    first[:, 1] = True
    begun = begun._replace(is_first=first)
    other = begun._replace(obs={"image": np.concatenate([begun.obs["image"][:, :1] * 0, begun.obs["image"][:, 1:]], 1)})
    args = agent, agent.variables(state), SPEC, jax.random.key(0)
    frames = [generating.generate(*args, one, begun.recorded, 2, "image", "mode")[0] for one in (begun, other)]
    np.testing.assert_array_equal(*frames)


def test_only_images_that_are_observed_and_decoded_can_be_shown():
    agent, blind = dreamer()[0], tiny.make_agent("vector")
    assert generating.image_of(SPEC, agent, "", "the run x") == "image"
    with pytest.raises(UserError, match="^the run x observes no image, which imagine shows, only vector$"):
        generating.image_of(tiny.SPECS["vector"], blind, "", "the run x")
    with pytest.raises(UserError, match="^--image: the run x observes no image 'depth', its images are image$"):
        generating.image_of(SPEC, agent, "depth", "the run x")
    mute = agent._replace(world_model=agent.world_model._replace(decode=lambda v, latent: {}))
    with pytest.raises(UserError, match="the world model of the run x decodes no image: it has nothing to show"):
        generating.image_of(SPEC, mute, "", "the run x")


# --- starts -----------------------------------------------------------------------------------------


def episode(rows: int, number: int = 0, spec: Spec = SPEC) -> Episode:
    action = np.eye(4, dtype=np.float32)[RNG.integers(0, 4, rows)]
    action[-1] = 0
    at = np.arange(rows)
    flags = at == 0, at == rows - 1, np.zeros(rows, bool)
    return Episode(f"episode {number}", {"image": pixels(rows)}, action, np.zeros(rows, np.float32), *flags)


def data(*episodes: Episode) -> Data:
    spec = Spec({"image": Space((16, 16, 3), "uint8")}, Action((4,)))
    return Data("npz", "my-data", spec, None, None, (), (), lambda: (Found(one) for one in episodes))


def test_a_recorded_row_brings_its_past_and_its_future():
    one, two = episode(5), episode(9, 1)
    begun = starts.from_rows(data(one, two), [8, 1], 3, 4, "image", 0)
    # row 8 is row 3 of the second episode
    np.testing.assert_array_equal(begun.obs["image"][0], two.obs["image"][1:4])
    np.testing.assert_array_equal(begun.prev_action[0, 1:], two.action[1:3])
    np.testing.assert_array_equal(begun.recorded[0], two.action[3:7])
    np.testing.assert_array_equal(begun.is_first, [[True, False, False], [True, True, False]])
    np.testing.assert_array_equal(begun.obs["image"][1, 1:], one.obs["image"][:2])
    future = begun.future(begun.recorded)
    np.testing.assert_array_equal(future[0], two.obs["image"][4:8])
    np.testing.assert_array_equal(future[1], one.obs["image"][2:5])
    np.testing.assert_array_equal(begun.recorded[1, :3], one.action[1:4])
    assert begun.recorded[1, 3].sum() == 1  # after the end of the episode: random
    assert begun.future(begun.recorded[:, ::-1]) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (14, "--start row:14: my-data has 14 rows, from 0 to 13"),
        (4, "--start row:4 is the last row of its episode, episode 0: nothing follows it"),
    ],
)
def test_a_row_that_cannot_begin_a_dream_is_named(row, message):
    with pytest.raises(UserError) as caught:
        starts.from_rows(data(episode(5), episode(9, 1)), [row], 3, 4, "image", 0)
    assert str(caught.value) == message


def test_random_rows_are_followed_by_as_many_rows_as_can_be_had():
    given = data(episode(5), episode(40, 1), episode(1, 2))
    drawn = starts.random_rows(given, 50, 100, 0)
    assert drawn == sorted(drawn) and set(drawn) == set(range(5, 15))  # 30 rows follow
    assert set(starts.random_rows(given, 200, 3, 1)) == {0, 1, *range(5, 42)}
    with pytest.raises(UserError, match="my-data has no episode of two rows or more"):
        starts.random_rows(data(episode(1)), 1, 3, 0)


def test_an_environment_follows_the_actions_until_its_episode_ends():
    rows, env = EnvRows(blocks.make("shapes", steps=6), seed=3), blocks.make("shapes", steps=6)
    step, actions = empty_step(rows.spec, 1), np.eye(20, dtype=np.float32)[RNG.integers(0, 20, 9)]
    rows.turn(step, 0)
    env.reset(seed=3)
    frames = starts.follow(rows, step, actions, "image")
    np.testing.assert_array_equal(frames, [env.step(int(action.argmax()))[0] for action in actions[:6]])


# --- files ------------------------------------------------------------------------------------------


def save(folder, name: str, **arrays) -> str:
    path = str(folder / name)
    if name.endswith(".npz"):
        np.savez(path, **arrays)
    else:
        np.save(path, next(iter(arrays.values())), allow_pickle=True)
    return path


def test_actions_are_vectors_or_indices_for_all_dreams_or_each(tmp_path):
    action, numbers = Action((4,)), Action(continuous=2)
    eye = np.eye(4, dtype=np.float32)
    for given, wanted in (
        (np.array([1, 2, 3]), np.stack([eye[[1, 2]]] * 2)), (np.array([[1, 2], [0, 3]]), eye[[[1, 2], [0, 3]]]),
        (eye[[3, 0]].astype(int), np.stack([eye[[3, 0]]] * 2)), (np.arange(4), np.stack([eye[:2]] * 2)),
        (np.ones((2, 4), int), np.stack([eye[[1, 1]]] * 2)), (eye[[3, 0]], np.stack([eye[[3, 0]]] * 2)),
        (eye[[[1, 2], [0, 3]]], eye[[[1, 2], [0, 3]]]),
    ):  # fmt: skip
        np.testing.assert_array_equal(files.read_actions(save(tmp_path, "a.npy", a=given), action, 2, 2), wanted)
    file = save(tmp_path, "a.npz", action=np.full((2, 2), 0.5), other=np.zeros(3))
    np.testing.assert_array_equal(files.read_actions(file, numbers, 1, 2), np.full((1, 2, 2), 0.5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 3)), r"holds float64 \[2, 3\], not \[3, 4\] or \[2, 3, 4\] or indices \[3\] for --steps 3: an a"),
        (np.array([0, 1]), r"holds float32 \[2, 4\], not \[3, 4\]"),
        (np.zeros((3, 3, 4)), r"holds float64 \[3, 3, 4\], not"),
        (np.array([0, 1, 4]), "has the action 4, not 0 to 3"),
        (np.zeros((3, 4)), "entries 0 to 3 of an action are not a one-hot"),
        (np.array([{}, {}]), "cannot be read: ValueError"),
    ],
)
def test_actions_of_a_wrong_form_are_named(given, message, tmp_path):
    with pytest.raises(UserError, match=message):
        files.read_actions(save(tmp_path, "a.npy", a=given), Action((4,)), 2, 3)


def test_numbers_of_actions_out_of_range_and_missing_arrays_are_named(tmp_path):
    with pytest.raises(UserError, match="the numbers of an action must be from -1 to 1"):
        files.read_actions(save(tmp_path, "a.npy", a=np.full((3, 2), np.nan)), Action(continuous=2), 1, 3)
    with pytest.raises(UserError, match="has no array 'action'; did you mean 'actions'?"):
        files.read_actions(save(tmp_path, "a.npz", actions=np.zeros(3), b=np.zeros(3)), Action((4,)), 1, 3)
    with pytest.raises(UserError, match="there is no such file"):
        files.read_actions(str(tmp_path / "none.npy"), Action((4,)), 1, 3)
    (tmp_path / "cut.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="cut.npz is not an npz file, or is cut short"):
        files.read_actions(str(tmp_path / "cut.npz"), Action((4,)), 1, 3)


def test_a_start_is_one_picture_or_rows_with_the_actions_between_them(tmp_path):
    from PIL import Image

    spec = Spec({"image": Space((16, 16, 3), "uint8")}, Action((4,)))
    picture = pixels()
    Image.fromarray(picture).save(tmp_path / "a.png")
    for file in (save(tmp_path, "a.npy", a=picture), save(tmp_path, "a.npz", image=picture), str(tmp_path / "a.png")):
        obs, actions = files.read_start(file, spec)
        np.testing.assert_array_equal(obs["image"], [picture])
        assert actions.shape == (0, 4)
    eye = np.eye(4)[[1, 3]]
    begun = starts.from_file(save(tmp_path, "b.npz", image=pixels(3), action=eye), spec, 2)
    assert begun.obs["image"].shape == (2, 3, 16, 16, 3) and begun.future(eye) is None and begun.recorded is None
    np.testing.assert_array_equal(begun.prev_action[1, 1:], eye)
    np.testing.assert_array_equal(begun.is_first, [[True, False, False]] * 2)


def test_a_missing_action_mask_allows_everything(tmp_path):
    mask = Space((4,), "int32", classes=2)
    spec = Spec({"image": Space((16, 16, 3), "uint8"), MASK: mask}, Action((4,)))
    obs, _ = files.read_start(save(tmp_path, "a.npz", image=pixels(3), action=np.eye(4)[:2]), spec)
    np.testing.assert_array_equal(obs[MASK], np.ones((3, 4)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": pixels(side=8)}, r"'image' is uint8 \[8, 8, 3\], not uint8 \[16, 16, 3\] or rows of it"),
        ({"image": np.full((16, 16, 3), 256)}, "'image' has values that are not from 0 to 255"),
        ({"image": pixels(2)}, r"2 rows need an array 'action' \[1, 4\] with the actions between them, not nothing"),
        ({"picture": pixels()}, "'image' is missing; the run observes image"),
        ({"image": pixels(), "sound": np.zeros(1)}, "'sound' is no observation of the run"),
    ],
)
def test_a_start_of_a_wrong_form_is_named(arrays, message, tmp_path):
    spec = Spec({"image": Space((16, 16, 3), "uint8")}, Action((4,)))
    with pytest.raises(UserError, match=message):
        files.read_start(save(tmp_path, "a.npz", **arrays), spec)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"video": "film.json"}, "--video 'film.json' must end in .mp4"),
        ({"start": "rest"}, "--start 'rest' must be reset, rows, row:N or a file in .*; did you mean 'reset'?"),
        ({"start": "row:-1"}, "--start row:-1: a row is a number from 0 on, such as row:120"),
        ({"actions": "recorded"}, "--actions recorded needs recorded rows, --start rows or row:N, not reset"),
        ({"actions": "polic"}, "--actions 'polic' must be .*; did you mean 'policy'?"),
        ({"data": "d", "start": "reset"}, "--data is read for --start rows and row:N only, not for reset"),
    ],
)
def test_flags_that_do_not_fit_together_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        command._chosen(ImagineFlags(**flags), "reset")


# --- pictures ---------------------------------------------------------------------------------------


def test_a_film_shows_truth_dream_and_error_and_black_where_the_truth_has_ended():
    start, dreamed, true = pixels(2), pixels(2, 4), [pixels(3), pixels(1)]
    rows = pictures.rows_of(dreamed, start, true)
    np.testing.assert_array_equal(rows["true"][0], [start[0], *true[0]])
    np.testing.assert_array_equal(rows["error"][1, 1], np.abs(true[1][0].astype(int) - dreamed[1, 1]))
    assert not rows["true"][1, 2:].any() and not rows["error"][1, 2:].any()
    assert set(pictures.rows_of(dreamed, start, None)) == {"model"}
    assert dataclasses.asdict(ImagineFlags())["dreams"] == 4
