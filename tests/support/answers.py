"""Files of answers, as `janus generate` writes them."""

from typing import Any


def answer_row(
    text: str | list[str], prompt: str = "Why?", system: str = "", finish: str = "stop", **rest: Any
) -> dict[str, Any]:
    message = [{"role": "system", "content": system}] if system else []
    texts = [text] if isinstance(text, str) else text
    return {
        **rest,
        "messages": [*message, {"role": "user", "content": prompt}],
        "prompt_tokens": 5,
        "answers": [{"text": one, "finish_reason": finish, "tokens": len(one.split())} for one in texts],
    }
