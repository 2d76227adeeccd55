import contextlib
import json
import math
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from dreamer.errors import UserError
from dreamer.runtime.files import run_dir
from dreamer.runtime.files.safe_files import check_links
from dreamer.runtime.log.episodes import Episode, EpisodeTracker, episode_metrics
from dreamer.runtime.log.logger import Config, Logger, Resumed
from dreamer.runtime.log.sinks import JsonLines, TensorBoard, lines_damage, tail_of
from dreamer.runtime.run.start import Created, set_aside
from dreamer.steps import Step

PLAIN = Config(tensorboard=False)


def read_lines(path: Path) -> list[dict]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (path / "metrics.jsonl").read_text().splitlines()]


def read_events(path: Path) -> list:
    """Reads the events of the only TensorBoard file from its record format."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = path.glob("events.out.tfevents*")
    data, events = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_a_line_holds_the_mean_since_the_last_write(tmp_path):
    ticks = iter([100.0, 102.5, 104.0])
    with Logger(tmp_path, PLAIN, clock=lambda: next(ticks)) as logger:
        logger.add({"loss/dyn": 1.0})
        logger.add({"loss/dyn": np.float32(2.0), "loss/rep": np.array([5])})
        assert logger.write(640, 20) == {"loss/dyn": 1.5, "loss/rep": 5.0}
        logger.add({"loss/dyn": 7})
        logger.write(1280, 40)
    assert read_lines(tmp_path) == [
        {"env_steps": 640, "updates": 20, "time": 2.5, "loss/dyn": 1.5, "loss/rep": 5.0},
        {"env_steps": 1280, "updates": 40, "time": 4.0, "loss/dyn": 7.0},
    ]


def test_a_latest_metric_is_not_averaged(tmp_path):
    with Logger(tmp_path, PLAIN) as logger:
        logger.add({"replay/fill": 0.1}, latest=True)
        logger.add({"replay/fill": 0.3}, latest=True)
        assert logger.write(1, 0) == {"replay/fill": 0.3}


def test_a_line_can_be_read_before_the_run_ends(tmp_path):
    with Logger(tmp_path, PLAIN) as logger:
        logger.add({"x": 1})
        logger.write(1, 0)
        assert read_lines(tmp_path)[0]["x"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_metric_is_null_and_named(tmp_path, value):
    with Logger(tmp_path, PLAIN) as logger:
        logger.add({"loss/dyn": 1.0, "loss/rep": 1.0})
        logger.add({"loss/dyn": value})
        returned = logger.write(1, 0)
    (line,) = read_lines(tmp_path)
    assert line["loss/dyn"] is None and line["nonfinite"] == ["loss/dyn"] and line["loss/rep"] == 1.0
    assert not math.isfinite(returned["loss/dyn"])


def test_nothing_is_written_when_nothing_was_added(tmp_path):
    with Logger(tmp_path, PLAIN) as logger:
        assert logger.write(1, 0) == {}
    assert read_lines(tmp_path) == []


def test_a_metric_cannot_take_the_name_of_an_axis(tmp_path):
    with Logger(tmp_path, PLAIN) as logger, pytest.raises(ValueError, match="env_steps"):
        logger.add({"env_steps": 3})


def test_a_second_logger_appends(tmp_path):
    for steps in (1, 2):
        with Logger(tmp_path, PLAIN) as logger:
            logger.add({"x": steps})
            logger.write(steps, 0)
    assert [line["env_steps"] for line in read_lines(tmp_path)] == [1, 2]


def test_tensorboard_gets_scalars_pictures_and_videos_over_env_steps(tmp_path):
    from PIL import Image

    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 24, 3), dtype=np.uint8)
    with Logger(tmp_path, Config()) as logger:
        logger.add({"loss/dyn": 1.5})
        logger.write(640, 20)
        logger.image(700, "picture", frames[0])
        logger.video(800, "video", frames, fps=10)
    scalars, picture, video = read_events(tmp_path)[-3:]
    assert (scalars.step, scalars.summary.value[0].tag, scalars.summary.value[0].simple_value) == (640, "loss/dyn", 1.5)
    for event, step, name, count in ((picture, 700, "picture", 1), (video, 800, "video", 5)):
        value = event.summary.value[0]
        (tmp_path / name).write_bytes(value.image.encoded_image_string)
        assert (event.step, value.tag, value.image.height, value.image.width) == (step, name, 16, 24)
        with Image.open(tmp_path / name) as image:
            assert getattr(image, "n_frames", 1) == count


def test_wandb_offline_needs_no_account_and_keeps_a_gif(tmp_path):
    with Logger(tmp_path, Config(tensorboard=False, wandb="offline"), {"seed": 1}) as logger:
        logger.add({"loss/dyn": 1.5})
        logger.write(640, 20)
        logger.video(640, "video", np.zeros((3, 16, 16, 3), np.uint8), fps=10)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/videos/*.gif"))


def test_tensorboard_gets_the_settings_as_hyperparameters_and_as_a_table(tmp_path):
    with Logger(tmp_path, Config(), {"seed": 1, "agent": {"horizon": 333.0}, "mults": (1, 2)}):
        pass
    values = {value.tag: value for event in read_events(tmp_path) for value in event.summary.value}
    assert {"_hparams_/experiment", "_hparams_/session_start_info", "config/text_summary"} <= set(values)
    started = values["_hparams_/session_start_info"].metadata.plugin_data.content
    assert b"agent.horizon" in started and b"seed" in started
    assert b"| mults | (1, 2) |" in values["config/text_summary"].tensor.string_val[0]


def test_wandb_gets_group_tags_name_settings_and_env_steps_as_its_only_axis(tmp_path, monkeypatch):
    import wandb

    begun, logged, defined = {}, [], []

    class Run:
        id, step = "x", 0

        def define_metric(self, *args, **options):
            defined.append((args, options))

        def log(self, values, step):
            logged.append((values, step))

        def finish(self):
            pass

    monkeypatch.setattr(wandb, "init", lambda **options: begun.update(options) or Run())
    config = Config(tensorboard=False, wandb="offline", wandb_group="g", wandb_tags=("a", "b"), wandb_name="n")
    with Logger(tmp_path, config, {"seed": 1}) as logger:
        logger.add({"loss/dyn": 1.5})
        logger.write(640, 20)
        logger.image(600, "picture", np.zeros((4, 4, 3), np.uint8))
    assert (begun["group"], begun["tags"], begun["name"], begun["config"]) == ("g", ["a", "b"], "n", {"seed": 1})
    assert defined == [(("env_steps",), {}), (("*",), {"step_metric": "env_steps"})]
    assert [(values["env_steps"], step) for values, step in logged] == [(640, 0), (600, 1)]


def test_a_long_large_video_is_shortened_for_a_gif_at_the_same_speed():
    from dreamer.runtime.log.images import shortened

    frames, fps = shortened([np.zeros((400, 600, 3), np.uint8)] * 500, 30)
    assert frames.shape == (167, 134, 200, 3) and fps == 10
    frames, fps = shortened([np.zeros((64, 64, 3), np.uint8)] * 5, 30)
    assert frames.shape == (5, 64, 64, 3) and fps == 30


def test_a_resumed_run_is_the_same_run_for_wandb(tmp_path):
    config = Config(tensorboard=False, wandb="offline")
    with Logger(tmp_path, config) as logger:
        logger.add({"loss/dyn": 1.5}, latest=True)
        logger.write(640, 20)
        position = json.loads(json.dumps(logger.position()))
    with Logger(tmp_path, config, resumed=Resumed(position, 640, later=False)) as logger:
        logger.add({"loss/dyn": 1.25}, latest=True)
        logger.write(1280, 40)
    check_links(tmp_path)  # as a resume does
    ids = [path.stem.removeprefix("run-") for path in tmp_path.glob("wandb/offline-run-*/*.wandb")]
    assert ids == [position["wandb"]] * 2  # `wandb sync` joins files with the same id


def test_wandb_online_without_an_account_is_reported_in_one_line(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(UserError, match="wandb login") as error:
        Logger(tmp_path, Config(wandb="online"))
    assert "\n" not in str(error.value)


def test_the_error_for_a_missing_wandb_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        Logger(tmp_path, Config(wandb="offline"))


def test_the_error_for_a_full_disk_names_the_file_and_the_free_bytes(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with Logger(tmp_path, PLAIN) as logger, pytest.raises(UserError, match=r"no space.*metrics\.jsonl.*\d+ bytes free"):
        logger.add({"x": 1})
        logger.write(1, 0)


def test_a_line_that_did_not_fit_leaves_the_file_as_it_was(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.write({"env_steps": 1}, {"x": 1.0})
    real = lines._file

    class NearlyFull:
        """Accepts ten bytes, then none."""

        taken = 0

        def write(self, data):
            if self.taken:
                raise OSError(28, "No space left on device")
            self.taken = real.write(data[:10])
            return self.taken

        def __getattr__(self, name):
            return getattr(real, name)

    lines._file = NearlyFull()
    with contextlib.closing(real), pytest.raises(UserError, match="no space"):
        lines.write({"env_steps": 2}, {"x": 2.0})
    assert read_lines(tmp_path) == [{"env_steps": 1, "x": 1.0}]


def test_a_tensorboard_file_that_cannot_grow_is_reported(tmp_path):
    sink, old = TensorBoard(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
    try:
        with contextlib.closing(sink), pytest.raises(UserError, match="cannot write"):
            sink.scalars(1, {f"metric/{i}": 1.0 for i in range(100)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def row(reward, first, last) -> Step:
    flags = np.array(first, bool), np.array(last, bool)
    return Step({}, np.zeros((len(reward), 1)), np.array(reward, np.float32), *flags, np.zeros(len(reward), bool))


def test_episodes_add_up_per_environment():
    tracker = EpisodeTracker(2)
    assert tracker.observe(row([0, 0], [1, 1], [0, 0])) == []
    assert tracker.observe(row([1, 5], [0, 0], [0, 1])) == [Episode(1, 5.0, 1)]
    assert tracker.observe(row([2, 0], [0, 1], [1, 0])) == [Episode(0, 3.0, 2)]
    assert tracker.observe(row([0, 7], [1, 0], [0, 1])) == [Episode(1, 7.0, 1)]


def test_the_reward_of_a_reset_row_does_not_count():
    tracker = EpisodeTracker(1)
    tracker.observe(row([9], [1], [0]))
    assert tracker.observe(row([1], [0], [1])) == [Episode(0, 1.0, 1)]


def test_episode_metrics_are_means():
    episodes = [Episode(0, 1.0, 10), Episode(1, 3.0, 20)]
    assert episode_metrics(episodes) == {"episode/return": 2.0, "episode/length": 15.0}
    assert episode_metrics([]) == {}


def test_metrics_import_no_jax():
    code = "import sys, dreamer.runtime.log.logger, dreamer.runtime.log.terminal; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "checkpoints"])
def test_a_directory_that_holds_a_run_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"already holds a run.*{name}"):
        run_dir.refuse_used(tmp_path)


def test_a_new_run_directory_is_made_with_its_parents(tmp_path):
    with Created(tmp_path / "a" / "b", own_name=False) as created:
        created.keep()
    assert (tmp_path / "a" / "b").is_dir()


def test_a_run_directory_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        Created(tmp_path / "file" / "run", own_name=False)


def test_a_missing_run_is_reported(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        run_dir.existing_run_dir(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no config\.yaml"):
        run_dir.existing_run_dir(tmp_path)


# ---- resuming


def stopped_at(path: Path, steps: list[int], checkpoint: int) -> dict:
    """Writes a line at each of `steps`; returns the logger's position after the line at `checkpoint`."""
    position: dict = {}
    with Logger(path, PLAIN, clock=iter(np.arange(100.0)).__next__) as logger:
        for step in steps:
            logger.add({"x": step})
            logger.write(step, step)
            if step == checkpoint:
                logger.add({"y": 1.0})
                position = json.loads(json.dumps(logger.position()))
    return position


def resumed(path: Path, position: dict, env_steps: int, later: bool) -> list[tuple[int, float]]:
    """Returns (env_steps, time) of all lines, after the resumed run has written one at step 99."""
    tail = tail_of(path / "metrics.jsonl", position["bytes"], env_steps if later else None)
    set_aside(path, [], tail)
    going_on = Resumed(position, env_steps, later, tail.seconds)
    with Logger(path, PLAIN, clock=lambda: 0.0, resumed=going_on) as logger:
        logger.add({"y": 3.0})
        logger.write(99, 99)
    return [(line["env_steps"], line["time"]) for line in read_lines(path)]


def test_a_resumed_run_drops_the_lines_after_its_checkpoint_and_continues_its_sums_and_clock(tmp_path):
    position = stopped_at(tmp_path, [1, 2, 3, 4], checkpoint=2)
    assert resumed(tmp_path, position, 2, later=False) == [(1, 1.0), (2, 2.0), (99, 3.0)]
    assert read_lines(tmp_path)[-1]["y"] == 2.0
    cut = (tmp_path / "aside" / "1" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["env_steps"] for line in cut] == [3, 4]


def test_a_resumed_run_that_keeps_later_rows_keeps_their_lines_only(tmp_path):
    position = stopped_at(tmp_path, [1, 2, 3, 4], checkpoint=2)
    assert [step for step, _ in resumed(tmp_path, position, 3, later=True)] == [1, 2, 3, 99]
    assert read_lines(tmp_path)[-1]["y"] == 3.0


def test_a_line_that_a_kill_cut_is_dropped(tmp_path):
    position = stopped_at(tmp_path, [1, 2, 3], checkpoint=2)
    data = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(data[:-4])
    assert [step for step, _ in resumed(tmp_path, position, 3, later=True)] == [1, 2, 99]


def test_a_damaged_line_after_the_checkpoint_is_cut_with_those_after_it(tmp_path):
    position = stopped_at(tmp_path, [1, 2, 3, 4], checkpoint=2)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"env_steps": 3', b'["env_steps": 3'))
    tail = tail_of(path, position["bytes"], 4)
    assert tail.keep == position["bytes"] and "is damaged after byte" in tail.note


@pytest.mark.parametrize("damage, expected", [("cut", "is cut short"), ("gone", "is missing"), ("flip", "is damaged")])
def test_lines_before_the_checkpoint_that_are_not_whole_are_named(tmp_path, damage, expected):
    position = stopped_at(tmp_path, [1, 2, 3], checkpoint=2)
    path = tmp_path / "metrics.jsonl"
    data = bytearray(path.read_bytes())
    assert lines_damage(path, position["bytes"], position["crc"]) == ""
    data[10] ^= 1
    path.write_bytes(b"{}\n" if damage == "cut" else data)
    if damage == "gone":
        path.unlink()
    assert lines_damage(path, position["bytes"], position["crc"]).startswith(expected)


def test_a_resumed_logger_also_seals_the_earlier_lines(tmp_path):
    position = stopped_at(tmp_path, [1, 2], checkpoint=2)
    with Logger(tmp_path, PLAIN, resumed=Resumed(position, 2, later=False)) as logger:
        logger.add({"y": 3.0})
        logger.write(99, 99)
        nbytes, crc = logger.position()["bytes"], logger.position()["crc"]
    assert (nbytes, crc) == (len(data := (tmp_path / "metrics.jsonl").read_bytes()), zlib.crc32(data))


def test_tensorboard_drops_the_events_after_the_checkpoint(tmp_path):
    TensorBoard(tmp_path, resumed_at=641).close()
    (start,) = [event for event in read_events(tmp_path) if event.HasField("session_log")]
    assert (start.step, start.session_log.status) == (641, start.session_log.START)


def test_the_running_sums_of_episodes_come_back():
    tracker, other = EpisodeTracker(2), EpisodeTracker(2)
    flags = np.zeros(2, bool)
    step = Step({}, None, np.float32([1, 2]), flags, flags, flags)
    tracker.observe(step)
    other.load_state(tracker.state())
    assert other.observe(step._replace(is_last=~flags)) == tracker.observe(step._replace(is_last=~flags))
