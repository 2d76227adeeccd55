"""The protocol, ends and options of each suite, tested if its package is installed."""

from __future__ import annotations

import numpy as np
import pytest
from playing import play, same

from dreamer import plugins
from dreamer.errors import UserError
from dreamer.runtime.env.adapter import spec_of

# Warnings of the packages themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]


class TestAtari:
    """Compares the protocol with the emulator, frame by frame."""

    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("ale_py")

    def emulator(self, env):
        """Returns a new emulator without sticky actions, advanced by the frames that the episode waited."""
        import ale_py

        waited = env.unwrapped._ale.getEpisodeFrameNumber()
        ale = ale_py.ALEInterface()
        ale.setFloat("repeat_action_probability", 0.0)
        ale.loadROM(ale_py.roms.get_rom_path("breakout"))
        for _ in range(waited):
            ale.act(0)
        return ale

    def test_a_picture_is_the_brighter_of_two_frames_made_smaller_and_then_gray(self):
        from PIL import Image

        env = plugins.make_env("atari:breakout", {"sticky": 0.0})
        env.reset(seed=1)
        ale = self.emulator(env)
        before = ale.getScreenRGB()
        for action in [1, 0, 3, 4, 0, 3, 3, 1] * 4:
            obs, reward, *_ = env.step(action)
            assert reward == ale.act(action)
            now = ale.getScreenRGB()
            small = np.array(Image.fromarray(np.amax([before, now], 0)).resize((96, 96), Image.Resampling.BILINEAR))
            gray = (small * np.array([0.299, 0.587, 1 - (0.299 + 0.587)])).sum(-1).astype(np.uint8)
            np.testing.assert_array_equal(obs, gray[:, :, None])
            before = now

    def test_the_first_picture_is_of_one_frame(self):
        from PIL import Image

        env = plugins.make_env("atari:breakout", {"gray": False, "size": [64, 48]})
        for _ in range(2):  # the second time after an episode, which must leave nothing
            obs, _ = env.reset()
            wanted = Image.fromarray(env.unwrapped._ale.getScreenRGB()).resize((48, 64), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(obs, np.asarray(wanted))
            for _ in range(20):
                env.step(1)

    def test_an_episode_begins_after_0_to_30_frames(self):
        env = plugins.make_env("atari:pong")
        env.reset(seed=0)
        waits = {env.reset() and env.unwrapped._ale.getEpisodeFrameNumber() for _ in range(60)}
        assert min(waits) <= 5 and 25 <= max(waits) <= 30

    @pytest.mark.parametrize("terminal", [False, True])
    def test_the_limit_cuts_the_episode_and_is_an_end_only_when_asked(self, terminal):
        env = plugins.make_env("atari:pong", {"limit": 4, "limit_is_terminal": terminal})
        env.reset(seed=0)
        ends = [env.step(0)[2:4] for _ in range(4)]
        assert ends == [(False, False)] * 3 + [(terminal, not terminal)]

    def test_the_loss_of_a_life_is_not_an_end(self):
        env = plugins.make_env("atari:breakout", {"sticky": 0.0})
        env.reset(seed=0)
        lives, ends = [], []
        for step in range(2_000):
            ends.append(env.step(1 if step % 2 else 0)[2])
            lives.append(env.unwrapped._ale.lives())
            if ends[-1]:
                break
        assert set(lives) == {5, 4, 3, 2, 1, 0} and ends == [False] * (len(ends) - 1) + [True]

    def test_all_actions_or_those_of_the_game(self):
        assert plugins.make_env("atari:breakout").action_space.n == 18
        assert plugins.make_env("atari:breakout", {"actions": "minimal"}).action_space.n == 4

    @pytest.mark.parametrize("name", ["jamesbond", "james_bond", "JamesBond", "MsPacman", "ms_pacman"])
    def test_a_game_is_found_however_it_is_written(self, name):
        plugins.make_env(f"atari:{name}").close()

    @pytest.mark.parametrize(
        "options, message",
        [({"actions": "al"}, "actions is 'al'; choices: 'all', 'minimal'"), ({"sticky": 1}, "sticky is a probability")],
    )
    def test_a_wrong_option_is_named(self, options, message):
        with pytest.raises(UserError, match=message):
            plugins.make_env("atari:pong", options)


def test_a_vizdoom_timeout_is_not_a_true_end():
    pytest.importorskip("vizdoom")
    env = plugins.make_env("vizdoom:Basic")
    env.reset(seed=0)
    answers = [env.step(0)]
    while not (answers[-1][2] or answers[-1][3]):
        answers.append(env.step(0))
    assert answers[-1][2:4] == (False, True) and same(answers[-1][0], answers[-2][0])
    env.close()


def test_vizdooms_death_is_a_true_end():
    pytest.importorskip("vizdoom")
    env = plugins.make_env("vizdoom:TakeCover")
    env.reset(seed=0)
    for _ in range(5_000):
        *_, over, cut, _ = env.step(0)
        if over or cut:
            break
    assert (over, cut) == (True, False)
    env.close()


def test_vizdooms_crop_keeps_rows_of_the_picture():
    pytest.importorskip("vizdoom")
    images = []
    for options in ({"size": [240, 320]}, {"size": [120, 320], "crop": [0.25, 0.75]}):
        env = plugins.make_env("vizdoom:TakeCover", options)
        images.append(env.reset(seed=0)[0]["image"])
        env.close()
    assert (images[1] == images[0][60:180]).all()
    with pytest.raises(UserError, match=r"crop is \[top, bottom\] with 0 <= top < bottom <= 1, not \[0.5, 0.2\]"):
        plugins.make_env("vizdoom:TakeCover", {"crop": [0.5, 0.2]})


def test_bsuite_has_every_experiment_and_counts_its_episodes():
    pytest.importorskip("bsuite")
    from bsuite import sweep

    for name in sorted({key.split("/")[0] for key in sweep.SWEEP} - {"mnist", "mnist_noise", "mnist_scale"}):
        env = plugins.make_env(f"bsuite:{name}")
        assert same(play(env, 1, 5), play(env, 1, 5)) and env.episodes in (1_000, 10_000)


def test_bsuites_settings_are_counted():
    pytest.importorskip("bsuite")
    with pytest.raises(UserError, match="catch has the settings 0 to 19"):
        plugins.make_env("bsuite:catch/20")


def test_minigrids_symbols_are_the_fields_of_its_view():
    pytest.importorskip("minigrid")
    env = plugins.make_env("minigrid:DoorKey-5x5-v0", {"view": "symbols"})
    obs, _ = env.reset(seed=0)
    inner = env.unwrapped.gen_obs()
    np.testing.assert_array_equal(obs["image"].reshape(7, 7, 3), inner["image"])
    assert obs["direction"] == inner["direction"]


def test_the_whole_grid_of_minigrid_has_8_pixels_per_field():
    pytest.importorskip("minigrid")
    assert plugins.make_env("minigrid:Empty-8x8-v0", {"view": "whole"}).observation_space.shape == (64, 64, 3)


def test_recording_crafter_at_night_changes_nothing():
    pytest.importorskip("crafter")
    envs = [plugins.make_env("crafter:reward", {}, "rgb_array") for _ in range(2)]
    for env in envs:
        env.reset(seed=0)
        env.unwrapped._env._step = 250  # night falls from here on
    for _ in range(3):
        envs[0].render()
        one, two = (env.step(0) for env in envs)
        np.testing.assert_array_equal(one[0], two[0])


def test_crafters_creatures_are_drawn_from_an_order_that_memory_does_not_decide():
    pytest.importorskip("crafter")
    env = plugins.make_env("crafter:reward")
    env.reset(seed=0)
    world = env.unwrapped._env._world
    chunks = [[world._objects.index(thing) for thing in things] for things in world._chunks.values()]
    assert max(map(len, chunks)) > 1 and all(chunk == sorted(chunk) for chunk in chunks)
    assert sorted(sum(chunks, [])) == [i for i, thing in enumerate(world._objects) if thing]


class TestMetaWorld:
    """Goals, success and the time limit."""

    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("metaworld")

    @pytest.mark.parametrize("goals, different", [(1, 1), (50, 5)])
    def test_as_many_goals_as_asked_for(self, goals, different):
        env = plugins.make_env("metaworld:reach-v3", {"goals": goals})
        env.reset(seed=0)
        seen = {tuple(env.reset()[0]["state"][-3:]) for _ in range(8)}
        assert len(seen) >= different and (goals > 1 or len(seen) == 1)

    def test_the_time_limit_is_not_a_true_end(self):
        env = plugins.make_env("metaworld:reach-v3")
        env.reset(seed=0)
        ends = [env.step(np.zeros(4))[2:4] for _ in range(500)]
        assert ends == [(False, False)] * 499 + [(False, True)]

    def test_success_is_shown_but_not_to_the_agent(self):
        env = plugins.make_env("metaworld:reach-v3")
        obs, _ = env.reset(seed=0)
        for _ in range(100):  # moves the hand to the goal
            *_, info = answer = env.step(np.append(np.clip(10 * (obs["state"][-3:] - obs["state"][:3]), -1, 1), 0))
            obs = answer[0]
        assert obs["log/success"] == info["success"] == 1
        assert set(spec_of(env).obs) == {"state"}

    def test_pictures_hide_the_objects_from_the_vector(self):
        env = plugins.make_env("metaworld:reach-v3", {"image": True})
        assert {key: space.shape for key, space in spec_of(env).obs.items()} == {"image": (64, 64, 3), "state": (4,)}


class TestNetHack:
    """Observations and ends."""

    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("nle")

    def test_the_limit_cuts_the_game_and_shows_its_last_state(self):
        env, free = (plugins.make_env("nethack:Score", {"limit": limit}) for limit in (5, 100))
        env.reset(seed=0), free.reset(seed=0)
        for step in range(5):
            (*one, _), (*two, _) = env.step(1), free.step(1)
            assert same(one[:2], two[:2]) and one[2:] == [False, step == 4]

    def test_death_is_a_true_end(self):
        env = plugins.make_env("nethack:Score", {"limit": 100_000, "fields": 0})
        env.reset(seed=0)
        env.action_space.seed(0)
        for _ in range(100_000):
            *_, over, cut, _ = env.step(env.action_space.sample())
            if over or cut:
                break
        assert (over, cut) == (True, False)

    def test_the_hero_stands_in_the_middle_of_the_picture(self):
        env = plugins.make_env("nethack:Score", {"size": [144, 144]}, "rgb_array")
        for seed in range(5):
            obs, _ = env.reset(seed=seed)
            x, y = obs["blstats"][:2]
            hero = env.render()[16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
            np.testing.assert_array_equal(obs["image"][64:80, 64:80], hero)


@pytest.mark.slow
def test_every_task_of_dmc_continues_from_its_state_bit_for_bit():
    pytest.importorskip("dm_control")
    from dm_control import suite

    with pytest.raises(ValueError, match="terrain"):
        plugins.make_env("dmc:quadruped-escape").get_state()
    for domain, task in set(suite.ALL_TASKS) - {("quadruped", "escape")}:
        env, other = (plugins.make_env(f"dmc:{domain}-{task}") for _ in range(2))
        play(env, 0, 7)
        other.reset(seed=1)
        other.set_state(env.get_state())
        for _ in range(6):
            action = env.action_space.sample()
            assert same(env.step(action), other.step(action)), (domain, task)
        assert same(env.reset(), other.reset()), (domain, task)
