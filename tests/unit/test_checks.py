"""The edges of what a job may say."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_core import PydanticCustomError

from batchgen.checks import check_engine, check_lengths, check_sampling, check_transformers, unknown

EDGES = [
    ("temperature", 0.0, -0.001),
    ("temperature", 2.0, 2.001),
    ("top_p", 1e-9, 0.0),
    ("top_p", 1.0, 1.001),
    ("min_p", 0.0, -0.001),
    ("min_p", 1.0, 1.001),
    ("max_tokens", 1, 0),
    ("n", 1, 0),
    ("min_tokens", 0, -1),
    ("top_k", -1, -2),
    ("presence_penalty", -2.0, -2.001),
    ("presence_penalty", 2.0, 2.001),
    ("frequency_penalty", -2.0, -2.001),
    ("frequency_penalty", 2.0, 2.001),
    ("repetition_penalty", 1e-9, 0.0),
    ("repetition_penalty", 1e300, float("inf")),
    ("thinking_token_budget", -1, -2),
    ("repetition_detection", {"max_pattern_size": 1, "min_count": 2}, {"max_pattern_size": 1, "min_count": 1}),
    (
        "repetition_detection",
        {"max_pattern_size": 3, "min_count": 2, "min_pattern_size": 3},
        {"max_pattern_size": 2, "min_count": 2, "min_pattern_size": 3},
    ),
    (
        "repetition_detection",
        {"max_pattern_size": 3, "min_count": 2, "min_pattern_size": 0},
        {"max_pattern_size": 3, "min_count": 2, "min_pattern_size": -1},
    ),
    ("logit_bias", {"1": -1.5, 2: 3}, {"1": True}),
    ("structured_outputs", {"choice": ["a"]}, {"choice": ["a", 1]}),
    ("structured_outputs", {"json": {"type": "object"}}, {"json": "[]"}),
    ("structured_outputs", {"regex": "{"}, {"json": "{"}),
    ("stop", ["a"], ["a", ""]),
    ("stop", None, ""),
    ("stop_token_ids", [0], [True]),
]


@pytest.mark.parametrize(("name", "legal", "illegal"), EDGES)
def test_the_last_legal_value_of_a_sampling_parameter_and_the_first_that_is_not(name: str, legal: Any, illegal: Any):
    check_sampling({name: legal})
    with pytest.raises(PydanticCustomError) as refused:
        check_sampling({name: illegal})
    assert (refused.value.context or {})["path"][0] == name


@pytest.mark.engine
def test_vllm_draws_its_lines_where_we_do():
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    for name, legal, illegal in EDGES:
        if isinstance(legal, int | float):
            SamplingParams(**{name: legal})
            with pytest.raises(VLLMValidationError):
                SamplingParams(**{name: illegal})


@pytest.mark.parametrize(
    ("name", "legal", "illegal"),
    [
        ("gpu_memory_utilization", 1, 1.001),
        ("gpu_memory_utilization", 0.001, 0),
        ("max_model_len", -1, -2),
        ("tensor_parallel_size", 1, 0),
        ("watermark", 0.0, 1.0),
        ("cpu_offload_gb", 0, -0.1),
    ],
)
def test_the_last_legal_value_of_an_engine_argument_and_the_first_that_is_not(name: str, legal: Any, illegal: Any):
    check_engine({name: legal})
    with pytest.raises(PydanticCustomError) as refused:
        check_engine({name: illegal})
    assert (refused.value.context or {})["path"] == ("engine", name)


def test_a_completion_may_end_before_it_has_to():
    for sampling in ({"min_tokens": 5, "max_tokens": 5}, {"min_tokens": 5}, {"min_tokens": 5, "max_tokens": None}, {}):
        check_lengths(sampling, ("steps", 0))
    with pytest.raises(PydanticCustomError, match=r"min_tokens \(6\) is more than max_tokens \(5\)"):
        check_lengths({"min_tokens": 6, "max_tokens": 5}, ("steps", 0))


def test_transformers_is_asked_for_nothing_that_it_would_ignore():
    check_transformers("text_generation", False, {"temperature": 1.0}, ())
    for structured, sampling, said in ((True, {}, "asks for structured outputs"), (False, {"min_p": 1, "n": 2}, "'")):
        with pytest.raises(PydanticCustomError, match=said):
            check_transformers("text_generation", structured, sampling, ())


def test_of_a_long_list_the_near_names_are_told_or_else_all():
    few, many = ["alpha", "beta"], [f"name_{index}" for index in range(41)]
    assert str(unknown("key", "alpah", few)) == "unknown key 'alpah'; did you mean 'alpha'? legal: alpha, beta"
    assert str(unknown("key", "zzz", few)) == "unknown key 'zzz'; legal: alpha, beta"
    assert str(unknown("key", "name_0", many[:40])).endswith("? legal: " + ", ".join(sorted(many[:40])))
    assert str(unknown("key", "nam_40", many)).startswith("unknown key 'nam_40'; did you mean 'name_40' or 'name_")
    assert "legal" not in str(unknown("key", "nam_40", many))
    assert str(unknown("key", "zzz", many)).endswith("legal: " + ", ".join(sorted(many)))
    assert str(unknown("model", "judge", [])) == "unknown model 'judge'; none is defined"
