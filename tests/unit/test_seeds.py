"""Seed sources, good and bad."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchgen.errors import SeedError
from batchgen.job import Source
from batchgen.rows import is_publishable
from batchgen.seeds import load_seeds


def test_a_count_gives_numbered_empty_rows():
    seeds = load_seeds(Source(count=3))
    rows = seeds.slice(0, 3)
    assert [row.index for row in rows] == [0, 1, 2]
    assert [row.data for row in rows] == [{}, {}, {}]
    assert len({row.id for row in rows}) == 3
    ids = b"".join(bytes.fromhex(row.id) for row in rows)
    assert seeds.fingerprint == hashlib.blake2b(ids, digest_size=16).hexdigest()


def test_the_same_row_text_in_every_format_gives_the_same_ids(tmp_path: Path):
    records = [{"input": "Straße"}, {"input": "two\nlines"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text('input\nStraße\n"two\nlines"\n')
    ids = [
        [row.id for row in load_seeds(source, tmp_path).slice(0, 2)]
        for source in (Source(rows=records), *(Source(path=f"a.{end}") for end in ("jsonl", "parquet", "csv")))
    ]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[3]) == 2


def test_patterns_match_in_order_and_rows_are_named_by_file_and_line(tmp_path: Path):
    (tmp_path / "b.jsonl").write_text('{"x": "3"}\n')
    (tmp_path / "a.jsonl").write_text('\ufeff{"x": "1"}\r\n\n{"x": "2"}\n', encoding="utf-8")
    seeds = load_seeds(Source(path="*.jsonl"), tmp_path)
    assert [row.data["x"] for row in seeds.slice(0, 3)] == ["1", "2", "3"]
    assert [seeds.where[i] for i in range(3)] == ["a.jsonl:1", "a.jsonl:3", "b.jsonl:1"]


def test_a_dataset_saved_to_disk(tmp_path: Path):
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list([{"x": "1"}]), "test": Dataset.from_list([{"x": "2"}])}).save_to_disk(
        tmp_path / "saved"
    )
    assert load_seeds(Source(dataset="saved", split="test"), tmp_path).slice(0, 1)[0].data == {"x": "2"}
    with pytest.raises(SeedError, match="'dev' is not in saved; legal: train, test"):
        load_seeds(Source(dataset="saved", split="dev"), tmp_path)


def test_limit_keeps_the_first_rows_and_their_ids():
    rows = [{"x": str(i)} for i in range(5)]
    few, all_rows = load_seeds(Source(rows=rows, limit=2)), load_seeds(Source(rows=rows))
    assert [row.id for row in few.slice(0, 9)] == [row.id for row in all_rows.slice(0, 2)]
    assert few.fingerprint != all_rows.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: the file has no rows"),
        ("a.jsonl", b'{"x": "1"}\n{"x": \n', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"x": "1"}\n[1]\n', "a.jsonl:2: a seed row is a JSON object, not a list"),
        ("a.jsonl", b'{"x": "1"}\n{"x": "\xff"}\n', "a.jsonl:2: not UTF-8"),
        ("a.jsonl", b'{"x": "1"}\n\n{"x": 2}\n', "a.jsonl:3: column 'x' is int here and str before"),
        ("a.jsonl", b'{"x": "\\ud800"}\n', "a.jsonl:1: column 'x' holds half of a surrogate pair"),
        ("a.jsonl", b"{}\n", "a.jsonl:1: a seed row without columns"),
        ("a.jsonl", b'{"row_id": "1"}\n', "column 'row_id' is one that batchgen writes itself"),
        ("a.parquet", b"PAR1 torn", "a.parquet: "),
        ("a.jsonl", b'{"x": "\xef\xbb\xbf', "a.jsonl:1: not JSON"),
        ("a.jsonl", b"\xff\xfe{\x00}\x00", "a.jsonl:1: not UTF-8"),
        ("a.jsonl", b"\n\n", "a.jsonl: the file has no rows"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl:1: not JSON"),
        ("a.csv", b"", "a.csv: "),
        ("a.csv", b"x\n", "a.csv: the file has no rows"),
        ("a.csv", b"x,y\n1,2\n1,2,3\n", "a.csv: "),
        ("a.csv", b"x\nfine\n\xff\xfe\n", "a.csv: row 2: column 'x' is not UTF-8"),
        ("a.txt", b"x", "a.txt: not one of .jsonl, .csv, .parquet"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SeedError, match=message.replace(".", r"\.").replace("[", r"\[")):
        load_seeds(Source(path=name), tmp_path)


def test_a_torn_parquet_file_is_named(tmp_path: Path):
    pq.write_table(pa.table({"x": ["text"] * 1000}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for size in (0, 3, 8, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.parquet").write_bytes(whole[:size])
        with pytest.raises(SeedError, match=r"a\.parquet: "):
            load_seeds(Source(path="a.parquet"), tmp_path)


def test_odd_text_is_read_as_it_is(tmp_path: Path):
    texts = ["nul \0 inside", "\u2028 and \x85 are no line ends", "x" * 3_000_000, "\ufeff", " ", "\r"]
    (tmp_path / "a.jsonl").write_bytes(b"\r\n".join(json.dumps({"x": text}).encode() for text in texts))
    seeds = load_seeds(Source(path="a.jsonl"), tmp_path)
    assert [row.data["x"] for row in seeds.slice(0, 9)] == texts


def test_a_missing_file_is_named_with_the_folder(tmp_path: Path):
    with pytest.raises(SeedError, match=r"no file matches 'seeds/\*\.jsonl' \(looked in /"):
        load_seeds(Source(path="seeds/*.jsonl"), tmp_path)


def test_files_with_other_columns_are_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"x": "1"}\n')
    (tmp_path / "b.jsonl").write_text('{"y": "1"}\n')
    with pytest.raises(SeedError, match=r"b\.jsonl: columns"):
        load_seeds(Source(path="*.jsonl"), tmp_path)


@pytest.mark.parametrize(
    "type",
    [
        pa.map_(pa.string(), pa.int64()),
        pa.struct([("a", pa.list_(pa.map_(pa.string(), pa.int64())))]),
        pa.month_day_nano_interval(),
        pa.list_view(pa.int32()),
        pa.run_end_encoded(pa.int32(), pa.string()),
        pa.decimal32(5, 2),
        pa.uuid(),
        pa.json_(),
        pa.binary(4),
        pa.date32(),
        pa.timestamp("us", "UTC"),
        pa.duration("s"),
        pa.decimal128(5, 2),
        pa.dictionary(pa.int32(), pa.string()),
        pa.large_string(),
        pa.list_(pa.float32(), 2),
        pa.struct([("a", pa.list_(pa.int8()))]),
    ],
    ids=str,
)
def test_a_type_is_taken_exactly_where_the_datasets_library_reads_it(type: pa.DataType):
    from datasets import Features

    try:
        Features.from_arrow_schema(pa.schema([pa.field("column", type)]))
        readable = True
    except ValueError:
        readable = False
    assert is_publishable(type) == readable


def test_a_column_that_could_not_be_read_from_the_dataset_is_refused(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"meta": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))}), path)
    with pytest.raises(SeedError, match=r"column 'meta' is map<string, int64.*>, which the datasets library cannot"):
        load_seeds(Source(path=str(path)))
