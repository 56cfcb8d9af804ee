"""Languages of texts: what is clearly in another one is found, and what could be in any is left alone."""

from __future__ import annotations

import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from batchgen.language import _COMMON, LANGUAGES, are_in, language_of

SAID = {
    "ar": ["ما هي عاصمة فرنسا؟", "اكتب قصيدة عن المطر."],
    "de": ["Was ist die Hauptstadt von Frankreich?", "Schreibe ein Gedicht über den Regen.", "Ja, das ist richtig."],
    "en": ["What is the capital of France?", "Write a haiku about rain.", "Sure! That is the right answer."],
    "es": ["¿Cuál es la capital de Francia?", "Escribe un poema sobre la lluvia."],
    "fr": ["Quelle est la capitale de l'Allemagne ?", "Écris un poème sur la pluie."],
    "hi": ["फ्रांस की राजधानी क्या है?", "बारिश पर एक कविता लिखो।"],
    "id": ["Apa ibu kota Prancis?", "Tulislah puisi tentang hujan."],
    "it": ["Qual è la capitale della Francia?", "Scrivi una poesia sulla pioggia."],
    "ja": ["フランスの首都はどこですか？", "雨についての詩を書いてください。"],
    "ko": ["프랑스의 수도는 어디입니까?", "비에 대한 시를 써 주세요."],
    "nl": ["Wat is de hoofdstad van Frankrijk?", "Schrijf een gedicht over de regen."],
    "pt": ["Qual é a capital da França?", "Escreva um poema sobre a chuva."],
    "ru": ["Какая столица Франции?", "Объясни второй закон Ньютона."],
    "tr": ["Fransa'nın başkenti neresidir?", "Yağmur hakkında bir şiir yaz."],
    "vi": ["Thủ đô của Pháp là gì?", "Viết một bài thơ về mưa."],
    "zh": ["法国的首都是哪里？", "写一首关于雨的诗。"],
}
# In no language.
NEUTRAL = [
    "",
    " \n",
    "42",
    "2 + 2 = 4",
    "Paris",
    "😀👍",
    '{"a": 1}',
    "x" * 3000,
    "\\[ \\frac{3x+7}{2} = 11 \\]",
    "\ud800",
]
# Of a few words that English has.
SHORT = ["Yes.", "def f(x): return x ** 2", "Solve for x: 3x + 7 = 22", "SELECT * FROM users WHERE id = 3;"]
CODE = "```python\n" + "def double(number):\n    return 2 * number  # every number has a double\n" * 20 + "```"


@pytest.mark.parametrize("code", SAID)
def test_what_is_in_another_language_is_found_and_what_is_in_ones_own_is_not(code: str):
    for language, texts in SAID.items():
        assert are_in(texts, [code]).tolist() == [language == code] * len(texts), language


def test_one_of_several_languages_is_enough():
    assert are_in(SAID["de"] + SAID["en"] + SAID["fr"], ["fr", "de"]).tolist() == [True] * 3 + [False] * 3 + [True] * 2


@pytest.mark.parametrize("code", ["en", "de", "zh", "ru"])
def test_what_could_be_in_any_language_stays(code: str):
    assert are_in(NEUTRAL, [code]).all()
    assert are_in(SHORT, ["en"]).all()


@pytest.mark.parametrize("text", NEUTRAL + SHORT)
def test_what_is_clearly_in_no_language_has_none(text: str):
    assert language_of(text) is None


def test_a_text_has_the_language_that_it_is_clearly_in():
    found = {code: {language_of(text) for text in texts} for code, texts in SAID.items()}
    # Short texts may be as good as in a neighbour's.
    assert all(languages <= {code, None} for code, languages in found.items())
    assert sum(languages == {code} for code, languages in found.items()) >= 12


@pytest.mark.parametrize("place", [0, 10, 20])
def test_a_model_that_slips_into_another_language_is_found_where_it_does(place: int):
    english = ["The capital of France is Paris, which lies on the river Seine. "] * 20
    slipped = english[:place] + ["法国的首都是巴黎，位于塞纳河畔，是欧洲最重要的城市之一。"] * 12 + english[place:]
    assert are_in(["".join(english), "".join(slipped)], ["en"]).tolist() == [True, False]


def test_code_has_no_language():
    german = "Diese Funktion verdoppelt eine Zahl, die ihr übergeben wird:\n\n" + CODE + "\n\nProbieren Sie es aus!"
    unclosed = german[: german.rindex("```")]
    named = "Die Funktion `return the number of words in this sentence` gibt eine Zahl zurück."
    assert are_in([german, CODE, unclosed, named], ["de"]).all()
    assert are_in([german, named], ["en"]).tolist() == [False, False]
    assert [language_of(text) for text in (german, CODE)] == ["de", None]


def test_a_language_that_is_not_common_can_be_asked_for():
    nynorsk = "Eg veit ikkje kva ho heiter, men ho kjem ikkje frå Noreg."
    assert "nn" not in _COMMON
    assert are_in([nynorsk, *SAID["de"]], ["nn"]).tolist() == [True, False, False, False]


def test_the_languages_are_those_of_the_model():
    labels = LanguageIdentifier.from_model_file(MODEL_FILE).labels
    assert sorted(LANGUAGES) == sorted(set(labels) - {"zxx"})
    assert set(_COMMON) < set(LANGUAGES)
