"""The page about a run: what it says, that it shows texts and runs nothing, and that it is made without harm."""

from __future__ import annotations

import functools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_dataset

from batchgen import run
from batchgen.cli import main
from batchgen.commands import _report
from batchgen.errors import CorruptShard, UserError
from batchgen.merge import latest_version
from batchgen.report import write_report
from batchgen.report.figures import _answers, _histogram, look
from batchgen.report.page import Bar, _bars
from batchgen.report.texts import figures_of
from batchgen.rows import CONVERSATION
from batchgen.store import LocalStore
from tests.helpers import chaos_job

# None of them has an end tag.
VOID = {"meta", "br"}
ATTACK = "</div><script>alert(1)</script><img src=x onerror=alert(1)>&amp; \x1b[31m\u202e"


class Page(HTMLParser):
    """A page as a browser reads it: its elements, and the texts under each heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.sections: dict[str, list[str]] = {"": []}
        self._section = ""
        self.feed(text)
        self.close()
        assert self.open == [], "every element ends"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["h2"]:
            self._section = data
            self.sections[data] = []
        elif data.strip() and "style" not in self.open:
            self.sections[self._section].append(data.strip())


def page_of(folder: Path) -> Page:
    write_report(LocalStore(folder))
    return Page((folder / "report.html").read_text("utf-8"))


def made(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """A run that has ended."""
    run(chaos_job(tmp_path / "run", source={"rows": rows}, **changes), in_process=True)
    return tmp_path / "run"


ASKED = [{"instruction": f"What is the colour of {thing}?"} for thing in ("snow", "coal", "snow", "milk", "grass")]
ANSWER = {"steps": [{"task": "text_generation"}]}


def test_the_page_says_what_came_of_the_rows(tmp_path: Path):
    rows = [*ASKED, {"instruction": "Name a bird."}, {"instruction": " "}]
    page = page_of(made(tmp_path, rows, merge={"near": False}, **ANSWER))
    tiles = page.sections[""]
    assert tiles[:3] == ["test: report", "test", "text_generation · dataset version 1"]
    assert tiles[3:11:2] == ["7", "6", "1", "5"]
    assert tiles[4:12:2] == ["seed rows", "of them good", "rejected", "rows in the dataset"]
    told = page.sections["Left out of the dataset"]
    assert told[:3:2] == ["batchgen rejected RUN", "batchgen dropped RUN"]
    assert told[-8:-4] == ["exact duplicate", "the same text as an earlier row's", "1", "14.3 %"]
    assert told[-4:] == ["rejected: empty_input", "the texts that the step reads are empty", "1", "14.3 %"]
    assert "Rejected" not in page.sections
    assert page.sections["How questions begin"][-3:] == ["What is the", "4", "80.0 %"]
    assert page.sections["What came most often"][-2:] == ["What is the colour of snow?", "2"]
    shown = page.sections["Rows from all over the dataset"]
    assert shown[0::4] == ["user"] * 5
    assert shown[1::4][:2] == ["What is the colour of snow?", "What is the colour of coal?"]
    assert "task: text_generation" in page.sections["How it was made"][0]


def test_of_a_seed_row_that_became_several_rejected_ones_are_told(tmp_path: Path):
    rows = [{"instruction": "Name a bird."}, {"instruction": " "}]
    folder = made(tmp_path, rows, steps=[{"task": "text_generation", "num_generations": 3}], merge={"near": False})
    page = page_of(folder)
    assert page.sections[""][3:9:2] == ["2", "1", "1"]
    said = page.sections["Left out of the dataset"]
    assert said[0] == "batchgen rejected RUN"
    assert "batchgen dropped RUN" not in said, "it would show nothing"
    assert said[-4:] == ["rejected: empty_input", "the texts that the step reads are empty", "3", "50.0 %"]


def test_a_text_is_shown_and_never_obeyed(tmp_path: Path):
    rows = [{ATTACK: ATTACK, "instruction": f"{ATTACK} {number}"} for number in range(4)]
    for name, changes in (("a", ANSWER), ("b", {"steps": [], "merge": {"columns": [ATTACK, "instruction"]}})):
        page = page_of(made(tmp_path / name, rows, **changes))
        assert page.tags.isdisjoint({"script", "img", "a", "link", "iframe", "object"})
        assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
        text = (tmp_path / name / "run" / "report.html").read_text("utf-8")
        assert "alert(1)" in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert any("default-src 'none'" in (value or "") for _, value in page.attributes)


def test_it_is_the_same_whenever_it_is_made_and_takes_an_earlier_one_s_place(tmp_path: Path):
    folder = made(tmp_path, ASKED, **ANSWER)
    page_of(folder)
    first = (folder / "report.html").read_bytes()
    page_of(folder)
    assert (folder / "report.html").read_bytes() == first
    for _ in range(2):
        assert main(["report", str(folder), "--to", str(tmp_path / "page.html")]) == 0
        assert (tmp_path / "page.html").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run"]
    for command in ("verify", "gc", "status"):
        assert main([command, str(folder)]) == 0, "the page is no part of what is looked after"
    assert (folder / "report.html").exists()


def test_a_run_without_a_version_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.api.run", functools.partial(run, in_process=True))
    job = tmp_path / "job.yaml"
    job.write_text(
        "name: none\nsource: {rows: [{instruction: ' '}]}\nmodel: {path: chaos}\nsteps: [{task: text_generation}]\n"
        f"output: {tmp_path / 'run'}\n"
    )
    assert main(["run", str(job)]) == 1
    page = page_of(tmp_path / "run")
    assert page.sections[""][3:11:2] == ["1", "0", "1", "–"]
    assert "There is no dataset version yet." in page.sections[""]
    assert page.sections["Rejected"][-2:] == ["1", "100.0 %"]
    assert "Rows from all over the dataset" not in page.sections


def test_a_partial_merge_says_so(tmp_path: Path):
    folder = made(tmp_path, ASKED, shard_rows=2, **ANSWER)
    for path in (folder / "versions").glob("*.json"):
        path.unlink()
    (folder / "commits" / "000001" / "0000.json").unlink()
    assert main(["merge", str(folder), "--partial"]) == 0
    (subtitle,) = [text for text in page_of(folder).sections[""] if "not complete" in text]
    assert "2 of 3 shards are committed" in subtitle
    assert "dataset version 1, of\n 2 shards" in subtitle


def test_the_figures_are_those_of_the_dataset(tmp_path: Path):
    def turns(number: int) -> list[dict[str, str]]:
        said = [("system", "Be brief."), ("user", f"Question {number % 20}?"), ("assistant", "Yes." * (number + 1))]
        said += [("user", "And then?"), ("assistant", "No." * (number + 2))] * (number % 3)
        return [{"role": role, "content": text} for role, text in said]

    rows = [{"messages": [*turns(number), {"role": "user", "content": "Why?"}]} for number in range(50)]
    folder = made(tmp_path, rows, steps=[{"task": "chat_generation"}], merge={"near": False, "compare": "prompt"})
    dataset = load_dataset(str(folder / "dataset"), split="train")
    store = LocalStore(folder)
    version = latest_version(store)
    assert version is not None
    found = look(store, version)
    assert found.rows == len(dataset) == 50
    talks = dataset["messages"]
    expected = {
        ("output", "tokens"): dataset["output_tokens"],
        ("first questions", "characters"): [len(talk[1]["content"]) for talk in talks],
        ("last answers", "characters"): [len(talk[-1]["content"]) for talk in talks],
        ("questions of a conversation", "turns"): [sum(each["role"] == "user" for each in talk) for talk in talks],
    }
    assert {(each.name, each.unit) for each in found.histograms} == expected.keys()
    for each in found.histograms:
        values = expected[each.name, each.unit]
        assert (each.median, each.most, sum(each.counts)) == (np.median(values), max(values), len(values))
    assert found.openings[0] == ("Question 0?", 3)


def test_texts_without_a_conversation_have_figures_each(tmp_path: Path):
    rows = [{"context": "c" * (2 * n), "instruction": f"Explain it {n % 2}", "none": "same"} for n in range(1, 9)]
    folder = made(tmp_path, rows, steps=[])
    version = latest_version(LocalStore(folder))
    assert version is not None
    found = look(LocalStore(folder), version)
    assert [(each.name, each.unit, each.median, each.most) for each in found.histograms] == [
        ("context", "characters", 9.0, 16.0)
    ]
    assert found.openings == [("Explain it 0", 4), ("Explain it 1", 4)], "of `instruction`, though it is not the first"
    assert found.repeated == []
    assert found.samples[0] == [("context", "cc"), ("instruction", "Explain it 1"), ("none", "same")]


def test_bars_fill_their_drawing_and_say_what_they_are():
    found = _histogram("n", "", np.array([0.0] * 4 + [0.5] * 2 + [30.0] + [60.0] * 8))
    assert _bars(found) == [
        Bar(0, 24, 13, 72, "0 to 2: 6"),
        Bar(210, 84, 13, 12, "30 to 32: 1"),
        Bar(406, 0, 13, 96, "58 to 60: 8"),
    ]
    more = _histogram("n", "", np.array([*range(1, 31)] * 50 + [10**6]))
    (first, *_, last) = _bars(more)
    assert (first.title, last.title) == ("1: 50", "30 or more: 51")


def test_of_questions_that_came_often_ten_are_shown_the_most_frequent_first(tmp_path: Path):
    rows = [{"instruction": f"Question {number}?"} for number in range(15) for _ in range(1 + number % 13)]
    folder = made(tmp_path, rows, merge={"near": False}, **ANSWER)
    version = latest_version(LocalStore(folder))
    assert version is not None
    sizes = [(f"Question {number}?", number + 1) for number in range(12, 2, -1)]
    assert look(LocalStore(folder), version).repeated == sizes


def test_preferences_conversations_and_numbers_are_figures_too(tmp_path: Path):
    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": said("user", f"Question {n}?"),
            "chosen": said("assistant", "a" * (n + 1)),
            "rejected": said("assistant", "b"),
            "rating": n / 2,
            "talk": [{"from": "human", "value": "Hi" * (n + 1)}],
            "maybe": None if n else "x",
            "tags": ["x", None],
            "ratings": [1.0, n, None],
        }
        for n in range(4)
    ]
    folder = made(tmp_path, rows, steps=[])
    store = LocalStore(folder)
    version = latest_version(store)
    assert version is not None
    found = look(store, version)
    assert {(each.name, each.unit, each.most) for each in found.histograms} == {
        ("chosen", "characters", 4.0),
        ("rating", "", 1.5),
        ("talk", "characters", 8.0),
        ("ratings", "", 3.0),
    }
    assert found.openings == []
    assert found.samples[1][:4] == [
        ("prompt", "Question 1?"),
        ("chosen", "aa"),
        ("rejected", "b"),
        ("rating", 0.5),
    ]
    assert "['x', None]" not in str(page_of(folder).sections), "values are JSON"
    assert '["x", null]' in page_of(folder).sections["Rows from all over the dataset"]


@pytest.mark.parametrize(
    "numbers",
    [
        [1, 2],
        [0, 1000],
        list(range(1, 200)),
        [5] * 98 + [6, 10**6],
        [*range(1, 101)] * 10 + [105, 300],
        [0.25, 0.5, 1.0],
        [-3.5, 0.0, 1e9],
        np.random.default_rng(0).lognormal(5, 1, 5000).astype(int).tolist(),
        [*np.random.default_rng(0).lognormal(0, 3, 5000).tolist()],
    ],
)
def test_a_histogram_has_every_number_once(numbers: list[float]):
    found = _histogram("n", "", np.array(numbers))
    assert sum(found.counts) == len(numbers)
    assert len(found.edges) == len(found.counts) + 1 <= 32
    widths = np.diff(found.edges)
    assert np.allclose(widths, widths[0])
    assert found.edges[0] == min(numbers)
    assert found.most == max(numbers)
    assert found.more == (max(numbers) > found.last(len(found.counts) - 1))
    for index, count in enumerate(found.counts[:-1]):
        inside = [n for n in numbers if found.edges[index] <= n < found.edges[index + 1]]
        assert count == len(inside)


def test_a_bin_of_whole_numbers_is_told_by_those_in_it(tmp_path: Path):
    rows = [{"rating": float(n % 3), "score": n / 4} for n in range(9)]
    page = page_of(made(tmp_path, rows, steps=[]))
    told = page.sections["Lengths and numbers"]
    assert told[0:5] == ["rating", "median 1, 95 % at most 2, largest 2", "0: 3", "1: 3", "2: 3"]
    assert told[5:8] == ["0", "2", "score"]
    assert told[9] == "0 to 0.0667: 1"
    assert told[-2:] == ["0", "2"]


def test_numbers_that_nothing_can_be_drawn_of_are_left_out(tmp_path: Path):
    odd = [1e308, -1e308, float("inf"), float("nan"), None, 1.0, 1.0000000000000002, 2.0**60, 2.0**60 + 256]
    page = page_of(made(tmp_path, [{"rating": value} for value in odd], steps=[]))
    told = page.sections["Lengths and numbers"]
    assert told[0] == "rating"
    assert sum(int(text.rpartition(": ")[2]) for text in told if ": " in text) == 4


def test_one_long_text_does_not_hide_all_others():
    found = _histogram("n", "", np.array([*range(1, 101)] * 10 + [10**6]))
    assert found.edges[-1] <= 120
    assert found.more
    assert max(found.counts) < 100


def test_the_page_tells_languages_and_how_varied_texts_are(tmp_path: Path):
    said = [
        ("Which town is the capital of France?", "Paris."),
        ("Could you tell me about Spain?", "Its capital is called Madrid."),
    ]
    said += [
        ("Was ist die Hauptstadt von Frankreich?", "Die Hauptstadt ist Paris."),
        ("2 + 2", "4"),
        ("法国的首都是哪里？", "5"),
    ]
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in said
    ]
    page = page_of(made(tmp_path, rows, steps=[], merge={"near": False}))
    told = page.sections["Languages"][-15:]
    assert told[:3] == ["language", "5 questions", "5 answers"]
    assert [told[at : at + 3] for at in range(3, 15, 3)] == [
        ["en", "40.0 %", "20.0 %"],
        ["de", "20.0 %", "20.0 %"],
        ["zh", "20.0 %", "0.0 %"],
        ["none clearly", "20.0 %", "60.0 %"],
    ]
    varied = page.sections["How varied texts are"]
    assert varied[-12::3] == [
        "distinct words and signs",
        "distinct pairs of these",
        "distinct triples",
        "length before and after compression",
    ]
    assert re.fullmatch(r"\d\.\d : 1", varied[-1])


def test_shares_of_what_is_distinct_are_those_of_a_count_by_hand():
    found = figures_of("answers", ["a b a b", None, "A  b.", " \n", ""])
    assert found is not None
    assert (found.number, found.languages) == (2, [("", 2)])
    assert found.distinct == pytest.approx([3 / 7, 3 / 5, 3 / 3])
    assert figures_of("answers", [None, " "]) is None
    single = figures_of("answers", ["a"])
    assert single is not None
    assert single.distinct == [1.0, 1.0, 1.0]


def test_texts_that_are_alike_compress_better():
    alike = figures_of("questions", [f"What is the colour of thing number {n}?" for n in range(300)])
    rng = np.random.default_rng(5)
    apart = figures_of("questions", ["".join(rng.choice(list("abcdefghij "), 40)) for _ in range(300)])
    assert alike is not None
    assert apart is not None
    assert alike.compression > 2 * apart.compression > 2
    assert alike.distinct[2] < 0.3 < apart.distinct[2]


def test_texts_are_looked_at_from_all_over_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"prompt": f"Question {n}", "chosen": f"Answer {n}", "rejected": "No."} for n in range(100)]
    folder = made(tmp_path, rows, steps=[], merge={"near": False, "prompt": "prompt", "answer": "chosen"})
    monkeypatch.setattr("batchgen.report.figures._TEXTS", 12)
    monkeypatch.setattr("batchgen.report.figures._BATCH_ROWS", 7)
    looked: dict[str, list[str]] = {}
    monkeypatch.setattr("batchgen.report.figures.figures_of", lambda name, texts: looked.update({name: texts}))
    version = latest_version(LocalStore(folder))
    assert version is not None
    look(LocalStore(folder), version)
    wanted = [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]
    assert looked == {"questions": [f"Question {n}" for n in wanted], "answers": [f"Answer {n}" for n in wanted]}


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"messages": [{"role": "assistant", "content": "Hm."}, {"role": "user", "content": "Why?"}]}, "Hm."),
        ({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, "Because."),
        ({"chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}, "So."),
        ({"chosen": []}, None),
        ({"messages": None, "chosen": "Because."}, None),
        ({"instruction": "Why?", "chosen": 3}, None),
    ],
)
def test_an_answer_is_a_conversation_s_last_or_the_one_that_is_preferred(row: dict[str, Any], answer: str | None):
    schema = pa.schema([("messages", CONVERSATION)]) if "messages" in row else None
    table = (
        pa.Table.from_pylist([row])
        if schema is None
        else pa.table({"messages": pa.array([row["messages"]], CONVERSATION)})
    )
    assert _answers(table) == [answer]


def test_a_rejected_row_of_each_kind_is_shown_the_most_frequent_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows: list[dict[str, Any]] = [{"instruction": f"Tell me of {n}", "level": 5} for n in range(4)]
    rows += [{"instruction": f"Tell me {n}", "level": 0} for n in range(6)]
    rows += [{"instruction": " ", "level": 5}, {"instruction": None, "level": 5, ATTACK: ATTACK * 9}]
    steps = [{"task": "filter", "keep": {"level": {"min": 1}}}, {"task": "text_generation"}]
    folder = made(tmp_path, rows, steps=steps, shard_rows=1)
    store = LocalStore(folder)
    read: list[str] = []
    monkeypatch.setattr(store, "read", lambda key: read.append(key) or LocalStore.read(store, key))
    write_report(store)
    page = Page((folder / "report.html").read_text("utf-8"))
    assert len([key for key in read if key.endswith(".parquet")]) == 3, "of twelve shards"
    shown = page.sections["Rejected rows, one of each kind"]
    assert shown[:5] == ["filtered:level", "instruction", "Tell me 0", "level", "0"]
    assert shown[5:8] == ["empty_input", "instruction", "level"]
    assert shown[8:12] == ["5", "missing_input:instruction", "level", "5"]
    assert shown[13].startswith(ATTACK[:20])
    assert shown[13].endswith(" characters more)")
    assert "script" not in page.tags


def test_samples_are_from_all_over_the_dataset(tmp_path: Path):
    rows = [{"instruction": f"Number {n}"} for n in range(100)]
    folder = made(tmp_path, rows, steps=[], merge={"near": False, "prompt": "instruction"})
    version = latest_version(LocalStore(folder))
    assert version is not None
    shown = [int(re.sub(r"\D", "", sample[0][1])) for sample in look(LocalStore(folder), version).samples]
    assert shown == [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]


def test_of_a_large_dataset_parts_from_all_over_it_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.merge.version.ROWS_PER_FILE", 50)
    monkeypatch.setattr("batchgen.merge.version.ROWS_PER_GROUP", 10)
    rows = [{"instruction": f"Number {n}"} for n in range(1000)]
    folder = made(tmp_path, rows, steps=[], merge={"near": False, "prompt": "instruction"})
    monkeypatch.setattr("batchgen.report.figures._MOST_ROWS", 250)
    version = latest_version(LocalStore(folder))
    assert version is not None
    assert len(version.files) == 21
    opened: list[str] = []
    store = LocalStore(folder)
    monkeypatch.setattr(store, "open", lambda key: opened.append(key) or LocalStore.open(store, key))
    found = look(store, version)
    assert len(opened) == 8
    assert found.rows == 8 * 30, "every second group of eight files"
    shown = [int(re.sub(r"\D", "", sample[0][1])) for sample in found.samples]
    assert len(shown) >= 11
    assert shown[0] == 0
    assert shown[-1] >= 800
    assert "What follows is of 240 rows, from all over the dataset." in page_of(folder).sections[""]


def test_a_file_that_is_no_report_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = made(tmp_path, ASKED, **ANSWER)
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    for to, complaint in (
        ("mine.html", "is there, and is no report of batchgen's; it was left as it is"),
        ("run", "is a folder; name a file"),
        ("none/x.html", "is not there, or cannot be written"),
        ("mine.html/x", "cannot be written"),
    ):
        assert main(["report", str(folder), "--to", str(tmp_path / to)]) == 2
        assert complaint in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a batchgen run" in capsys.readouterr().err
    with pytest.raises(UserError, match="no home directory"):
        write_report(LocalStore(folder), "~nobody-of-this-name/x.html")


def test_a_broken_dataset_is_named_and_fails_no_run(tmp_path: Path):
    store = LocalStore(made(tmp_path, ASKED, **ANSWER))
    version = latest_version(store)
    assert version is not None
    (data,) = (file for name, file in version.files.items() if name.startswith("data/"))
    assert _report(store) == f"{store.location}/report.html"
    store.path(data.key).write_bytes(b"PAR1 broken")
    with pytest.raises(CorruptShard, match=r"dataset version 1: data/train-00000-of-00001\.parquet cannot be read"):
        write_report(store)
    assert _report(store).startswith("not written (")
    store.path(data.key).unlink()
    assert "cannot be read; `batchgen verify` says more" in _report(store)


def test_what_no_page_can_be_made_of_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = LocalStore(made(tmp_path, ASKED, **ANSWER))

    def fails(*_: object) -> None:
        raise ZeroDivisionError("a canary")

    monkeypatch.setattr("batchgen.report.look", fails)
    assert _report(store) == "not written (ZeroDivisionError)"
