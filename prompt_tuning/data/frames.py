"""Rows that a program holds, as files that a run file can name: lists, pandas frames, Arrow tables and datasets."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from prompt_tuning.data.hub import named_row
from prompt_tuning.errors import UserError
from prompt_tuning.formats import STEMS
from prompt_tuning.storage.atomic import new_folder
from prompt_tuning.storage.lines import json_line


def as_lines(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The rows of each split as lines of JSON. Raises :class:`UserError` for what are no rows."""
    if not data:
        raise UserError("data holds no splits; give train and dev, or leave it out where the settings name data")
    texts = {_split(name): _lines(name, rows) for name, rows in data.items()}
    if len(texts) < len(data):
        raise UserError(f"data: {', '.join(data)} name a split twice; give each once")
    return texts


def files_of(folder: Path, texts: Mapping[str, bytes]) -> dict[str, str]:
    """The file of each split that :func:`keep_rows` writes into a folder, for ``data.files``."""
    return {split: str((folder / f"{split}.jsonl").absolute()) for split in texts}


def keep_rows(folder: Path, texts: Mapping[str, bytes]) -> None:
    """Write the rows of each split, unless they are there. Raises :class:`UserError` where a folder holds others."""
    files = {Path(file).name: texts[split] for split, file in files_of(folder, texts).items()}
    if not folder.exists():
        with new_folder(folder) as made:
            for name, text in files.items():
                (made / name).write_bytes(text)
    elif {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} != files:
        raise UserError(
            f"{folder} holds other rows, of the run that is there; use fresh=True to start anew, or another output"
        )


def _split(name: str) -> str:
    """The split that people call by a name. Raises :class:`UserError`."""
    for split, names in STEMS.items():
        if name in names:
            return split
    raise UserError(f"data: {name!r} is no split; give train, dev and test, and leave others out")


def _lines(split: str, rows: Any) -> bytes:
    lines = [json_line(row) for row in _rows(split, rows)]
    if not lines:
        raise UserError(f"data: {split} has no rows; give it some, or leave it out")
    return b"".join(lines)


def _rows(split: str, rows: Any) -> Iterator[dict[str, Any]]:
    """Rows as JSON can hold them, classes by their names. Raises :class:`UserError`."""
    import pyarrow as pa
    from datasets import Dataset

    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(rows, pandas.DataFrame):
        try:
            rows = pa.Table.from_pandas(rows, preserve_index=False)
        except pa.ArrowException as error:
            raise UserError(f"data: {split}: a column holds values of several kinds ({error})") from None
    if isinstance(rows, Dataset):
        rows = map(partial(named_row, features=rows.features), rows)
    elif isinstance(rows, pa.Table):
        rows = rows.to_pylist()
    elif not isinstance(rows, Iterable) or isinstance(rows, (str, bytes, Mapping)):
        raise UserError(
            f"data: {split} is {type(rows).__name__}; give a list of objects, a pandas frame, an Arrow table or a dataset"
        )
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
            raise UserError(f"data: {split} row {number} is no object whose keys are the names of columns")
        yield {key: _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    """Lists and numbers of Python for those of numpy, at any depth."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value
