"""Whether a tokenizer knows another template than the chosen one, by its own chat template and its control tokens."""

from typing import Any

from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import TEMPLATES, Template
from janus_jax.text.tokenizer import Tokenizer

_TEXTS = ("Be brief.", "Why?")
_SYSTEM, _USER = ({"role": role, "content": text} for role, text in zip(("system", "user"), _TEXTS, strict=True))
_ANSWER = {"role": "assistant", "content": "So."}
_CONVERSATIONS = ([_USER], [_SYSTEM, _USER], [_USER, _ANSWER], [_SYSTEM, _USER, _ANSWER], [_USER, _ANSWER, _USER])
_SHOWN, _BEFORE = 80, 20
"""Characters of a rendered text, and of those before a difference, that a note shows."""


def template_note(chat: ChatFormat) -> str:
    """Why the template may be the wrong one, and what to do, in one line; empty if nothing points at that."""
    template, tokenizer = chat.template, chat.tokenizer
    own = _own_text(tokenizer)
    if unused := [mark for mark in template.marks if mark not in chat.marks and tokenizer.control_id(mark) is not None]:
        return f"{', '.join(unused)} became text, but the tokenizer has control tokens for that; build the data again"

    def writes(one: Template) -> bool:
        return all(mark in own for mark in one.marks) if one.marks else own.endswith(one.prompt_text(*_TEXTS))

    def has(one: Template) -> bool:
        return bool(one.marks) and all(tokenizer.control_id(mark) is not None for mark in one.marks)

    for sign, points_at in (("own chat template is that", writes), ("control tokens are those", has)):
        fitting = [one for one in TEMPLATES.values() if points_at(one)]
        if template in fitting:
            return ""
        if fitting:
            marks, name = "".join(f" ({', '.join(one.marks)})" for one in fitting[:1] if one.marks), fitting[0].name
            return (
                f"template {template.name} may be the wrong one, because the tokenizer's {sign} of {name}{marks}; if "
                f"your model was trained with {name}, build with --template {name}"
            )
    if own and template.marks:
        return (
            f"{', '.join(template.marks)} of template {template.name} became text, and the tokenizer's own chat "
            f"template writes {own[:_SHOWN]!r}, which is none of {', '.join(TEMPLATES)}; a model that was trained with "
            f"that must learn {template.name} anew, so start from a base model and its tokenizer"
        )
    return ""


def replaced_template(chat: ChatFormat, own: str, whose: str) -> str:
    """What the template writes in place of another chat template, in one line; empty if both write the same.

    Conversations that the other one refuses are not compared.

    Args:
        own: Jinja text of the other chat template; empty for none.
        whose: what it belongs to, for the line.
    """
    if not own or own == chat.chat_template:
        return ""
    for messages in _CONVERSATIONS:
        theirs, ours = (_rendered(chat.tokenizer, template, messages) for template in (own, chat.chat_template))
        if theirs is None or ours == theirs:
            continue
        writes = "writes no such conversation" if ours is None else f"writes {_from_difference(ours, theirs)}"
        return (
            f"template {chat.template.name} replaces the chat template of {whose} in training and in exports: it "
            f"{writes}, where that one writes {_from_difference(theirs, ours or '')}"
        )
    return ""


def _own_text(tokenizer: Tokenizer) -> str:
    """A prompt as the tokenizer's own chat template writes it; empty without one, or if it fails."""
    if not tokenizer.chat_template:
        return ""
    prompts = ([_SYSTEM, _USER], [_USER])  # some refuse a system message
    return next(filter(None, (_rendered(tokenizer, tokenizer.chat_template, prompt) for prompt in prompts)), "")


def _rendered(tokenizer: Tokenizer, template: str, messages: list[dict[str, str]]) -> str | None:
    """A conversation, or a prompt that ends where the model begins; None if the chat template fails.

    White space after the last message of a conversation is left out: no model reads it.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id}
    names: dict[str, Any] = {f"{name}_token": "" if i is None else tokenizer.token(i) for name, i in special.items()}
    prompt = messages[-1]["role"] == "user"
    try:
        rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=prompt, **names)
    except Exception:  # of Jinja, or of the template itself
        return None
    return rendered[0] if prompt else rendered[0].rstrip()


def _from_difference(text: str, other: str) -> str:
    """The part of a text in which it differs from another one, quoted."""
    shorter = min(len(text), len(other))
    same = next((i for i in range(shorter) if text[i] != other[i]), shorter)
    start = max(0, same - _BEFORE) if same + _BEFORE > _SHOWN else 0
    end = start + _SHOWN
    return f"{'...' if start else ''}{text[start:end]!r}{'...' if end < len(text) else ''}"
