"""The prompts of a bench, and answers to them from a model behind an endpoint, such as vLLM with an export."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError
from janus_jax.evaluation.bench.rows import OTHER_SYSTEM, BenchRow
from janus_jax.evaluation.official.systems import System
from janus_jax.generation.progress import Progress
from janus_jax.generation.prompt_file import PromptRow
from janus_jax.storage import local
from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_requests import Reply


def prompt_row(row: BenchRow, system: System | None) -> PromptRow:
    """What a model is asked.

    Args:
        system: its system message in place of the row's own; None: the row's.
    """
    content = row.system if system is None else system.text
    first = [{"role": "system", "content": content}] if content.strip() else []
    rest = {"id": row.id} | ({} if system is None else {OTHER_SYSTEM: system.text or "none"})
    return PromptRow((*first, {"role": "user", "content": row.prompt}), rest, row.place)


def answer_through(
    endpoint: Endpoint, rows: Sequence[PromptRow], out: Path, *, tell: Callable[[str], None], **options: Any
) -> None:
    """Writes a file of answers as `janus generate` does, when all rows have one. Replies are in the journal until then.

    Raises:
        ConfigError: a row has no answer, or as `Endpoint.complete`.
        StorageError: as `Endpoint.complete`.
    """
    answers: dict[int, Reply] = {}
    failures: list[Reply] = []
    progress = Progress(len(rows), "prompts", "tokens", tell)
    for reply in endpoint.complete([row.messages for row in rows], **options):
        if reply.text is None:
            failures.append(reply)
        else:
            answers[reply.place] = reply
        progress(len(answers), endpoint.usage.completion_tokens)
    if failures:
        first = min(failures)
        count = f"{len(failures):,} of {len(rows):,}"
        what = f"{count} rows have no answer, first {rows[first.place].place}: {first.failure}"
        raise ConfigError(f"{what}; the others are kept, and the same command asks for these again")
    lines = []
    for number, row in enumerate(rows):
        reply = answers[number]
        answer = {"text": reply.text, "finish_reason": reply.finish_reason, "tokens": reply.completion_tokens}
        counts = {"prompt_tokens": reply.prompt_tokens, "answers": [answer]}
        lines.append(json.dumps({**row.rest, "messages": list(row.messages), **counts}))
    local.write_whole(out, "".join(f"{line}\n" for line in lines))
