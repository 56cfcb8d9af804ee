"""Which language a text is in, of the about sixty that most texts are in.

py3langid (https://github.com/adbar/py3langid) scores a text's bytes by naive Bayes. A single label is of little use for
what a dataset is made of: of "42", of a line of code, of "Paris" all languages are about as likely. So what counts is
how many times as likely one is as another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Every code that py3langid's model has, so that a job is checked without loading it; a test keeps the list true.
LANGUAGES = tuple(
    """
    ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv fy
    ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb
    lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk
    sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu
    """.split()
)
# What a text is taken for where nothing else is asked for. Rare ones would win every short text of mixed words, and
# those that are written much like a larger one (Bosnian, Nynorsk, Venetian, Wu) would take its texts.
_COMMON = tuple(
    """
    af am ar az be bg bn ca cs cy da de el en es et eu fa fi fr gl gu he hi hr hu hy id is it ja ka kk km kn ko ky lo
    lt lv mk ml mn mr my ne nl no pa pl ps pt ro ru si sk sl so sq sr sv sw ta te tg th tl tr uk ur uz vi zh
    """.split()
)
# By the messages of GTK, coreutils and dpkg in some sixty languages, most of them shorter than a line: 5 finds more of
# what is in another language than English, and takes more of each language for another.
_TIMES = 10
# Characters that are looked at together, and how often in a text: at its beginning, in its middle and at its end, as a
# model that slips into another language may do so on the way. All of a long text would take seconds for a thousand.
_WINDOW = 250
_WINDOWS = 3
# In Markdown; its words are English in every language.
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)


def are_in(texts: Sequence[str], languages: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which texts are in one of some languages, [len(texts)]: all but those with a part that is clearly in another one.

    Args:
        languages: some of `LANGUAGES`.
    """
    identifier = _identifier(tuple(sorted({*_COMMON, *languages})))
    wanted = frozenset(languages)
    return np.array([all(_fits(identifier, part, wanted) for part in _parts(text)) for text in texts], bool)


def language_of(text: str) -> str | None:
    """The language that a text's beginning is clearly in, of the common ones; None if it is clearly in none."""
    (first, likely), (_, next_likely) = _identifier(_COMMON).rank(next(_parts(text)))[:2]
    return first if likely >= _TIMES * next_likely else None


def _fits(identifier: LanguageIdentifier, text: str, wanted: frozenset[str]) -> bool:
    likely = identifier.rank(text)
    best = next(chance for language, chance in likely if language in wanted)
    return bool(likely[0][1] < _TIMES * best)


def _parts(text: str) -> Iterator[str]:
    """A text without code, in parts of about one length, or, where it is long, some from all over it."""
    text = _CODE.sub(" ", text)
    parts = min(_WINDOWS, max(1, -(-len(text) // _WINDOW)))
    size = min(_WINDOW, -(-len(text) // parts))
    for part in range(parts):
        start = (len(text) - size) * part // max(1, parts - 1)
        yield text[start : start + size]


@lru_cache(maxsize=4)
def _identifier(languages: tuple[str, ...]) -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(languages)
    # It adds up rows of this table, which is by columns now, and of half precision: twice the time, for the same sums.
    identifier.nb_ptc = np.ascontiguousarray(identifier.nb_ptc, np.float32)
    return identifier
