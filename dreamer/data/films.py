"""Frames of mp4 files, decoded by ffmpeg one after the other: a film is never wholly in memory. Imports no jax.

ffmpeg comes with imageio-ffmpeg and runs as a process of its own, so that no broken film can harm this one. It may open
no other file than the film.
"""

from __future__ import annotations

import io
import subprocess
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple, cast

import numpy as np

from dreamer.data.tables import File, check_there
from dreamer.errors import UserError

_QUIET = ("-nostdin", "-hide_banner", "-v", "error")
# A film in another container could name other files. The times are those in the file, and frames are not turned.
_OPENED = ("-copyts", "-noautorotate", "-protocol_whitelist", "file", "-f", "mp4")


class Listed(NamedTuple):
    """What a film holds. times [F] float64: when each frame is shown, in seconds | height, width: in pixels"""

    times: np.ndarray
    height: int
    width: int


def listed(file: File) -> Listed:
    """Lists the frames of a film without decoding them. Raises UserError if it is missing or damaged."""
    check_there(file)
    done = subprocess.run(_command(file, "-c", "copy", "-f", "framecrc"), capture_output=True)
    sides, tick, shown = (0, 0), Fraction(0), []
    for line in done.stdout.decode(errors="replace").splitlines():
        what, _, value = line.partition(":")
        try:
            if what == "#tb 0":
                tick = Fraction(value.strip())
            elif what == "#dimensions 0":
                width, _, height = value.strip().partition("x")
                sides = int(height), int(width)
            elif not line.startswith("#"):
                shown.append(int(line.split(",")[2]))
        except (ValueError, IndexError, ZeroDivisionError):
            raise UserError(f"{file.name} cannot be understood by ffmpeg: {line[:100]!r}") from None
    if done.returncode or not shown or not all(sides):
        raise UserError(f"{file.name} cannot be decoded: {_cause(done.stderr) or 'it has no frames'}")
    return Listed(np.sort(np.array(shown, np.int64)) * float(tick), *sides)


class Film:
    """The frames of a film in order, from a process of ffmpeg, which must be closed. They are [H, W, C], C 1 or 3."""

    def __init__(self, file: File, shape: tuple[int, int, int]):
        self._file, self._shape = file, shape
        self.next = 0  # the number of the frame that is read next
        self._errors = tempfile.TemporaryFile()  # a pipe that nobody empties would stop ffmpeg
        form = ("-f", "rawvideo", "-pix_fmt", "rgb24" if shape[2] == 3 else "gray")
        # Every frame once, and an end at the first error.
        command = _command(file, "-fps_mode", "passthrough", *form, before=("-xerror", "-err_detect", "explode"))
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._bytes = cast(io.BufferedReader, self._process.stdout)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the frames [n, H, W, C] uint8 with these numbers, which increase and begin at `next` or later.

        Raises UserError if one of them cannot be decoded.
        """
        frames = np.empty((len(numbers), *self._shape), np.uint8)
        spare = np.empty(self._shape, np.uint8)
        for place, number in enumerate(numbers.tolist()):
            while self.next < number:
                self._read(spare)
            self._read(frames[place])
        return frames

    def close(self) -> None:
        """Ends ffmpeg."""
        self._process.kill()
        self._bytes.close()
        self._process.wait()
        self._errors.close()

    def _read(self, frame: np.ndarray) -> None:
        left = frame.reshape(-1).data
        while len(left):
            count = self._bytes.readinto(left)
            if not count:
                self._process.wait()
                self._errors.seek(0)
                why = _cause(self._errors.read())
                raise UserError(f"{self._file.name} cannot be decoded at frame {self.next}: {why or 'it is cut short'}")
            left = left[count:]
        self.next += 1


class Films:
    """The films that are open, one for each camera, which must be closed.

    shapes {feature: [H, W, C]}: the form of the frames of each camera | fps: frames per second
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int, int]], fps: float):
        self._shapes, self._fps = shapes, fps
        self._listed: dict[str, tuple[File, Listed]] = {}
        self._open: dict[str, tuple[File, Film]] = {}
        self._broken: dict[File, str] = {}

    def __enter__(self) -> Films:
        return self

    def __exit__(self, *_: object) -> None:
        for _, film in self._open.values():
            film.close()
        self._open.clear()

    def frames(self, key: str, file: File, times: np.ndarray) -> np.ndarray:
        """Returns the frames [n, H, W, C] of camera `key` that are shown at `times` [n], in seconds of the film.

        Raises UserError if the film is missing or damaged, has another size, or has no frame at one of the times.
        """
        if file in self._broken:
            raise UserError(self._broken[file])
        numbers = self._numbers(self._list(key, file), file, times)
        own, film = self._open.get(key, (None, None))
        if film is None or own != file or (len(numbers) and film.next > numbers[0]):
            self._close(key)
            film = Film(file, self._shapes[key])
            self._open[key] = file, film
        try:
            return film.take(numbers)
        except UserError as error:
            self._close(key)
            self._broken[file] = str(error)
            raise

    def _close(self, key: str) -> None:
        if key in self._open:
            self._open.pop(key)[1].close()

    def _list(self, key: str, file: File) -> Listed:
        """Lists the frames of a film, once for all episodes in it."""
        own, found = self._listed.get(key, (None, None))
        if found is not None and own == file:
            return found
        height, width = self._shapes[key][:2]
        try:
            found = listed(file)
            if (found.height, found.width) != (height, width):
                what = f"has frames of {found.height} x {found.width}, info.json says {height} x {width}"
                raise UserError(f"{file.name} {what}")
        except UserError as error:
            self._broken[file] = str(error)
            raise
        self._listed[key] = file, found
        return found

    def _numbers(self, found: Listed, file: File, times: np.ndarray) -> np.ndarray:
        """Returns the number of the frame at each time: the nearest, less than half a frame away."""
        after = np.searchsorted(found.times, times).clip(1, max(1, len(found.times) - 1))
        before = after - 1
        after = after.clip(max=len(found.times) - 1)
        nearer = times - found.times[before] <= found.times[after] - times
        numbers = np.where(nearer, before, after)
        lost = np.abs(found.times[numbers] - times) >= 0.5 / self._fps
        if lost.any():
            row = int(np.argmax(lost))
            raise UserError(f"{file.name} has no frame at {times[row]:.3f} s, where row {row} needs one: it has "
                            f"{len(found.times)} frames up to {found.times[-1]:.3f} s")  # fmt: skip
        if (np.diff(numbers) <= 0).any():
            row = int(np.argmax(np.diff(numbers) <= 0)) + 1
            raise UserError(f"{file.name} has one frame for rows {row - 1} and {row}: it has fewer frames than rows")
        return numbers


def _command(file: File, *form: str, before: tuple[str, ...] = ()) -> list[str]:
    from imageio_ffmpeg import get_ffmpeg_exe

    return [get_ffmpeg_exe(), *_QUIET, *before, *_OPENED, "-i", f"file:{file.path}", "-map", "0:v:0", *form, "-"]


def _cause(errors: bytes) -> str:
    """Returns the first line that ffmpeg has printed, the nearest to the cause; "" if there is none."""
    lines = errors.decode(errors="replace").strip().splitlines()
    return " ".join(lines[0].split())[:160] if lines else ""
