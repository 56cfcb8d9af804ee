"""Seed sources, good and bad."""

from __future__ import annotations

import bz2
import csv
import errno
import gzip
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from datetime import datetime, time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from batchgen.api import run
from batchgen.errors import SeedError, StoreError
from batchgen.job import Source
from batchgen.rows import is_publishable, kind_of
from batchgen.seeds import load_seeds
from tests.helpers import chaos_job
from tests.s3server import S3Server


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


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


@pytest.mark.parametrize(("end", "packed"), [(".gz", gzip.compress), (".zst", zstd), (".bz2", bz2.compress)])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv"])
def test_files_may_be_compressed(tmp_path: Path, suffix: str, end: str, packed: Callable[[bytes], bytes]):
    lines = [b'{"x": "%d", "y": "two\\nlines"}\n' % number for number in range(20_000)]
    if suffix == ".json":
        lines = [b"[", *(line.rstrip() + b"," for line in lines[:-1]), lines[-1], b"]"]
    if suffix == ".csv":
        lines = [b"x,y\n", *(b'%d,"two\nlines"\n' % number for number in range(20_000))]
    plain = b"".join(lines)
    (tmp_path / f"plain{suffix}").write_bytes(plain)
    # As tools that work in parallel write them, and `cat`: one after the other.
    (tmp_path / f"v1.packed{suffix}{end}").write_bytes(packed(plain[:100_000]) + packed(plain[100_000:]))
    one, other = (load_seeds(Source(path=name), tmp_path) for name in (f"plain{suffix}", f"v1.packed{suffix}{end}"))
    assert (one.count, one.fingerprint) == (20_000, other.fingerprint)
    assert other.place(7) == one.place(7).replace("plain", "v1.packed").replace(suffix, suffix + end)


def test_patterns_match_in_order_and_rows_are_named_by_file_and_line(tmp_path: Path):
    (tmp_path / "b.jsonl").write_text('{"x": "3"}\n')
    (tmp_path / "a.jsonl").write_text('\ufeff{"x": "1"}\r\n\n{"x": "2"}\n', encoding="utf-8")
    seeds = load_seeds(Source(path="*.jsonl"), tmp_path)
    assert [row.data["x"] for row in seeds.slice(0, 3)] == ["1", "2", "3"]
    assert [seeds.place(i) for i in range(3)] == ["a.jsonl:1", "a.jsonl:3", "b.jsonl:1"]


def test_a_dataset_saved_to_disk(tmp_path: Path):
    DatasetDict({"train": Dataset.from_list([{"x": "1"}]), "test": Dataset.from_list([{"x": "2"}])}).save_to_disk(
        tmp_path / "saved"
    )
    assert load_seeds(Source(dataset="saved", split="test"), tmp_path).slice(0, 1)[0].data == {"x": "2"}
    with pytest.raises(SeedError, match="'dev' is not in saved; legal: train, test"):
        load_seeds(Source(dataset="saved", split="dev"), tmp_path)
    with pytest.raises(SeedError, match=r"source.config: saved was saved with save_to_disk, and has none"):
        load_seeds(Source(dataset="saved", config="easy"), tmp_path)


def test_a_dataset_of_several_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("easy", "hard"):
        (tmp_path / "many" / name).mkdir(parents=True)
        pq.write_table(pa.table({"x": [name]}), tmp_path / "many" / name / "train-0.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("easy", "hard"))
    (tmp_path / "many" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert load_seeds(Source(dataset="many", config="hard"), tmp_path).slice(0, 9)[0].data == {"x": "hard"}
    with pytest.raises(SeedError, match=r"cannot be loaded: Config name is missing.*\['easy', 'hard'\]"):
        load_seeds(Source(dataset="many"), tmp_path)
    with pytest.raises(SeedError, match=r"config 'odd', split 'train'\) cannot be loaded: .*'odd' not found"):
        load_seeds(Source(dataset="many", config="odd"), tmp_path)


def test_a_run_s_folder_is_not_taken_for_its_dataset(tmp_path: Path):
    """Its shards hold what was rejected, too, and a version and the dataset the same rows again."""
    run(chaos_job(tmp_path / "run", source={"count": 8}, merge={"near": None}), in_process=True)
    for name in ("run", "run/"):
        with pytest.raises(SeedError, match=r"'run/?' is a run's folder; the dataset that came of it is 'run/dataset'"):
            load_seeds(Source(dataset=name, columns=["instruction"]), tmp_path)
    assert load_seeds(Source(dataset="run/dataset", columns=["instruction"]), tmp_path).count == 8


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
        ("a.jsonl", b'{"x": "1"}\n{"x": "\xff"}\n', "a.jsonl:2: not UTF-8 (byte 8 of the line)"),
        (
            "a.jsonl",
            b'{"x": [1]}\n{"x": [1, "a"]}\n',
            "a.jsonl:2: column 'x' holds a value of type list, whose parts have",
        ),
        (
            "a.jsonl",
            b'{"x": 1}\n{"x": %d}\n' % 2**70,
            "a.jsonl:2: column 'x' holds a value of type int, of which no column",
        ),
        ("a.jsonl", b'{"x": "1"}\n\n{"x": 2}\n', "a.jsonl:3: column 'x' is int here and str before"),
        ("a.jsonl", b'{"x": "\\ud800"}\n', "a.jsonl:1: column 'x' holds half of a surrogate pair"),
        ("a.jsonl", b'{"x": 1}\n{"x\\udfff": 2}\n', "a.jsonl:2: the name of a column holds half of a surrogate pair"),
        ("a.json", b'[{"x": 1}, {"\\ud800": 2}]', "a.json[1]: the name of a column holds half of a surrogate pair"),
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
        ("a.csv", b"x,\xff\nfine,1\n", "a.csv: the name of a column is not UTF-8"),
        ("a.txt", b"x", "a.txt: not one of .jsonl, .ndjson, .json, .csv, .parquet (.gz, .zst, .bz2 may follow any but"),
        ("a.gz", b"", "a.gz: not one of .jsonl"),
        ("a.txt.gz", b"", "a.txt.gz: not one of .jsonl"),
        ("a.parquet.gz", b"", "a.parquet.gz: not one of .jsonl"),
        ("a.jsonl.gz", b'{"x": "1"}\n', "a.jsonl.gz: cannot be read: zlib inflate failed"),
        ("a.jsonl.gz", gzip.compress(b'{"x": "1"}\n', mtime=0)[:-1], "a.jsonl.gz: cannot be read: Truncated"),
        ("a.csv.gz", gzip.compress(b"x\n1\n", mtime=0)[:-1], "a.csv.gz: cannot be read: Truncated"),
        ("a.jsonl.gz", gzip.compress(b'{"x": "1"}\n{', mtime=0), "a.jsonl.gz:2: not JSON"),
        ("a.json.bz2", bz2.compress(b'[{"x": "1"}, 2]'), "a.json.bz2[1]: a seed row is a JSON object"),
        (
            "a.json.gz",
            gzip.compress(b'{\n "x": 1}', mtime=0),
            "a.json.gz:1: not JSON: .*(a .json file is a list of objects",
        ),
        ("a.jsonl.zst", b"", "a.jsonl.zst: the file has no rows"),
        ("a.json", b"[]", "a.json: the file has no rows"),
        ("a.json", b"", "a.json: the file has no rows"),
        ("a.json", b'[{"x": "1"},\n 2]', "a.json[1]: a seed row is a JSON object, not a int"),
        ("a.json", b'[{"x": "1"},\n {"x": 2}]', "a.json[1]: column 'x' is int here and str before"),
        ("a.json", b'[{"x": "1"},\n {"x": ]', "a.json: not JSON: Expecting value: line 2 column 8"),
        ("a.json", b'[{"x": "1"},\n {"x": "\xff"}]', "a.json:2: not UTF-8"),
        ("a.json", b"[" * 100_000, "a.json: not JSON"),
        ("a.json", b'{\n "x": 1\n}', "a.json:1: not JSON: .*(a .json file is a list of objects, or has one a line)"),
        ("a", None, "source.path: a is a folder; name its files, as in a/*.jsonl"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path: Path, name: str, content: bytes | None, message: str):
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SeedError, match=re.escape(message).replace(re.escape(".*"), ".*")):
        load_seeds(Source(path=name), tmp_path)


def test_a_column_without_any_value_is_one_of_texts(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"x": "1", "y": null}\n{"x": "2"}\n')
    table = load_seeds(Source(path="a.jsonl"), tmp_path).table
    assert (table.schema.field("y").type, table["y"].to_pylist()) == (pa.string(), [None, None])


@pytest.mark.parametrize(
    "content",
    [
        b'[{"x": "1"}, {"x": "2", "y": null}, {"x": "3", "y": ["a"]}]',
        b'\xef\xbb\xbf \n[{"x": "1"},\n\n{"x": "2"},\n {"x": "3", "y": ["a"]}\n]\n',
        b'{"x": "1"}\n{"x": "2"}\n{"x": "3", "y": ["a"]}\n',
    ],
)
def test_a_json_file_is_a_list_or_has_a_row_a_line(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.seedfiles._BATCH_ROWS", 2)
    (tmp_path / "a.json").write_bytes(content)
    (tmp_path / "b.jsonl").write_bytes(b'{"x": "1"}\n{"x": "2"}\n{"x": "3", "y": ["a"]}\n')
    given, same = (load_seeds(Source(path=name), tmp_path) for name in ("a.json", "b.jsonl"))
    assert given.fingerprint == same.fingerprint
    assert given.place(2) == ("a.json[2]" if b"[{" in content else "a.json:3")


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
    with pytest.raises(SeedError, match=r"^source\.path: names no file"):
        load_seeds(Source(path=[]), tmp_path)
    with pytest.raises(SeedError, match=r"no file matches 'seeds/\*\.jsonl' \(looked in /"):
        load_seeds(Source(path="seeds/*.jsonl"), tmp_path)


@pytest.mark.parametrize(
    "pattern", ["https://example.org/a.jsonl", "hf://datasets/ORG/NAME/*.parquet", "gs://bucket/a.csv"]
)
def test_places_that_nothing_is_read_from_are_told(tmp_path: Path, pattern: str):
    with pytest.raises(SeedError, match=r"nothing is read from '(https|hf|gs)'; legal: files here and s3://bucket/key"):
        load_seeds(Source(path=pattern), tmp_path)


def test_a_file_of_just_that_name_is_meant_before_those_that_match(tmp_path: Path):
    for name in ("a[1].jsonl", "a1.jsonl", "a2.jsonl"):
        (tmp_path / name).write_text(f'{{"x": "{name}"}}\n')
    wanted = {"a[1]": ["a[1].jsonl"], "a[2]": ["a2.jsonl"], "a[12]": ["a1.jsonl", "a2.jsonl"]}
    for pattern, found in wanted.items():
        seeds = load_seeds(Source(path=f"{pattern}.jsonl"), tmp_path)
        assert [row.data["x"] for row in seeds.slice(0, 9)] == found


def test_files_with_other_columns_are_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"x": "1"}\n')
    (tmp_path / "b.jsonl").write_text('{"y": "1"}\n')
    with pytest.raises(SeedError, match=r"b\.jsonl: columns"):
        load_seeds(Source(path="*.jsonl"), tmp_path)


def test_files_whose_types_differ_are_refused_by_the_row(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"x": "1", "id": 1}\n')
    (tmp_path / "b.jsonl").write_text('\n{"x": "1", "id": null}\n{"x": "2", "id": "one"}\n')
    with pytest.raises(SeedError, match=r"b\.jsonl:3: column 'id' is string here and int64 before"):
        load_seeds(Source(path="*.jsonl"), tmp_path)


def test_the_order_of_keys_and_absent_values_do_not_matter(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"x": "1", "n": null, "m": {"a": 1}}\n')
    (tmp_path / "b.jsonl").write_text('{"m": {"b": "c", "a": 2.5}, "n": 3, "x": "2"}\n')
    rows = load_seeds(Source(path="*.jsonl"), tmp_path).slice(0, 2)
    assert [row.data for row in rows] == [
        {"x": "1", "n": None, "m": {"a": 1.0, "b": None}},
        {"x": "2", "n": 3, "m": {"a": 2.5, "b": "c"}},
    ]


def test_a_long_file_is_read_in_parts_as_if_it_were_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [json.dumps({"x": str(i), **({"late": i / 2} if i > 7 else {})}) for i in range(11)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines))
    whole = load_seeds(Source(path="a.jsonl"), tmp_path)
    monkeypatch.setattr("batchgen.seedfiles._BATCH_ROWS", 3)
    parts = load_seeds(Source(path="a.jsonl"), tmp_path)
    assert parts.slice(0, 11) == whole.slice(0, 11)
    assert parts.fields == whole.fields
    assert parts.fingerprint == whole.fingerprint
    assert [parts.place(i) for i in range(11)] == [f"a.jsonl:{2 * i + 1}" for i in range(11)]

    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"x": 5}']))
    with pytest.raises(SeedError, match=r"a\.jsonl:12: column 'x' is int here and str before"):
        load_seeds(Source(path="a.jsonl"), tmp_path)
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"x": null}', '{"x": 5}']))
    with pytest.raises(SeedError, match=r"a\.jsonl:13: column 'x' is int64 here and string before"):
        monkeypatch.setattr("batchgen.seedfiles._BATCH_ROWS", 12)
        load_seeds(Source(path="a.jsonl"), tmp_path)


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
    with pytest.raises(
        SeedError, match=r"column 'meta' is map<string, int64.*>, which Parquet or the datasets library cannot"
    ):
        load_seeds(Source(path=str(path)))


@pytest.mark.parametrize(
    "type",
    [
        pa.timestamp("s"),
        pa.date64(),
        pa.time32("s"),
        pa.list_(pa.struct([("a", pa.timestamp("s", "UTC"))])),
        pa.list_(pa.null()),
    ],
    ids=str,
)
def test_columns_of_a_dataset_have_the_type_that_they_have_in_a_shard(tmp_path: Path, type: pa.DataType):
    Dataset(pa.table({"x": ["text"], "column": pa.array([None], type)})).save_to_disk(tmp_path / "saved")
    seeds = load_seeds(Source(dataset="saved"), tmp_path)
    pq.write_table(seeds.table, tmp_path / "shard.parquet")
    assert pq.read_schema(tmp_path / "shard.parquet").equals(pa.schema(seeds.fields))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b", None]).dictionary_encode(),
        pa.array(["a", "b", None], pa.string_view()),
        pa.ListArray.from_arrays([0, 2, 3], pa.array(["a", "b", None], pa.string_view())),
        pa.ListArray.from_arrays([0, 2, 3], pa.array(["a", "b", None]).dictionary_encode()),
        pa.array([b"a", None], pa.binary_view()),
    ],
    ids=lambda column: str(column.type)[:30],
)
def test_texts_may_be_categories_and_views(tmp_path: Path, column: pa.Array):
    pq.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    assert pq.read_schema(tmp_path / "a.parquet").field("x").type == column.type
    seeds = load_seeds(Source(path="a.parquet"), tmp_path)
    assert [row.data["x"] for row in seeds.slice(0, len(column))] == column.to_pylist()
    kind = {"dictionary<": "text", "string_view": "text", "list<": "list[text]", "binary_view": "other"}
    [expected] = [kind[start] for start in kind if str(column.type).startswith(start)]
    assert kind_of(seeds.fields[0].type) == expected
    assert pa.table({"x": seeds.table["x"]}).take([1])["x"].to_pylist() == column.to_pylist()[1:2]


def test_a_csv_file_may_be_large_and_its_texts_long_and_of_many_lines(tmp_path: Path):
    texts = [f"{i}: a line\nand, quoted, the next\n" * 20 for i in range(3000)] + ["x" * 3_000_000, "last"]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("x",), *((text,) for text in texts)])
    assert [row.data["x"] for row in load_seeds(Source(path="a.csv"), tmp_path).slice(0, 9999)] == texts


@pytest.mark.parametrize("end", ["jsonl", "csv", "parquet"])
def test_columns_are_chosen_and_only_they_have_to_be_right(tmp_path: Path, end: str):
    records = [{"x": "1", "row_id": "7", "y": "a"}, {"x": "2", "row_id": "8", "y": "b"}]
    lines = [json.dumps(record) for record in records]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:1], lines[1].replace('"8"', "8")]))
    (tmp_path / "a.csv").write_text("x,row_id,y\n1,7,a\n2,8,b\n")
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    seeds = load_seeds(Source(path=f"a.{end}", columns=["y", "y"]), tmp_path)
    assert [row.data for row in seeds.slice(0, 9)] == [{"y": "a"}, {"y": "b"}]
    with pytest.raises(SeedError, match=rf"source\.columns: a\.{end} has no column 'z'; available: x, row_id, y"):
        load_seeds(Source(path=f"a.{end}", columns=["z"]), tmp_path)


def test_columns_of_a_dataset_and_of_rows_are_chosen(tmp_path: Path):
    records = [{"x": "1", "y": 2}]
    Dataset.from_list(records).save_to_disk(tmp_path / "saved")
    for source in ({"dataset": "saved"}, {"rows": records}):
        assert load_seeds(Source(**source, columns=["x"]), tmp_path).slice(0, 1)[0].data == {"x": "1"}
        with pytest.raises(SeedError, match="has no column 'z'; available: x, y"):
            load_seeds(Source(**source, columns=["z"]), tmp_path)


@pytest.mark.parametrize("source", ["jsonl", "csv", "parquet", "dataset", "rows"])
def test_columns_may_be_given_other_names(tmp_path: Path, source: str):
    records = [{"x": "one", "row_id": "p", "model": "a"}, {"x": "two", "row_id": "q", "model": "b"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "a.csv").write_text("x,row_id,model\none,p,a\ntwo,q,b\n")
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    Dataset.from_list(records).save_to_disk(tmp_path / "saved")
    given = {"dataset": {"dataset": "saved"}, "rows": {"rows": records}}.get(source, {"path": f"a.{source}"})
    seeds = load_seeds(Source(**given, columns={"model": "by", "x": "x"}), tmp_path)
    assert [row.data for row in seeds.slice(0, 9)] == [{"by": "a", "x": "one"}, {"by": "b", "x": "two"}]
    assert seeds.table.column_names == ["by", "x"]
    swapped = load_seeds(Source(**given, columns={"x": "y", "row_id": "x"}), tmp_path)
    assert [row.data for row in swapped.slice(0, 9)] == [{"y": "one", "x": "p"}, {"y": "two", "x": "q"}]
    with pytest.raises(SeedError, match="has no column 'z'; available: x, row_id, model"):
        load_seeds(Source(**given, columns={"z": "y"}), tmp_path)
    message = (
        r"column 'model' is one that batchgen writes itself; .* give them other names there: \{model: NEW, \.\.\.\}"
    )
    with pytest.raises(SeedError, match=message):
        load_seeds(Source(**given, columns=["x", "model"]), tmp_path)


def test_words_for_nothing_are_text_and_two_columns_of_one_name_are_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text("x,y\nNA,\nnull,b\nNone,c\n")
    rows = load_seeds(Source(path="a.csv"), tmp_path).slice(0, 9)
    assert [row.data for row in rows] == [{"x": "NA", "y": None}, {"x": "null", "y": "b"}, {"x": "None", "y": "c"}]
    (tmp_path / "a.csv").write_text("x,x\n1,2\n")
    with pytest.raises(SeedError, match=r"a\.csv: it has two columns 'x'"):
        load_seeds(Source(path="a.csv"), tmp_path)


def test_times_in_a_csv_file_are_those_of_the_shards(tmp_path: Path):
    (tmp_path / "a.csv").write_text("x,at,hour\nhello,2024-01-01 10:00:00,10:00:00\n")
    seeds = load_seeds(Source(path="a.csv"), tmp_path)
    pq.write_table(seeds.table, tmp_path / "shard.parquet")
    assert pq.read_schema(tmp_path / "shard.parquet").equals(seeds.table.schema)
    assert seeds.slice(0, 1)[0].data == {"x": "hello", "at": datetime(2024, 1, 1, 10), "hour": time(10)}


def test_categories_are_text_that_a_task_can_read(tmp_path: Path):
    pq.write_table(pa.table({"x": pa.array(["a", "b", "a"]).dictionary_encode()}), tmp_path / "a.parquet")
    seeds = load_seeds(Source(path="a.parquet"), tmp_path)
    assert [kind_of(field.type) for field in seeds.fields] == ["text"]
    assert [row.data["x"] for row in seeds.slice(0, 9)] == ["a", "b", "a"]


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, StoreError), (errno.EACCES, SeedError)])
def test_a_file_that_cannot_be_read_just_now_is_no_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
):
    (tmp_path / "a.jsonl").write_text('{"x": "1"}\n')
    opened = Path.open

    def failing(path: Path, *arguments: str, **options: str):
        if path.name == "a.jsonl":
            raise OSError(number, os.strerror(number))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(kind, match=r"a\.jsonl: cannot be read"):
        load_seeds(Source(path="a.jsonl"), tmp_path)


def test_a_time_that_python_cannot_hold_is_refused(tmp_path: Path):
    times = pa.array([0, -(2**62)], pa.timestamp("us"))
    pq.write_table(pa.table({"x": ["1", "2"], "at": times}), tmp_path / "a.parquet")
    with pytest.raises(SeedError, match=r"a value after a\.parquet: row 1 cannot be read: date value out of range"):
        load_seeds(Source(path="a.parquet"), tmp_path)


def test_a_column_of_empty_objects_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"x": "1", "meta": {}}\n')
    with pytest.raises(SeedError, match=r"column 'meta' is struct<>, which Parquet or"):
        load_seeds(Source(path="a.jsonl"), tmp_path)


def test_a_dataset_without_rows_is_refused(tmp_path: Path):
    Dataset(pa.table({"x": pa.array([], pa.string())})).save_to_disk(tmp_path / "empty")
    Dataset.from_list([{"x": "a"}]).filter(lambda row: False).save_to_disk(tmp_path / "filtered")
    for name, message in (("empty", "empty has no rows"), ("filtered", "there are no seed rows")):
        with pytest.raises(SeedError, match=message):
            load_seeds(Source(dataset=str(tmp_path / name)))


def test_a_bucket_has_the_rows_that_files_have(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    names = (
        "b.jsonl",
        "a.jsonl",
        "deep/er/c.jsonl",
        "deep/d.csv",
        "other.txt",
        "b[1].jsonl",
        "b1.jsonl",
        "f.ndjson.gz",
    )
    for name in names:
        data = b"x\r\n%s\r\n" % name.encode() if name.endswith("csv") else b'\n{"x": "%s"}\n' % name.encode()
        data = gzip.compress(data) if name.endswith(".gz") else data
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
        server.objects[f"bucket/seeds/{name}"] = data
        server.objects[f"bucket/seeds2/{name}"] = b"of another folder"
    pq.write_table(pa.table({"x": ["e"]}), tmp_path / "e.parquet")
    server.objects["bucket/seeds/e.parquet"] = (tmp_path / "e.parquet").read_bytes()
    for pattern in (
        "*.jsonl",
        "[a]*.jsonl",
        "**/*.jsonl",
        "deep/**/*.[cj]*",
        "?.jsonl",
        "e.parquet",
        "f.*",
        "d*/d.csv",
        "b[1].jsonl",
    ):
        there, here = (
            load_seeds(Source(path=f"s3://bucket/seeds/{pattern}")),
            load_seeds(Source(path=pattern), tmp_path),
        )
        assert (there.count, there.fingerprint) == (here.count, here.fingerprint), pattern
        assert there.place(0) == f"s3://bucket/seeds/{here.place(0)}"
    both = load_seeds(Source(path=["s3://bucket/*/e.parquet", "a.jsonl"]), tmp_path)
    assert [row.data["x"] for row in both.slice(0, 2)] == ["e", "a.jsonl"]
    assert not any(scratch.iterdir()), "what was fetched is gone again"


def test_a_bucket_without_rows_is_named(server: S3Server, monkeypatch: pytest.MonkeyPatch):
    server.objects["bucket/seeds/bad.jsonl"] = b'{"x": "1"}\n{'
    server.objects["bucket/seeds/empty.jsonl"] = b""
    for path, message in {
        "s3://bucket/seeds/none.jsonl": "source.path: no object matches 's3://bucket/seeds/none.jsonl'",
        "s3://bucket/none/*": "source.path: no object matches 's3://bucket/none/*'",
        "s3://bucket/seeds/bad.jsonl": "s3://bucket/seeds/bad.jsonl:2: not JSON",
        "s3://bucket/seeds/empty.jsonl": "source.path: s3://bucket/seeds/empty.jsonl: the file has no rows",
        "s3://bucket/seeds/*.txt*": "source.path: no object matches",
        "s3://bucket/seeds": "source.path: seeds: not one of .jsonl, .ndjson, .json, .csv, .parquet",
        "s3://bucket/a//b.jsonl": "source.path: 's3://bucket/a//b.jsonl': not a key of a store",
        "s3://B/x.jsonl": "source.path: 's3://B/x.jsonl': 's3://B' is not an S3 location",
    }.items():
        with pytest.raises(SeedError, match=re.escape(message)):
            load_seeds(Source(path=path))
    monkeypatch.setattr("batchgen.store.s3._RETRY_SECONDS", 0)
    server.fault = lambda method, key: 503
    with pytest.raises(StoreError, match="503 Service Unavailable"):  # no fault of the job's
        load_seeds(Source(path="s3://bucket/x.jsonl"))
    server.fault = lambda method, key: 403
    with pytest.raises(
        SeedError, match=r"'s3://bucket/x.jsonl': cannot read s3://bucket/x.jsonl: PermissionDeniedError: 403 Forbidden"
    ):
        load_seeds(Source(path="s3://bucket/x.jsonl"))
