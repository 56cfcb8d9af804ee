"""Reads what was asked for out of completions, in the shapes that chat models really give it.

A prompt says "Rating: 4"; models write `**Rating:** 4/5`, say "Sure! Here are five queries:" before a list, and wish
good luck after it. A verdict is never guessed: one that is not found, found twice or out of range is None, and its row
rejected. What only stands around a list or a rewritten text is told by its form, which is a heuristic.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

_T = TypeVar("_T")

# Goes on with a number, a word and a line alike, and ends none of them.
_MORE = "0x and so on"

# Where white space goes on and on, each place at which the content may begin would be tried to the text's end.
_FENCE = re.compile(r"```(?:json|python)?[^\S\n]*\n(.*?)```", re.DOTALL)
_LITERAL_LIMIT, _NESTING_LIMIT = 50_000, 20


def continued(text: str) -> str:
    """A completion as it might have gone on where it was cut: what is read of both alike does not rest on the cut."""
    return text + _MORE


def common(one: Sequence[_T], other: Sequence[_T]) -> list[_T]:
    """What two lists begin with alike."""
    return [item for item, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]


def data_text(text: str) -> str:
    """The JSON of a completion: in its fence, or the first value that starts with a bracket; else all of it."""
    if fenced := _FENCE.search(text):
        return fenced[1]
    if start := re.search(r"[\[{]", text):
        try:
            _, end = json.JSONDecoder(strict=False).raw_decode(text, start.start())
        except (ValueError, RecursionError):
            return text
        return text[start.start() : end]
    return text


def parse_data(text: str) -> Any:
    """The JSON, or Python literal, in a completion; None where there is none. distilabel calls `eval` on it."""
    text = data_text(text)
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        pass
    # The parser behind literal_eval can be made to exhaust the stack, which would end the process.
    if len(text) > _LITERAL_LIMIT or sum(text.count(bracket) for bracket in "([{") > _NESTING_LIMIT:
        return None
    try:
        with warnings.catch_warnings():  # of what is no good Python: one a completion, in the engine's log
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def keeps_to(structure: Mapping[str, Any], text: str) -> bool:
    """Whether a whole completion has the form that was asked for.

    A server that does not know vLLM's parameters for it, as most do not, may leave them out without a word.

    Args:
        structure: vLLM's StructuredOutputsParams by name; of a grammar nothing is told here.
    """
    if (choice := structure.get("choice")) is not None:
        return text.strip() in [each.strip() for each in choice]
    if (regex := structure.get("regex")) is not None:
        with suppress(pa.ArrowInvalid):  # of RE2, which knows a little less, and which no expression keeps busy
            return any(pc.match_substring_regex(pa.array([text, text.strip()]), f"^(?s:{regex})$").to_pylist())
    if structure.keys() & {"json", "json_object"}:
        return parse_data(text) is not None
    return True


# A line of its own before what was asked for: "Sure! Here is the rewritten prompt:", "**#Rewritten Prompt#:**". It
# has to speak of the rewriting: "Here is a list of numbers:" may be how the text begins.
_LEAD = re.compile(
    r"\A[\s#*]*(?:(?:sure|certainly|of course|okay)\b[^\n]{0,150}|"
    r"here(?:'s|’s| is)\b[^\n]{0,100}\b(?:prompt|response|version|rewritten|improved|revised|more \w+)\b[^\n]{0,100}|"
    r"(?:the )?(?:rewritten|created|new|improved|evolved) (?:prompt|response|instruction|answer))"
    r"[\s#*]*[:：][ #*]*\n",
    re.IGNORECASE,
)
_ANNOUNCES = re.compile(
    r"\W*(?:sure|certainly|of course|okay|here|below|the following|output|"
    r"(?:user )?(?:queries|questions|instructions))\b.*[:：]$",
    re.IGNORECASE,
)


def without_lead(text: str) -> str:
    """A text without the line that only announces it."""
    rest = _LEAD.sub("", text, count=1).strip()
    return rest or text.strip()


# "1. ", "2) ", "Query 3: ", "**4.** ", "- ", "* " in front of an instruction; "1、", "2．", "③", and "4." before a
# character that is no letter of ASCII's, as Chinese and Japanese have it.
_BULLETS = "-*•●–"
_MARK = re.compile(
    r"(?:[*_]*(?:(?:user )?(?:query|question|instruction|task|prompt) *)?#?\d{1,3}[*_]* *[.):：][*_]*|"
    rf"[{_BULLETS}])(?:[ \t]+|$)|"
    r"[*_]*(?:(?:问题|問題|質問)? *\d{1,3} *(?:[、．）：](?!\d)|[.)](?=[\u2e80-\u9fff\uac00-\ud7a3]))|[①-⑳])"
    r"[*_]*[ \t]*",
    re.IGNORECASE,
)
_HEADING = re.compile(r"\A#{1,6}[ \t]+(?=\S)")
_QUOTED = (('"', '"'), ("“", "”"), ("「", "」"), ("«", "»"), ("**", "**"))


def listed_instructions(text: str) -> tuple[list[str], int]:
    """The instructions of a completion, one a line or one an item of a list, and the number of lines around them.

    Where most lines are items of a list, lines before and after it are no instructions; what is indented, and bullets
    after a colon, belong to the item above. An announcement ("Here are five queries:") is none either, nor is a heading
    without a number.
    """
    lines = [line.rstrip() for line in text.splitlines() if line.strip(" \t`") and "```" not in line[:6]]
    lines, headings = _without_headings(lines) if "```" not in text else (lines, 0)
    indents = [len(line.expandtabs()) - len(line.expandtabs().lstrip()) for line in lines]
    lines = [line.lstrip() for line in lines]
    marks = [_MARK.match(line) for line in lines]
    outermost = min((indent for indent, mark in zip(indents, marks, strict=True) if mark), default=0)
    inside = [indent > outermost for indent in indents]
    items = sum(mark is not None and not inner for mark, inner in zip(marks, inside, strict=True))
    listed = items > 0 and 2 * items >= len(lines) - sum(inside)
    found: list[str] = []
    left_out = 0
    for at, (line, mark, inner) in enumerate(zip(lines, marks, inside, strict=True)):
        after_colon = bool(found) and found[-1].partition("\n")[0].endswith((":", "："))
        below = inner or (after_colon and mark is not None and line[0] in _BULLETS)
        if listed and found and below:
            found[-1] += "\n" + line
        elif mark or not (listed or (at == 0 and len(lines) > 1 and _ANNOUNCES.match(line))):
            found.append(_bare(line[mark.end() if mark else 0 :]))
        else:
            left_out += 1
    return [text for text in found if text], left_out + headings


def _without_headings(lines: list[str]) -> tuple[list[str], int]:
    """Lines that are no headings, and the number of those that are; of lines that all are headings, what they say."""
    said = [_HEADING.sub("", line, count=1) for line in lines]
    plain = [line == text for line, text in zip(lines, said, strict=True)]
    kept = [text for text, is_plain in zip(said, plain, strict=True) if is_plain or not any(plain) or _MARK.match(text)]
    return kept, len(lines) - len(kept)


def whole_instructions(text: str) -> list[str]:
    """The instructions of a completion that was cut, up to the one in which it was."""
    return common(listed_instructions(text)[0], listed_instructions(continued(text))[0])


def _bare(text: str) -> str:
    text = text.strip()
    for opening, closing in _QUOTED:
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inner and opening not in inner:
            text = inner.strip()
    return text


_HEADER = re.compile(r"^[^\w\n]*output for text (\d{1,4})[^\w\n]*$", re.IGNORECASE | re.MULTILINE)
_FIELD = re.compile(r"^[^\w\n]*(type|rationale|rating)[*_ ]*[:：][*_]*", re.IGNORECASE | re.MULTILINE)


def judgements(text: str, fields: Sequence[str], number: int) -> list[list[str]] | None:
    """The fields of each judged text, in the order of the texts: UltraFeedback's answers.

    Args:
        fields: names in lower case, in the order that the prompt asks for.
        number: of texts.

    Returns:
        The values, a list a text; None where the answer has not just these for just these texts.
    """
    headers, marks = [*_HEADER.finditer(text)], [*_FIELD.finditer(text)]
    # The first text's header may be left out: the prompt ends where it would stand.
    if [int(header[1]) for header in headers] != [*range(number + 1 - len(headers), number + 1)]:
        return None
    if [mark[1].lower() for mark in marks] != [*fields] * number:
        return None
    stops = [*sorted(match.start() for match in (*headers, *marks)), len(text)]
    values = [text[mark.end() : next(stop for stop in stops if stop >= mark.end())] for mark in marks]
    # A value ends at a blank line: what follows is a remark on all of them.
    values = [re.split(r"\n\s*\n", value.strip())[0].strip() for value in values]
    return [values[at : at + len(fields)] for at in range(0, len(values), len(fields))]


def number_in(text: str, low: float, high: float) -> float | None:
    """The first number of a text, where it is on the scale."""
    found = re.search(r"-?\d+(?:\.\d+)?", text)
    return float(found[0]) if found and low <= float(found[0]) <= high else None


_SCORE_LINE = re.compile(r"^[^\w\n]*(\d{1,4})[^\w\n]*score[^\w\n]*(\d{1,4}(?:\.\d+)?)", re.IGNORECASE | re.MULTILINE)


def numbered_scores(text: str, number: int) -> list[float] | None:
    """The scores of `[1] Score: 3` lines by their numbers; None where one is missing or given twice.

    Not every model keeps to the prompt's scale of 1 to number + 1: a score is comparable to those beside it, whatever
    it is.
    """
    scores: dict[int, float] = {}
    for line in _SCORE_LINE.finditer(text):
        index, score = int(line[1]), float(line[2])
        if not (1 <= index <= number and scores.setdefault(index, score) == score):
            return None
    return [scores[index] for index in sorted(scores)] if len(scores) == number else None


_LAST_SCORE = re.compile(r"\bscore[^\w\n]*(\d+(?:\.\d+)?)", re.IGNORECASE)


def reason_and_score(text: str) -> tuple[str, float] | None:
    """The reasoning before the last `Score: 4`, and the score, 1 to 5."""
    found = [*_LAST_SCORE.finditer(text)]
    if not found or not 1 <= float(found[-1][1]) <= 5:
        return None
    before, after = text[: found[-1].start()], text[found[-1].end() :]
    return before.strip("#*_ \n") or after.strip("#*_ \n"), float(found[-1][1])


_FEEDBACK = re.compile(r"\A[\s#*]*feedback[ *]*[:：][ *]*", re.IGNORECASE)
_VERDICT = re.compile(r"[^\w\n]*(?:(?:score|response)[^\w\n]*)?([1-5]|[AB])(?: */ *5)?[^\w\n]*", re.IGNORECASE)


def feedback_and_result(text: str) -> tuple[str, str] | None:
    """Prometheus' feedback and what follows its last `[RESULT]`: 1 to 5, A or B."""
    feedback, mark, rest = text.rpartition("[RESULT]")
    lines = rest.strip("*:： \n").splitlines()
    verdict = _VERDICT.fullmatch(lines[0]) if mark and lines else None
    if verdict is None:
        return None
    return _FEEDBACK.sub("", feedback).strip().rstrip("#*_ \n"), verdict[1].upper()


_SOLUTION = re.compile(
    r"^[ \t#*{]*(?:corrected|worsened)[_ ]student[_ ]solution[}*` ]*(?::\**|$)", re.IGNORECASE | re.MULTILINE
)
# Without a line of its own: where the reasoning only speaks of it there is no colon.
_SOLUTION_INLINE = re.compile(
    r"\{(?:corrected|worsened)_student_solution\}[*` ]*:\**|\*\*(?:corrected|worsened) student solution:\*\*",
    re.IGNORECASE,
)
_ECHOED = re.compile(r"\{(?:task|teacher_reasoning|(?:corrected_|worsened_)?student_solution)\}", re.IGNORECASE)
_REASONING = re.compile(r"\A[^\w\n]*teacher[_ ]reasoning[^\w\n:]*:?[*} ]*", re.IGNORECASE)


def reasoning_and_solution(text: str) -> tuple[str, str] | None:
    """CLAIR's reasoning and the solution under its own heading; None where that goes on with the prompt's own text."""
    heading = _SOLUTION.search(text) or _SOLUTION_INLINE.search(text)
    if heading is None:
        return None
    solution = text[heading.end() :].strip()
    if _ECHOED.search(solution):
        return None
    return _REASONING.sub("", text[: heading.start()]).strip(), solution


_PAIR_HEADING = re.compile(
    r"^[^\w\n]*(positive|negative)(?: sentence)?[*_ ]*(?::[*_]*[ \t]*|$)\n?", re.IGNORECASE | re.MULTILINE
)


_POSITIVE = re.compile(r"## Positive(?=\s)")
_NEGATIVE = re.compile(r"(?<=\s)## Negative(?=\s)")


def sentence_pair(text: str) -> tuple[str | None, str | None]:
    """The sentences under the headings `## Positive` and `## Negative`, however those are written.

    distilabel's expression takes a second for a completion that goes on and on with line breaks.
    """
    text = _PAIR_HEADING.sub(lambda heading: f"## {heading[1].capitalize()}\n\n", text)
    if (begin := _POSITIVE.search(text)) is None:
        return None, None
    if (middle := _NEGATIVE.search(text, begin.end())) is None:
        return text[begin.end() :].strip(), None
    return text[begin.end() : middle.start()].strip(), text[middle.end() :].strip()


_STEP_LABEL = re.compile(r"^[#*_ \t]*step (\d{1,3})[*_ ]*[:.][*_]*[ \t]*", re.IGNORECASE | re.MULTILINE)
_ANSWER_LABEL = re.compile(
    r"^[#*_ \t]*(?:(?:so|thus|therefore|hence),? )?the (?:final )?answer is[*_ ]*:?[*_]*[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_STEPS = re.compile(r"Step \d+:.*?(?=Step \d+:|The answer is:|$)|The answer is:.*", re.DOTALL)
_RULE = re.compile(r"^[ \t]*-{3,}[ \t]*$", re.MULTILINE)
ANSWER = "The answer is:"


def solution_steps(text: str) -> list[str]:
    """The steps of a solution and, last, its answer, as Math-Shepherd has them."""
    text = _ANSWER_LABEL.sub(f"{ANSWER} ", _STEP_LABEL.sub(r"Step \1: ", text))
    steps = [_RULE.sub("", step).strip() for step in _STEPS.findall(text)]
    if steps and steps[-1].startswith(ANSWER):
        # What follows a blank line is a remark on the solution.
        steps[-1] = re.split(r"\n\s*\n", steps[-1])[0].rstrip("* ")
    return steps


def solutions_in(text: str, number: int, structured: bool) -> list[list[str]]:
    """The steps of at most `number` solutions of a completion, without those in which no step is found."""
    if structured:
        data = parse_data(text)
        listed = data.get("solutions") if isinstance(data, dict) else None
        items = [item.get("solution") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        texts = [item for item in items if isinstance(item, str)]
    else:
        # A rule inside of the only solution separates its steps.
        texts = _RULE.split(text) if number > 1 else [text]
    return [steps for steps in map(solution_steps, texts) if steps][:number]


def same_answer(one: str, other: str) -> bool:
    """Whether two solutions end in the same answer, whatever Markdown and dollars are set around it."""
    bare = [
        " ".join(text.removeprefix(ANSWER).strip("*`$ \n").rstrip(".").strip("*`$ \n").split()) for text in (one, other)
    ]
    return bare[0] == bare[1] != ""
