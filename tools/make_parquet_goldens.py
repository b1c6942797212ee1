#!/usr/bin/env python3
"""Writes tests/goldens/parquet/nested.{parquet,json}: rows of every kind of column that src/io/parquet.cc reads.

Needs pyarrow (26.0.1 made the files in the tree). The JSON is what quatrain must read, written by hand below and
not derived from pyarrow.
"""
import datetime
import decimal
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "goldens" / "parquet"

SCHEMA = pa.schema([
    ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ("label", pa.string()),
    ("small", pa.int8()),
    ("big", pa.uint64()),
    ("half", pa.float16()),
    ("ratio", pa.float64()),
    ("flag", pa.bool_()),
    ("source", pa.dictionary(pa.int32(), pa.string())),
    ("scores", pa.list_(pa.float32())),
    ("extra", pa.struct([("a", pa.int64()), ("b", pa.list_(pa.list_(pa.int32())))])),
    ("counts", pa.map_(pa.string(), pa.int32())),
    ("long_text", pa.large_string()),
    ("day", pa.date32()),
    ("price", pa.decimal128(6, 2)),
    ("nothing", pa.null()),
])

ROWS = [
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}], "label": "5",
     "small": -128, "big": 2**64 - 1, "half": 0.5, "ratio": 0.1, "flag": True, "source": "math",
     "scores": [1.0, 0.25], "extra": {"a": 1, "b": [[1, 2], [], None]}, "counts": [("x", 1), ("y", None)],
     "long_text": "caf\u00e9", "day": datetime.date(2024, 2, 29), "price": decimal.Decimal("12.50"), "nothing": None},
    {"prompt": [], "label": None, "small": None, "big": None, "half": None, "ratio": None, "flag": None,
     "source": None, "scores": None, "extra": None, "counts": None, "long_text": None, "day": None, "price": None,
     "nothing": None},
    {"prompt": [{"role": "user", "content": None}], "label": "", "small": 7, "big": 0, "half": -2.0, "ratio": 1e300,
     "flag": False, "source": "code", "scores": [], "extra": {"a": None, "b": []}, "counts": [],
     "long_text": "", "day": datetime.date(1969, 12, 31), "price": decimal.Decimal("-0.01"), "nothing": None},
]


def as_json(row):
    row = dict(row)
    if row["counts"] is not None:
        row["counts"] = dict(row["counts"])
    for key in ("day", "price"):
        row[key] = None if row[key] is None else str(row[key])
    return row


def main():
    table = pa.Table.from_pylist(ROWS, schema=SCHEMA)
    FOLDER.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, FOLDER / "nested.parquet", row_group_size=2, compression="zstd")
    text = json.dumps([as_json(row) for row in ROWS], indent=1)
    (FOLDER / "nested.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
