"""Arena-Hard-Auto: one prompt, one answer; the judge compares it with that of a baseline, twice."""

import re
from collections.abc import Iterable
from typing import Any

from janus_jax.data.columns import Columns, text
from janus_jax.evaluation.official.questions import Question, required_text
from janus_jax.evaluation.official.tool import Answered, Tool, answer_id, lines

_LABELS = ("cluster", "subcategory")  # of v0.1 and of v2.0
_CODE = re.compile(r"```([^`]*)```")


def _read(columns: Columns, place: str) -> Question:
    own, prompt = required_text(columns, "uid"), required_text(columns, "prompt")
    for name in _LABELS:
        if columns.has(name):
            text(columns[name], name)
    return Question(own, (prompt,), required_text(columns, "category"), place=place)


def style(answer: str, tokens: int) -> dict[str, Any]:
    """What style control compares, in the order in which it reads it: the counts of Arena-Hard-Auto's own script.

    Args:
        tokens: of the answer.
    """
    for block in _CODE.findall(answer):
        answer = answer.replace(block, "")

    def count(pattern: str) -> int:
        return len(re.findall(pattern, answer, re.MULTILINE))

    return {
        "token_len": tokens,
        "header_count": {f"h{level}": count(rf"^#{{{level}}}\s") for level in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }


def _write(name: str, answered: Iterable[Answered]) -> str:
    return lines(
        {
            "uid": one.question.id,
            "ans_id": answer_id(name, one),
            "model": name,
            "messages": [
                {"role": "user", "content": one.question.turns[0]},
                {"role": "assistant", "content": {"answer": one.answers[0]}},
            ],
            "tstamp": one.time,
            "metadata": style(one.answers[0], one.tokens[0]),
        }
        for one in answered
    )


ARENA_HARD = Tool(
    "arena_hard",
    "Arena-Hard-Auto v2.0",
    _read,
    lambda out, name: out / "model_answer" / f"{name}.jsonl",
    _write,
    references=None,
    same=_LABELS,
    turns=1,
    # Those of its configuration of endpoints.
    temperature=0.0,
    max_new_tokens=4096,
)
