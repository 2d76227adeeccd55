import contextlib
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from dreamer.errors import UserError
from dreamer.runtime.log import images, open_loop
from dreamer.runtime.log.open_loop import DREAMED, OBSERVED


def frames_of(path) -> np.ndarray:
    """Reads all frames of a video with ffmpeg itself, because imageio's reader forks, which jax forbids once loaded."""
    with tempfile.TemporaryDirectory() as folder:
        command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-fps_mode", "passthrough", f"{folder}/%04d.png"]
        subprocess.run(command, check=True, capture_output=True)
        return np.stack([np.asarray(Image.open(file)) for file in sorted(Path(folder).iterdir())])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(5, 64, 64, 3), (5, 63, 41, 3), (5, 32, 32, 1), (5, 32, 32), (2, 500, 401, 3)])
def test_a_video_is_large_and_even_enough_to_be_watched(tmp_path, shape):
    video = frames_of(images.write_video(tmp_path / "new" / "video.mp4", noise(*shape), fps=10))
    assert len(video) == shape[0]
    assert min(video.shape[1:3]) >= images.SMALLEST_SIDE and video.shape[1] % 2 == video.shape[2] % 2 == 0


def test_a_video_shows_the_frames_that_it_was_given(tmp_path):
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    frames[1], frames[2, :32], frames[3, :, :, 2] = 255, (200, 30, 30), 180
    video = frames_of(images.write_video(tmp_path / "video.mp4", frames, fps=10))
    large = frames.repeat(6, axis=1).repeat(6, axis=2)
    assert np.abs(video.astype(int) - large).mean() < 4


@pytest.mark.parametrize("shape, dtype", [((2, 8, 8, 3), float), ((8, 8), np.uint8), ((0, 8, 8, 3), np.uint8)])
def test_frames_that_are_not_a_video_are_refused(tmp_path, shape, dtype):
    frames = np.zeros(shape, dtype)
    with pytest.raises(ValueError, match="a video needs uint8 frames"):
        images.write_video(tmp_path / "video.mp4", frames, fps=10)


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """A context in which files cannot grow beyond 2000 bytes, as on a disk that is nearly full.

    Use it only around the call: a fixture would still be active when pytest writes to its own output, perhaps a file.
    """
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_video_that_does_not_fit_on_the_disk_is_reported_and_leaves_nothing(tmp_path):
    with small_files(), pytest.raises(UserError, match=r"cannot write .*video\.mp4") as error:
        images.write_video(tmp_path / "video.mp4", noise(30, 64, 64, 3), fps=10)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_plot_that_does_not_fit_on_the_disk_is_reported_and_leaves_nothing(tmp_path):
    values = {"position": np.zeros((1, 8, 2))}
    with small_files(), pytest.raises(UserError, match=r"cannot write .*plot\.png"):
        open_loop.open_loop_plot(tmp_path / "plot.png", values, values, 4)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        images.write_video(tmp_path / "file" / "video.mp4", noise(2, 8, 8, 3), fps=10)


def test_the_border_turns_red_where_the_dream_begins():
    truth = noise(2, 8, 64, 64, 3)
    video = open_loop.open_loop_video(truth, truth.astype(np.float32), observed=5)
    corner = video[:, 0, 12]
    assert (corner[:5] == OBSERVED).all() and (corner[5:] == DREAMED).all()


def test_rows_are_truth_dream_and_their_difference():
    truth, dream = noise(2, 3, 32, 32, 3), np.full((2, 3, 32, 32, 3), 100.4, np.float32)
    video = open_loop.open_loop_video(truth, dream, observed=1)
    top, left, border = 2, 14, 2
    rows = [video[:, top + i * (32 + border) :, left:][:, :32, :32] for i in range(3)]
    assert (rows[0] == truth[0]).all() and (rows[1] == 100).all()
    assert (rows[2] == np.abs(truth[0].astype(int) - 100)).all()


def test_dreamed_values_beyond_the_range_do_not_wrap():
    truth = np.zeros((1, 1, 32, 32, 3), np.uint8)
    dream = np.where(np.arange(32) < 16, -20.0, 300.0)[:, None].repeat(3, 1)[None, None, None].repeat(32, 2)
    video = open_loop.open_loop_video(truth, dream, observed=0)
    row = video[0, 2 + 34 + 5, 14 : 14 + 32, 0]
    assert (row[:16] == 0).all() and (row[16:] == 255).all()


@given(st.integers(1, 6), st.integers(1, 5), st.integers(4, 70), st.integers(4, 70), st.sampled_from([1, 3, 4]))
def test_every_shape_of_sequences_gives_one_video(batch, steps, height, width, channels):
    truth = np.zeros((batch, steps, height, width, channels), np.uint8)
    video = open_loop.open_loop_video(truth, truth, observed=steps // 2)
    assert video.dtype == np.uint8 and video.shape[0] == steps and video.shape[3] == 3
    assert video.shape[1] > 3 * height and video.shape[2] > min(batch, open_loop.VIDEO_ROWS) * width


def test_truth_and_dream_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        open_loop.open_loop_video(noise(1, 2, 8, 8, 3), noise(1, 3, 8, 8, 3), 1)


def test_panels_are_shared_between_keys_and_the_rest_is_counted():
    assert open_loop._share({"a": 1, "b": 20, "c": 3}, 12) == {"a": 1, "b": 8, "c": 3}
    assert open_loop._share({"a": 1, "b": 2}, 12) == {"a": 1, "b": 2}


def drawn(monkeypatch, tmp_path, truth, dream, observed):
    """Returns the axes and the title of a plot, captured while it is written."""
    from matplotlib.figure import Figure

    caught = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (caught.append(self), save(self, *a, **k)))
    open_loop.open_loop_plot(tmp_path / "plot.png", truth, dream, observed)
    figure = caught[0]
    return [axis for axis in figure.axes if axis.get_visible()], figure.get_suptitle()


def test_a_plot_draws_the_true_and_the_dreamed_line_of_each_dimension(monkeypatch, tmp_path):
    truth = {"position": np.random.default_rng(0).normal(size=(2, 8, 3)), "door": np.arange(16).reshape(2, 8) % 3}
    dream = {key: value + 1 for key, value in truth.items()}
    axes, title = drawn(monkeypatch, tmp_path, truth, dream, 4)
    assert [axis.get_ylabel() for axis in axes] == ["position[0]", "position[1]", "position[2]", "door"]
    for i, axis in enumerate(axes):
        true, dreamed = (line.get_ydata() for line in axis.get_lines())
        values = truth["position"][0, :, i] if i < 3 else truth["door"][0]
        assert np.allclose(true, values) and np.allclose(dreamed, values + 1)
        steps = {line.get_drawstyle() for line in axis.get_lines()}
        assert steps == ({"default"} if i < 3 else {"steps-mid"})
    assert axes[-1].get_xlabel() and "4 steps observed" in title and "not shown" not in title


def test_a_plot_of_many_dimensions_names_the_number_left_out(monkeypatch, tmp_path):
    values = {"position": np.zeros((1, 8, 50))}
    axes, title = drawn(monkeypatch, tmp_path, values, values, 4)
    assert len(axes) == open_loop.PLOT_PANELS and "38 of 50 dimensions are not shown" in title


def test_a_report_writes_one_video_and_one_plot_named_by_env_steps(tmp_path):
    truth = {"image": noise(2, 6, 16, 16, 3), "top": noise(2, 6, 32, 32, 1), "position": np.zeros((2, 6, 3))}
    report = {f"truth/{k}": v for k, v in truth.items()} | {f"dream/{k}": v * 1.0 for k, v in truth.items()}
    paths = open_loop.write_report(tmp_path, 12345, report)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "pictures/openloop_000012345.mp4", "pictures/openloop_000012345.png",
    ]  # fmt: skip
    assert len(frames_of(paths[0])) == 6
    with Image.open(paths[1]) as image:
        assert image.width > 600
    assert len(os.listdir(tmp_path / "pictures")) == 2


def test_a_report_is_shown_in_the_sinks_too(tmp_path):
    class Show:
        def __init__(self):
            self.seen = []

        def image(self, env_steps, name, image):
            self.seen.append((env_steps, name, image.dtype, image.ndim))

        def video(self, env_steps, name, frames, fps):
            self.seen.append((env_steps, name, frames.dtype, frames.ndim))

    truth = {"image": noise(1, 4, 16, 16, 3), "position": np.zeros((1, 4, 1))}
    report = {f"{side}/{k}": v for side in ("truth", "dream") for k, v in truth.items()}
    show = Show()
    open_loop.write_report(tmp_path, 7, report, show)
    assert show.seen == [(7, "openloop/video", np.uint8, 4), (7, "openloop/plot", np.uint8, 3)]


def test_a_report_with_nothing_to_show_writes_nothing(tmp_path):
    assert open_loop.write_report(tmp_path, 0, {}) == [] and list(tmp_path.iterdir()) == []


def test_an_episode_video_takes_a_list_of_frames(tmp_path):
    path = images.write_episode_video(tmp_path / "episode.mp4", list(noise(7, 40, 60, 3)), fps=30)
    assert len(frames_of(path)) == 7
    with pytest.raises(ValueError, match="at least one frame"):
        images.write_episode_video(tmp_path / "none.mp4", [], fps=30)


def test_a_gif_and_a_png_hold_the_pixels(tmp_path):
    frames = np.zeros((3, 16, 24, 3), np.uint8)
    frames[1] = 255
    frames[2, :8] = 255
    (tmp_path / "a.gif").write_bytes(images.encode_gif(frames, fps=5))
    (tmp_path / "a.png").write_bytes(images.encode_png(frames[2]))
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3 and gif.info["duration"] == 200
        gif.seek(1)
        assert (np.asarray(gif.convert("RGB")) == 255).all()
    with Image.open(tmp_path / "a.png") as png:
        assert (np.asarray(png) == frames[2]).all()


# ---- videos side by side


def video(steps: int, level: int, height: int = 4, width: int = 6) -> list[np.ndarray]:
    return [np.full((height, width, 3), level + step, np.uint8) for step in range(steps)]


def test_one_video_is_itself():
    np.testing.assert_array_equal(images.tiled([video(3, 10)]), np.stack(video(3, 10)))


def test_videos_stand_in_a_square_and_those_that_ended_hold_their_last_frame_dimmed():
    tiles = images.tiled([video(3, 90), video(1, 60), video(2, 30)])
    gap = images.TILE_GAP
    assert tiles.shape == (3, 4 + gap + 4, 6 + gap + 6, 3)
    corners = [tiles[:, top, left, 0].tolist() for top in (0, 4 + gap) for left in (0, 6 + gap)]
    assert corners == [[90, 91, 92], [60, 20, 20], [30, 31, 10], [0, 0, 0]]
    assert not tiles[:, 4 : 4 + gap].any() and not tiles[:, :, 6 : 6 + gap].any()


def test_a_smaller_video_has_black_beside_it():
    tiles = images.tiled([video(1, 9), video(1, 9, height=2, width=3)])
    assert tiles.shape == (1, 4, 6 + images.TILE_GAP + 6, 3)
    assert tiles[0, :, 6 + images.TILE_GAP :, 0].sum() == 2 * 3 * 9
