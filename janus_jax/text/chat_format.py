"""A template bound to a tokenizer: the token ids of training and the chat template of exports, from one declaration.

Where the tokenizer knows a mark of the template ([INST], <|im_start|>) as a control token, the mark becomes that token,
as it does when a server tokenizes the exported chat template. The same characters in a user's text stay text. For this
the marks are written as stand-ins of Unicode noncharacters, and a copy of the tokenizer knows those (`with_marks`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from janus_jax.errors import DataError
from janus_jax.text.template import Template
from janus_jax.text.tokenizer import Tokenizer, stand_in

_PROBES = ("because", "Yes", "The answer", "42", "é", "中文", "a b", "Hello there")
"""Responses that show whether the tokenizer puts a space before a text that it reads alone."""


class ChatFormat:
    """How one tokenizer reads the prompts and responses of one template.

    Args:
        boundary: how prompt and response are tokenized (data/boundary.py).
        bos: whether a prompt begins with the tokenizer's BOS, if it has one.
        marks: the marks to write as control tokens; None: all that the tokenizer knows. Data sets keep them, so that
            older ones, which spelled every mark as text, are read as they were built.
    """

    def __init__(
        self,
        template: Template,
        tokenizer: Tokenizer,
        *,
        boundary: Literal["separate", "joint"] = "separate",
        bos: bool = True,
        marks: Sequence[str] | None = None,
    ):
        ids = {mark: tokenizer.control_id(mark) for mark in template.marks}
        self.template, self.tokenizer = template, tokenizer
        self.boundary: Literal["separate", "joint"] = boundary
        self.marks = tuple(mark for mark in template.marks if ids[mark] is not None) if marks is None else tuple(marks)
        is_eos = template.end in self.marks and ids[template.end] == tokenizer.eos_id
        self.end = "" if is_eos else template.end
        """After a response: the template's `end`, unless that is the EOS token, which follows anyway."""
        first = next((mark for mark in self.marks if template.prompt_text("", "").startswith(mark)), None)
        self.bos = bos
        self.bos_id = None if not bos or (first and ids[first] == tokenizer.bos_id) else tokenizer.bos_id
        """None if prompts have no BOS, if the tokenizer has none, or if every prompt begins with it as a mark."""
        self._stand_ins: dict[str, str] = {}
        if self.marks or not tokenizer.ignores_control_tokens:  # then BOS and EOS are read where a server reads them
            ends = [tokenizer.token(i) for i in (self.bos_id, tokenizer.eos_id) if i is not None]
            known = [token for token in ends if token is not None and tokenizer.control_id(token) is not None]
            tokens = dict.fromkeys((*self.marks, *known))
            self._stand_ins = {token: stand_in(number) for number, token in enumerate(tokens)}
        self._reader = tokenizer.with_marks(list(self._stand_ins)) if self._stand_ins else tokenizer
        self._written = dataclasses.replace(
            template, **{name: self._with_stand_ins(getattr(template, name)) for name in _TEXTS}
        )
        self.space = self._space_before_response()
        """What the chat template writes between prompt and response: a space, or nothing."""

    def encode_prompt(self, system: str, instruction: str) -> list[int]:
        """Ids of the prompt, BOS first (if there is one)."""
        self._require_no_stand_in(system, instruction)
        return self._encode(self.bos_id, self._written.prompt_text(system, instruction))

    def encode_response(self, response: str) -> list[int]:
        """Ids of the response, EOS last."""
        self._require_no_stand_in(response)
        return self._encode(None, response + self._with_stand_ins(self.end), self.tokenizer.eos_id)

    def encode_whole(self, system: str, instruction: str, response: str, space: str = "") -> list[int]:
        """Ids of prompt, `space` and response as one text; BOS first, EOS last."""
        self._require_no_stand_in(system, instruction, response)
        text = self._written.prompt_text(system, instruction) + space + response + self._with_stand_ins(self.end)
        return self._encode(self.bos_id, text, self.tokenizer.eos_id)

    def text(self, system: str, instruction: str, response: str | None = None) -> str:
        """What the chat template writes between BOS and EOS: the prompt, or the conversation."""
        prompt = self.template.prompt_text(system, instruction)
        return prompt if response is None else prompt + self.space + response + self.end

    @property
    def chat_template(self) -> str:
        """Jinja over `messages`, `bos_token`, `eos_token`, for exported tokenizers."""
        template = self.template
        between = _output(_literal(template.between))
        system, user = (_around(form) for form in (template.system, template.user))
        lines = [
            "{%- if messages and messages[0]['role'] == 'system' -%}",
            "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}",
            "{%- else -%}",
            "{%- set system = '' -%}{%- set turns = messages -%}",
            "{%- endif -%}",
        ]
        if template.several_turns:
            lines += [
                "{%- if not turns or turns[0]['role'] != 'user' -%}",
                "{{- raise_exception('a conversation begins with system (optional) and user') -}}",
                "{%- endif -%}",
            ]
        else:
            lines += [
                "{%- if not turns or turns | length > 2 or turns[0]['role'] != 'user'"
                " or (turns | length == 2 and turns[1]['role'] != 'assistant') -%}",
                f"{{{{- raise_exception('template {template.name} has no marks between turns: write a conversation as "
                "the text of one user message; allowed: system (optional), user, assistant (optional)') -}}",
                "{%- endif -%}",
            ]
        lines += [
            *([] if self.bos_id is None else ["{{- bos_token -}}"]),
            "{%- for message in turns -%}",
            "{%- if message['role'] == 'user' -%}",
            _output(
                _literal(template.begin),
                f"({_joined(_literal(system[0]), 'system', _literal(system[1]))} if loop.first and system else '')",
                _literal(user[0]),
                "message['content']",
                _literal(user[1]),
            ),
            "{%- elif message['role'] == 'assistant' -%}",
            _output(_literal(template.generation + self.space), "message['content']", _literal(self.end), "eos_token"),
            *([f"{{%- if not loop.last -%}}{between}{{%- endif -%}}"] if template.between else []),
            "{%- else -%}",
            "{{- raise_exception('roles are system (first only), user and assistant') -}}",
            "{%- endif -%}",
            "{%- endfor -%}",
        ]
        if template.generation:
            lines += [f"{{%- if add_generation_prompt -%}}{_output(_literal(template.generation))}{{%- endif -%}}"]
        return "".join(lines)

    def _encode(self, bos_id: int | None, text: str, eos_id: int | None = None) -> list[int]:
        """Ids of a text between BOS and EOS, where they are given."""
        ids: list[list[int]] = [[], []]
        for place, number in enumerate((bos_id, eos_id)):
            token = None if number is None else self._stand_ins.get(self.tokenizer.token(number) or "")
            if token is not None:
                text = text + token if place else token + text
            elif number is not None:
                ids[place].append(number)
        return ids[0] + self._reader.encode(text) + ids[1]

    def _with_stand_ins(self, text: str) -> str:
        for mark in self.marks:
            text = text.replace(mark, self._stand_ins[mark])
        return text

    def _require_no_stand_in(self, *texts: str) -> None:
        for token, characters in self._stand_ins.items():
            if any(characters in text for text in texts):
                raise DataError(
                    f"a text holds the Unicode noncharacters {characters!a}, which stand for {token}; remove them"
                )

    def _space_before_response(self) -> str:
        if self.boundary == "joint":
            return ""
        prompt = self.encode_prompt("", "Why?")
        equal = {
            space: sum(
                self.encode_whole("", "Why?", text, space) == prompt + self.encode_response(text) for text in _PROBES
            )
            for space in ("", " ")
        }
        return " " if equal[" "] > equal[""] else ""


_TEXTS = ("begin", "system", "user", "generation", "end")


def _around(form: str) -> tuple[str, str]:
    """The texts before and after a form's placeholder."""
    before, _, rest = form.partition("{")
    return before, rest.partition("}")[2]


def _literal(text: str) -> str:
    """A Jinja string; empty for no text."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'" if text else ""


def _joined(*terms: str) -> str:
    return " + ".join(term for term in terms if term)


def _output(*terms: str) -> str:
    return f"{{{{- {_joined(*terms)} -}}}}"
