"""A step whose model is a reward model: one that writes nothing, and says by a number how good an answer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from batchgen.errors import RowRejected
from batchgen.tasks.spec import Conversation, Row, TaskParameters, TaskSpec


class RewardScorer(TaskParameters):
    """Has a reward model score answers."""

    of: Literal["generation", "generations", "messages"] = Field(
        "generation",
        description="what is scored: the answer in `generation`, each of those in `generations`, or the last one of a "
        "conversation in `messages`",
    )


def _inputs(parameters: RewardScorer) -> Mapping[str, str]:
    if parameters.of == "messages":
        return {"messages": "conversation"}
    kind = "list[text]" if parameters.of == "generations" else "text"
    return {"instruction": "text", parameters.of: kind, "system_prompt": "text?"}


def _outputs(parameters: RewardScorer) -> Mapping[str, str]:
    return {"rewards": "list[number]"} if parameters.of == "generations" else {"reward": "number"}


def _conversations(row: Row, parameters: RewardScorer) -> Sequence[Conversation]:
    if parameters.of == "messages":
        if not row["messages"] or row["messages"][-1]["role"] != "assistant":
            raise RowRejected("no_answer")
        return [row["messages"]]
    system_prompt = row.get("system_prompt") or ""
    system = [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
    asked = [*system, {"role": "user", "content": row["instruction"]}]
    answers = row["generations"] if parameters.of == "generations" else [row["generation"]]
    return [[*asked, {"role": "assistant", "content": answer}] for answer in answers]


def _finish(row: Row, parameters: RewardScorer, notes: list[str]) -> Row:
    return {"rewards": row["scores"]} if parameters.of == "generations" else {"reward": row["scores"][0]}


REWARDS: Mapping[str, TaskSpec] = {
    "reward_scorer": TaskSpec(
        summary="scores answers with a reward model, on vLLM",
        distilabel=None,
        parameters=RewardScorer,
        inputs=_inputs,
        outputs=_outputs,
        calls="answers, at once",
        finish=_finish,
        scored=_conversations,
        single_call=False,
    ),
}
