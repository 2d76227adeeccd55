"""Tables in parquet: their columns as arrays, and their rows one block after the other. No jax; pyarrow when used."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamer.data.extra import extra, reason
from dreamer.errors import UserError

POINTER = b"version https://git-lfs"
_DAMAGED = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, MemoryError, OverflowError)


class File(NamedTuple):
    """A file of a dataset. name: its path in the dataset, for messages | path: where it really is"""

    name: str
    path: Path


def check_there(file: File) -> None:
    """Raises UserError if a file is missing, is not a regular file, or is only a pointer of Git LFS."""
    if not file.path.is_file():
        raise UserError(f"{file.name} {'is not a regular file' if file.path.exists() else 'is missing'}")
    try:
        with file.path.open("rb") as opened:
            head = opened.read(len(POINTER))
    except OSError as error:
        raise UserError(f"{file.name} cannot be read: {error.strerror or error}") from error
    if head == POINTER:
        raise UserError(f"{file.name} is a pointer of Git LFS, not the data; git lfs pull brings it")


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """A context manager for calls of pyarrow, whose errors become a UserError with the name of the file."""
    with extra():
        import pyarrow
    try:
        yield
    except (*_DAMAGED, pyarrow.ArrowException) as error:
        raise UserError(f"{name} cannot be read, it is cut short or damaged: {reason(error)}") from error


def read_table(file: File, columns: Sequence[str]) -> Any:
    """Returns the columns of a small file as a pyarrow.Table. Raises UserError if one is missing or damaged."""
    with Parquet(file) as table:
        table.check_columns(columns)
        return table.read(columns)


def column_values(column: Any, name: str, key: str, kinds: str) -> np.ndarray:
    """Returns a column of single numbers as an array [n].

    name: the file | kinds: the allowed kinds of dtype. Raises UserError.
    """
    values = as_array(column)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in kinds:
        raise UserError(f"{name}: {key} is {values.dtype} {list(values.shape[1:])} in each row, not one number")
    return values


class Parquet:
    """An open file of parquet, which must be closed. Its rows are read in order.

    All methods raise UserError if the file is missing or damaged.
    """

    def __init__(self, file: File):
        with extra():
            import pyarrow.parquet
        check_there(file)
        self._file, self._blocks, self._held = file, iter(()), None
        with readable(file.name):
            self._opened = pyarrow.parquet.ParquetFile(file.path)
            self.schema = self._opened.schema_arrow
            self.rows = int(self._opened.metadata.num_rows)

    def __enter__(self) -> Parquet:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises UserError if a column is missing or occurs twice."""
        for key in columns:
            count = self.schema.names.count(key)
            if count != 1:
                has = "no column" if not count else f"{count} columns"
                raise UserError(f"{self._file.name} has {has} {key!r}")

    def read(self, columns: Sequence[str]) -> Any:
        """Returns whole columns as a pyarrow.Table."""
        with readable(self._file.name):
            return self._opened.read(columns=list(columns)).select(list(columns))

    def start(self, columns: Sequence[str], block: int) -> None:
        """Makes `take` begin at the first row. block: rows that are decoded at once."""
        self._columns = list(columns)
        with readable(self._file.name):
            self._blocks = self._opened.iter_batches(batch_size=block, columns=self._columns)
        self._held = None

    def take(self, count: int) -> Any:
        """Returns the next `count` rows, at least one, as a pyarrow.Table. Raises UserError if there are fewer."""
        import pyarrow

        blocks: list[Any] = []
        left = count
        while left:
            if self._held is None or not self._held.num_rows:
                with readable(self._file.name):
                    block = next(self._blocks, None)
                if block is None:
                    raise UserError(f"{self._file.name} is cut short: {left} rows are missing")
                self._held = block
            part = self._held.slice(0, left)
            self._held = self._held.slice(part.num_rows)
            left -= part.num_rows
            blocks.append(part)
        with readable(self._file.name):
            return pyarrow.Table.from_batches(blocks)

    def skip(self, count: int) -> None:
        """Leaves out the next `count` rows."""
        while count > 0:
            count -= self.take(min(count, 1 << 12)).num_rows


def leaf_of(kind: Any) -> tuple[Any, list[int]]:
    """Returns what the lists of a type of arrow hold in the end, and the length of each list; -1: any."""
    import pyarrow

    sizes = []
    while True:
        if isinstance(kind, pyarrow.BaseExtensionType):
            kind = kind.storage_type
        elif pyarrow.types.is_fixed_size_list(kind):
            sizes.append(kind.list_size)
            kind = kind.value_type
        elif pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
            sizes.append(-1)
            kind = kind.value_type
        else:
            return kind, sizes


def as_array(column: Any) -> np.ndarray:
    """Returns a column of numbers, or of lists of numbers with equal lengths, as an array [n, ..].

    Raises UserError if a value is missing, or if lists have different lengths.
    """
    import pyarrow
    import pyarrow.compute

    count, sizes = len(column), []
    array = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
    while True:
        if isinstance(array, pyarrow.ExtensionArray):
            array = array.storage
        if array.null_count:
            raise UserError("has rows without a value")
        if pyarrow.types.is_fixed_size_list(array.type):
            sizes.append(array.type.list_size)
        elif pyarrow.types.is_list(array.type) or pyarrow.types.is_large_list(array.type):
            lengths = pyarrow.compute.unique(pyarrow.compute.list_value_length(array)).to_pylist()
            if len(lengths) > 1:
                raise UserError(f"has lists of {min(lengths)} and of {max(lengths)} values in its rows")
            sizes.append(lengths[0] if lengths else 0)
        else:
            return array.to_numpy(zero_copy_only=False).reshape(count, *sizes)
        array = array.flatten()


def as_pictures(column: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """Decodes a column of embedded PNG or JPEG files to frames [n, *shape] uint8. shape: [H, W, C], C 1 or 3.

    Raises UserError if a picture is kept in another file, is damaged, or has another size.
    """
    from PIL import Image

    frames = np.zeros((len(column), *shape), np.uint8)
    for row, value in enumerate(column.to_pylist()):
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise UserError(f"row {row} has no picture embedded; only pictures inside the table are read")
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                if image.size != (shape[1], shape[0]):
                    raise UserError(f"row {row} is a picture of {image.size[1]} x {image.size[0]}, info.json says "
                                    f"{shape[0]} x {shape[1]}")  # fmt: skip
                frames[row] = np.asarray(image.convert("RGB" if shape[2] == 3 else "L")).reshape(shape)
        except (*_DAMAGED, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"row {row} is not a whole PNG or JPEG: {reason(error)}") from error
    return frames
