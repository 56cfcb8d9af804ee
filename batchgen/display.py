"""What a person sees of a run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

from batchgen.errors import StoreError
from batchgen.plaintext import harmless, one_line
from batchgen.progress import TRUNCATED, cut_hint
from batchgen.telling import Tell, paced

if TYPE_CHECKING:
    from batchgen.drive import Status
    from batchgen.job import Job, Merge
    from batchgen.merge.conversations import ChatColumns
    from batchgen.merge.dropped import DroppedRow
    from batchgen.merge.version import Version
    from batchgen.preview import Preview
    from batchgen.store.base import ObjectStore

_PLAIN_EVERY = 10.0
_NO_PROMPT = "the rows have no prompt, and so no messages; merge.prompt and merge.answer can name columns"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe(status: Status) -> str:
    """A status in one line."""
    done = status.done
    parts = [
        f"{done.ok + done.rejected:,}/{status.rows:,} rows",
        f"shards {status.shards_done}/{status.shards}",
    ]
    if done.rejected:
        reasons = ", ".join(f"{one_line(reason)} {count:,}" for reason, count in sorted(done.reasons.items()))
        parts.append(f"{done.rejected:,} rejected ({reasons})")
    if cut := done.notes.get(TRUNCATED):
        parts.append(f"{cut:,} truncated")
    if not status.engines_ready:
        parts.append("engine starting" if status.engines == 1 else f"{status.engines} engines starting")
    else:
        parts.append(f"engines {status.engines_ready}/{status.engines}")
        # Of a server's completions nothing is known until the first has ended, which may take minutes.
        if status.tokens_per_second:
            parts.append(f"{status.tokens_per_second:,.0f} tok/s")
        elif status.rows_in_flight:
            parts.append(f"{status.rows_in_flight:,} rows in flight")
    if status.eta is not None and done.ok + done.rejected < status.rows:
        parts.append(f"ETA {_duration(status.eta)}")
    return ", ".join(parts)


def show_progress(every: float = _PLAIN_EVERY) -> Callable[[Status], None]:
    """A `watch` for scripts and notebooks: prints notes as they come, and now and then how the run stands.

    Args:
        every: seconds between two lines.
    """
    started, printed, ended = time.monotonic(), float("-inf"), False

    def watch(status: Status) -> None:
        nonlocal printed, ended
        for note in status.notes:
            print(f"  {note}", flush=True)
        now, before = time.monotonic(), ended
        ended = status.shards_done == status.shards
        if status.merge and now - printed >= every:
            printed = now
            print(f"[{_duration(now - started)}] {_merging(status)}", flush=True)
        if status.engines and (now - printed >= every or (ended and not before)):
            printed = now
            print(f"[{_duration(now - started)}] {describe(status)}", flush=True)

    return watch


def _merging(status: Status) -> str:
    return f"merge: {status.merge}"


def show_steps(every: float = _PLAIN_EVERY) -> Tell:
    """Prints to standard error now and then how far a command is, and nothing of one that takes less time.

    Args:
        every: seconds between two lines.
    """
    return paced(lambda text: print(f"  {text}", file=sys.stderr, flush=True), every)


class Display:
    """Shows statuses; a context manager around a run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            console=console,
        )
        self._row = self._bar.add_task("rows", total=None)
        self._started = time.monotonic()
        self._printed = float("-inf")
        self._last = ""

    def __enter__(self) -> Display:
        self._console.print("checking job, seeds and model, then starting Ray and the engines ...", highlight=False)
        if self._console.is_terminal:
            self._live = Live(
                self._bar,
                console=self._console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
        self._print_last()

    def _print_last(self) -> None:
        """Ends the lines about the rows."""
        if self._last:
            self._console.print(self._last, highlight=False, markup=False)
        self._last = ""

    def show(self, status: Status) -> None:
        """Takes a status, about once a second."""
        for note in status.notes:
            self._console.print(f"  {note}", style="yellow", highlight=False, markup=False)
        if not (status.engines or status.merge):
            return  # no engine is wanted yet, or any more
        elapsed = f"[{_duration(time.monotonic() - self._started)}]"
        self._bar.update(self._row, total=status.rows, completed=status.done.ok + status.done.rejected)
        if status.merge:
            self._print_last()
            self._shown(f"{elapsed} {_merging(status)}")
        else:
            self._last = f"{elapsed} {describe(status)}"
            self._shown(self._last)

    def _shown(self, line: str) -> None:
        from rich.console import Group
        from rich.text import Text

        if self._live is not None:
            self._live.update(Group(self._bar, Text(line)))
        elif time.monotonic() - self._printed >= _PLAIN_EVERY:
            self._printed = time.monotonic()
            self._console.print(line, highlight=False, markup=False)


@contextlib.contextmanager
def noise_to(log: Path) -> Iterator[Callable[[], None]]:
    """Sends what this process's libraries print, Ray's C++ parts too, to a file; consoles made before go on.

    It is written at the end, and only where its run exists: a refused job leaves nothing behind. What is yielded is to
    be called once the run has begun: from then on everything is in the file at once, whatever kills this process.
    """
    saved = os.dup(2)
    kept = False

    def keep() -> None:
        nonlocal kept
        with contextlib.suppress(OSError):  # the run's folder may be out of reach
            if not kept and log.parent.parent.is_dir():
                kept = True
                sys.stderr.flush()
                _append(log, buffer)

    try:
        with tempfile.TemporaryFile() as buffer:
            os.dup2(buffer.fileno(), 2)
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    yield keep
            finally:
                with contextlib.suppress(OSError):  # it may go into the log of a full disk by now
                    sys.stderr.flush()
                if os.fstat(buffer.fileno()).st_size:
                    keep()
                os.dup2(saved, 2)
    finally:
        os.close(saved)


def _append(log: Path, buffer: IO[bytes]) -> None:
    """Puts what is in the buffer into the log, and the process's standard error behind it."""
    log.parent.mkdir(exist_ok=True)
    with log.open("ab", buffering=0) as file:
        # At a place: a seek would move where others write, who share the buffer's position.
        file.write(os.pread(buffer.fileno(), size := os.fstat(buffer.fileno()).st_size, 0))
        os.dup2(file.fileno(), 2)
        file.write(os.pread(buffer.fileno(), os.fstat(buffer.fileno()).st_size - size, size))


class _Unbreakable:
    """A terminal or pipe that may go away before the run ends: what is written to it from then on is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stdout_console() -> Console:
    """A console that does not wrap lines where the output is no terminal, and outlives it."""
    stream = cast("TextIO", _Unbreakable(sys.stdout))
    return Console(file=stream, soft_wrap=not sys.stdout.isatty(), emoji=False)


def describe_version(version: Version, job: Job) -> str:
    """What a merge of a job's rows kept and dropped, in one line."""
    dropped = ", ".join(f"{one_line(reason)} {count:,}" for reason, count in version.dropped.items())
    line = f"merged {version.read:,} rows: {version.kept:,} kept" + (f"; dropped: {dropped}" if dropped else "")
    hints = [cut_hint(version.dropped, version.read, job.loses_turns)]
    if version.merge["compare"] is None and (version.merge["exact"] or version.merge["near"]):
        hints.append(f"duplicates were not looked for: {_NO_PROMPT}")
    told = "; ".join(filter(None, hints))
    return f"{line} ({told})" if told else line


def describe_merge(merge: Merge, chat: ChatColumns | None) -> str:
    """Which rows the merger leaves out, in one line; the arguments are those of `describe_duplicates`."""
    from batchgen.benchmarks import benchmark_name

    told = []
    if merge.keep:
        told.append(f"rows stay that meet the conditions on {', '.join(merge.keep)}")
    if merge.decontaminate:
        names = ", ".join(map(benchmark_name, merge.decontaminate))
        told.append(f"rows go that have texts in common with {names}")
    most = []
    if merge.limit is not None:
        which = f"those with the highest {one_line(merge.prefer)}" if merge.prefer else "the first ones"
        most = [f"at most {merge.limit:,} rows stay, {which}"]
    return "; ".join([*map(one_line, told), describe_duplicates(merge, chat), *most])


def describe_duplicates(merge: Merge, chat: ChatColumns | None) -> str:
    """What becomes of duplicates, and by which columns they are told.

    Args:
        merge: a job's, with what it leaves open.
    """
    if not (merge.exact or merge.near):
        return "duplicates stay"
    if chat is None:
        return f"duplicates stay: {_NO_PROMPT}"
    prompt, answer = (f"the user's messages in {chat}", "the answers") if isinstance(chat, str) else chat[:2]
    also = {"conversation": f" and {answer}", "answers": f", and those with the same by {answer}"}
    by = prompt + (also.get(merge.compare or "", "") if answer is not None else "")
    stays = f"; of such rows the one with the highest {merge.prefer} stays" if merge.prefer else ""
    return f"duplicates are told by {one_line(by + stays)}"


def sample_rows(store: ObjectStore, version: Version, rows: int = 3) -> list[str]:
    """The first rows of a version: their conversations, a line a message; a line a column where they have none.

    No lines where they cannot be read just now: the version is published all the same.
    """
    from batchgen.parquet import first_rows
    from batchgen.rows import CLUSTER_SIZE, META_NAMES

    key = next(file.key for name, file in sorted(version.files.items()) if name.startswith("data/"))
    try:
        with store.open(key) as file:
            batch = first_rows(file, rows)
    except (StoreError, OSError):
        return []
    lines = []
    for row in batch.to_pylist() if batch is not None else ():
        parts = [(message["role"], message["content"] or "") for message in row.get("messages") or ()]
        if "messages" not in row:
            parts = [(name, value) for name, value in row.items() if name not in (*META_NAMES, CLUSTER_SIZE)]
        width = max((len(name) for name, _ in parts), default=0)
        lines += [f"  {one_line(name):>{max(9, width)}}: {_shortened(_as_text(value), 200)}" for name, value in parts]
        lines.append("")
    return lines


def _as_text(value: Any) -> Any:
    """A conversation as texts, without the roles of a message that stands alone; any other value as it is."""
    if not isinstance(value, list) or not all(isinstance(item, dict) and "content" in item for item in value):
        return value
    said = [str(message["content"] or "") for message in value]
    return said[0] if len(said) == 1 else said


def describe_prompt(row: int, preview: Preview) -> list[str]:
    """What a row asks first, as its model reads it."""
    if preview.model is None:
        return [f"row {row} asks no model: " + (f"rejected as {preview.reason}" if preview.reason else "no step does")]
    size = f", {preview.tokens:,} tokens" if preview.tokens is not None else "; its server writes them as a prompt"
    shown = [harmless(line.replace("\t", "    ")) for line in preview.text.split("\n")]
    return [f"first prompt of row {row}, to {preview.model}{size}:", *(f"  {line}" for line in shown)]


def describe_rejected(row: Mapping[str, Any]) -> list[str]:
    """A rejected row: where it stands, then a line for each column that it reached, and for the last completion."""
    from batchgen.rejected import described

    return [f"row {_place(row)}: {row['reason']}"] + [
        f"  {one_line(name)}: {_shortened(value)}" for name, value in described(row)
    ]


def _shortened(value: Any, length: int = 300) -> str:
    text = one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= length else text[:length] + " ..."


def describe_dropped(dropped: DroppedRow) -> list[str]:
    """A row that was left out, a line a column; of a duplicate also the columns in which its original is another."""
    from batchgen.rows import META_NAMES

    row, original = dropped.row, dropped.original or {}
    lines = [f"row {_place(row)}: {one_line(dropped.reason)}" + (f" of row {_place(original)}" if original else "")]
    if dropped.in_common is not None:
        lines.append(f"  in common, of {one_line(dropped.in_common.column)}: {_shortened(dropped.in_common.words)}")
    for name, value in row.items():
        if name in META_NAMES:
            continue
        lines.append(f"  {one_line(name)}: {_shortened(value)}")
        if original and original.get(name) != value:
            there = f"(row {original['row_index']})"
            lines.append(f"  {there:>{len(one_line(name))}}: {_shortened(original.get(name))}")
    return lines


def _place(row: Mapping[str, Any]) -> str:
    """Where a row stands among those of a run."""
    return f"{row['row_index']}" + (f", branch {row['branch']}" if row["branch"] else "")


_TAIL_BYTES = 64 * 1024


def log_tail(folder: Path, lines: int = 15) -> str:
    """The last lines of the newest engine log, or of the driver's: that is where vLLM or Ray says why.

    "" where they cannot be read: what failed is told all the same.
    """
    try:
        logs = sorted(folder.glob("*.log"), key=lambda path: (path.name != "driver.log", path.stat().st_mtime))
        if not logs:
            return ""
        with logs[-1].open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            tail = log.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return ""
    return "\n".join([f"last lines of {logs[-1]}:", *(f"  {line}" for line in tail)]) if tail else ""
