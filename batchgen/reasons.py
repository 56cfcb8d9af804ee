"""What the codes mean that a run counts: why rows were rejected, and what happened to others on the way."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# A code may go on behind a colon, with the name of what it is about.
REASONS: Mapping[str, str] = MappingProxyType(
    {
        "content_filter": "the server's filter cut the answer short",
        "duplicate": "ended at drop_duplicates: another row had the same text",
        "empty_completion": "the model wrote nothing, or nothing but thoughts or an announcement",
        "empty_input": "the texts that the step reads are empty",
        "engine_crash": "engines died or hung whenever they worked on it, twice on it alone",
        "engine_error": "vLLM failed at it three times",
        "equal_texts": "two of the texts that are to be told apart are the same",
        "filtered": "ended at a filter, for the column behind the colon; or a step of your own made no row of it",
        "invalid_conversation": "a message lacks its role or its content",
        "invalid_input": "a list that the step reads has not as many items as it needs",
        "invalid_output": "the completion is not of the form that the task reads",
        "invalid_request": "vLLM refuses what the row asks for",
        "invalid_structured_output": "what the row asks for is neither a JSON schema nor a regex nor a choice",
        "invalid_text": "half a surrogate pair, which no file can hold",
        "last_message_is_not_the_user_s": "no question at its end (`regenerate: true` answers the last one anew)",
        "missing_input": "null in a column that the step needs",
        "near_duplicate": "ended at drop_duplicates: another row had nearly the same text",
        "needs_chat_template": "more than one question, such as a system prompt, and the model has no chat template",
        "no_answer": "the conversation does not end with an answer, which is what is scored",
        "no_good_answer": "no evolution has an answer that passes WizardLM's rules, nor has the instruction itself",
        "no_instructions": "the completion has no instruction in it",
        "no_preference": "no answer is rated higher than another, or not by min_difference, or all are the same",
        "no_question": "the conversation has no message of the user's, or a blank one",
        "no_score": "the reward model gave no number",
        "nothing_to_explode": "the list that is spread over rows is empty",
        "prompt_too_long": "the prompt leaves no room for an answer in max_model_len, or what is scored is longer",
        "refused_by_server": "the server refuses it, or fails at it while it answers others",
        "repetitive_completion": "the model repeated itself, and repetition_detection ended it",
        "structure_ignored": "the server did not keep to structured_outputs, which it may not know",
        "task_error": "an exception in the task's code; its type, and the place in code of your own",
        "truncated": "a text was cut at max_tokens before the row's last call",
        "truncated_instruction": "a user's turn was cut at max_tokens",
        "truncated_output": "cut at max_tokens, so that the task could not read it",
        "truncated_reasoning": "cut at max_tokens while the model was still thinking",
        "unequal_lists": "the lists that are spread over rows together have not the same number of items",
        "unknown_label": "a label that is none of available_labels",
    }
)
# Why the merger leaves out rows that are ok.
DROPPED: Mapping[str, str] = MappingProxyType(
    {
        "contaminated": "has a text in common with the benchmark behind the colon",
        "empty": "a message of the conversation is blank, or there is none",
        "exact duplicate": "the same text as an earlier row's",
        "filtered": "does not meet the condition on the column behind the colon",
        "near duplicate": "nearly the same text as an earlier row's",
        "over the limit": "merge.limit is reached by rows with a higher number in merge.prefer, or by earlier ones",
        "truncated": "a text was cut at max_tokens",
    }
)
NOTES: Mapping[str, str] = MappingProxyType(
    {
        "conversation_shortened": "ended before the exchange that was cut or failed (keep_shorter)",
        "eliminated_answer_refusal": "an evolution was dropped: its answer is a refusal",
        "eliminated_answer_says_nothing": "an evolution was dropped: its answer is stop words only",
        "eliminated_copied_prompt": "an evolution was dropped: it has words of the rewriting prompt",
        "eliminated_no_gain": "an evolution was dropped: it has no new word",
        "eliminated_refusal": "an evolution was dropped: it is a refusal",
        "eliminated_says_nothing": "an evolution was dropped: it is stop words only",
        "eliminated_truncated": "an evolution was dropped: it was cut at max_tokens",
        "generation_failed": "one of several generations is left out of the group, for the reason behind the colon",
        "instruction_missing": "fewer instructions than num_instructions",
        "instruction_repeated": "an instruction was in its list twice",
        "line_left_out": "a line around a list of instructions",
        "object_left_out": "an object in a list of JSON lacks a key, or holds something else there",
        "reasoning_dropped": "the model's thoughts are left out",
        "solution_missing": "fewer solutions than M",
        "truncated": "a good row with a text that was cut at max_tokens; the merger drops it by default",
        "truncated_instruction": "an instruction that was cut is left out of its list",
    }
)


def meaning(code: str, of: Mapping[str, str]) -> str:
    """What a code means; "" where it is one that this version does not know."""
    return of.get(code.partition(":")[0], "")


def most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Codes with how often each came, the most frequent first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def explained(counts: Mapping[str, int], of: Mapping[str, str]) -> list[str]:
    """A line for every code, the most frequent first: how often it came, and what it means."""
    return [
        f"{code} {count:,}" + (f": {said}" if (said := meaning(code, of)) else "") for code, count in most_first(counts)
    ]
