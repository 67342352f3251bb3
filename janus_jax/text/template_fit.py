"""Whether a tokenizer knows another template than the chosen one, by its own chat template and its control tokens."""

from typing import Any

from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import TEMPLATES, Template
from janus_jax.text.tokenizer import Tokenizer

_TEXTS = ("Be brief.", "Why?")
_SYSTEM, _USER = ({"role": role, "content": text} for role, text in zip(("system", "user"), _TEXTS, strict=True))
_SHOWN = 80


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


def _own_text(tokenizer: Tokenizer) -> str:
    """A prompt as the tokenizer's own chat template writes it; empty without one, or if it fails."""
    if not tokenizer.chat_template:
        return ""
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id}
    names: dict[str, Any] = {f"{name}_token": "" if i is None else tokenizer.token(i) for name, i in special.items()}
    for messages in ([_SYSTEM, _USER], [_USER]):  # some refuse a system message
        try:
            rendered, _ = render_jinja_template(
                [messages], chat_template=tokenizer.chat_template, add_generation_prompt=True, **names
            )
            return rendered[0]
        except Exception:  # of Jinja, or of the template itself
            continue
    return ""
