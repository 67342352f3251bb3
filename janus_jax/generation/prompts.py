"""Conversations as token ids, as the model learnt to read them.

A model that training made reads prompts as its data wrote them. Any other reads them by its own chat template: the
control tokens that the template itself writes become ids, while the same characters in a message stay text.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.errors import ConversionError, DataError, first_line
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.hf_files import declared_token
from janus_jax.text.hf_tokenizer import stand_in
from janus_jax.text.template import TEMPLATES, get_template
from janus_jax.text.tokenizer import Tokenizer, load_tokenizer

ROLES = ("system", "user", "assistant")
_MOST_MARKS = 24  # there are few noncharacters to stand for them
_PROBE = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]

Messages = Sequence[Mapping[str, str]]
"""Each with `role` and `content`; an optional system message first, then user and assistant in turn."""


class PromptFormat:
    """How one model reads conversations.

    Args:
        chat: how training wrote them; None: `template` alone counts.
        template: Jinja text over `messages`.
        name: what errors call the template.
        end_ids: further ids that end a text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        *,
        name: str,
        chat: ChatFormat | None = None,
        end_ids: Iterable[int] = (),
    ):
        self.tokenizer, self.chat, self._name = tokenizer, chat, name
        self._prompt: tuple[tuple[tuple[str, str], ...], list[int]] = ((), [])
        self._special = {f"{kind}_token": _token(tokenizer, kind) for kind in ("bos", "eos")}
        known = tokenizer.control_tokens() if chat is None else [*chat.marks, *self._special.values()]
        marks = [token for token in dict.fromkeys(known) if token]
        marks = [token for token in marks if token in template or token in self._special.values()]
        if len(marks) > _MOST_MARKS:
            raise ConversionError(name, f"writes {len(marks)} control tokens; allowed: at most {_MOST_MARKS}")
        self._stand_ins = {mark: stand_in(number) for number, mark in enumerate(marks)}
        self._reader = tokenizer.with_marks(marks)
        self.template, self._written = template, self._with_stand_ins(template)
        self._known = tokenizer.control_tokens()
        self.stop_ids = tuple(dict.fromkeys([tokenizer.eos_id, *end_ids, *self._end_of_answer()]))
        """Ids that end an answer."""

    def encode(self, messages: Messages) -> list[int]:
        """Ids of a conversation up to where the model begins to write.

        Raises:
            DataError: roles are in another order, or the template refuses the conversation.
        """
        _check(messages)
        if (texts := self._exchange(messages)) is not None and self.chat is not None:
            return self.chat.encode_prompt(*texts)
        return self._encode(messages)

    def encode_answer(self, messages: Messages, answer: str) -> tuple[list[int], list[int]]:
        """Ids of a conversation and of an answer to it, with all that the template writes after it.

        The first are those of `encode`, or fewer where the tokenizer merges the end of the prompt with the answer.

        Raises:
            DataError: as `encode`; or all of the prompt merges with the answer.
        """
        known = tuple((message["role"], message["content"]) for message in messages)
        if self._prompt[0] != known:  # many answers to one prompt come one after the other
            self._prompt = known, self.encode(messages)
        prompt = self._prompt[1]
        if (texts := self._exchange(messages)) is None or self.chat is None:
            whole = self._encode([*messages, {"role": "assistant", "content": answer}], prompt=False)
        elif self.chat.boundary == "separate":
            return prompt, self.chat.encode_response(answer)
        else:
            whole = self.chat.encode_whole(*texts, answer)
        both = zip(prompt, whole[:-1], strict=False)
        shared = next((at for at, (one, other) in enumerate(both) if one != other), min(len(prompt), len(whole) - 1))
        if not shared:
            raise DataError(self._name, "leaves no token of the prompt apart from the answer")
        return whole[:shared], whole[shared:]

    def _exchange(self, messages: Messages) -> tuple[str, str] | None:
        """System message and prompt, which training writes too; None for longer conversations."""
        texts = {message["role"]: message["content"] for message in messages}
        if len(messages) > len(texts) or "assistant" in texts:
            return None
        return texts.get("system", ""), texts["user"]

    def _encode(self, messages: Messages, prompt: bool = True) -> list[int]:
        """Ids of what the template makes of messages."""
        messages = [message for message in messages if message["role"] != "system" or message["content"]]
        self._require_no_stand_in(messages)
        text = self._render(messages, prompt=prompt)
        if self._spelled(text) != self._render(messages, marked=False, prompt=prompt):
            raise DataError(self._name, "writes other text when its control tokens are marked, so it cannot be used")
        return self._reader.encode(text)

    def write(self, messages: Messages) -> tuple[str, str]:
        """What the template makes of messages: as text, and as `read` takes it, where control tokens are marked.

        A last message of the assistant is not ended: the model goes on with it.

        Raises:
            DataError: as `encode`, but the template decides which roles may follow each other.
        """
        self._require_no_stand_in(messages)
        begun = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else None
        text, marked = (self._render(messages, prompt=begun is None, marked=marked) for marked in (False, True))
        if begun is not None:
            text, marked = (_cut_after(begun, whole) for whole in (text, marked))
        return text, marked

    def read(self, marked: str) -> list[int]:
        """Ids of what `write` has written, and of what follows it."""
        return self._reader.encode(marked)

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text that is no conversation; BOS first, if the tokenizer has one."""
        return [*([] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]), *self.tokenizer.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text without control tokens."""
        return self.tokenizer.decode(ids)

    def _require_no_stand_in(self, messages: Messages) -> None:
        for token, characters in self._stand_ins.items():
            if any(characters in message["content"] for message in messages):
                raise DataError(f"a message holds the Unicode noncharacters that stand for {token}; remove them")

    def _end_of_answer(self) -> list[int]:
        """The control token that the template writes right after an answer."""
        try:
            after = self._render(_PROBE, prompt=False).partition(_PROBE[1]["content"])[2].lstrip()
        except DataError:
            return []  # it takes no answers
        marks = [mark for mark, characters in self._stand_ins.items() if after.startswith(characters)]
        return [number for mark in marks if (number := self.tokenizer.control_id(mark)) is not None]

    def _with_stand_ins(self, text: str) -> str:
        for mark in sorted(self._stand_ins, key=len, reverse=True):
            text = text.replace(mark, self._stand_ins[mark])
        return text

    def _spelled(self, text: str) -> str:
        for mark, characters in self._stand_ins.items():
            text = text.replace(characters, mark)
        return text

    def _render(self, messages: Messages, *, marked: bool = True, prompt: bool = True) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        template, special = self.template, self._special
        if marked:
            template = self._written
            special = {name: self._stand_ins.get(token, token) for name, token in special.items()}
        try:
            rendered, _ = render_jinja_template(
                [[dict(message) for message in messages]],
                chat_template=template,
                add_generation_prompt=prompt,
                **special,  # type: ignore[reportArgumentType]
            )
        except Exception as error:  # of Jinja, or of the template itself
            raise DataError(self._name, f"{type(error).__name__}: {first_line(error)}") from error
        return rendered[0]

    def require_own_marks(self) -> None:
        """Raises ConversionError if the template puts control tokens together from parts: they would become text."""
        text = self._render(_PROBE[:1])
        if spelled := [token for token in self._known if token in text]:
            raise ConversionError(self._name, f"makes the control token {spelled[0]} of parts, which is not supported")


def prompt_format(model: StoredModel, template: str | None = None) -> PromptFormat:
    """How a stored model reads conversations.

    Args:
        template: a name of `TEMPLATES`, for a model whose files name none.

    Raises:
        ConversionError: the model has no tokenizer, or no template and none is given.
    """
    if model.tokenizer_directory is None:
        raise ConversionError(model.path, "has no tokenizer; put tokenizer.json or tokenizer.model into it")
    chat, facts = model.chat_format(), model.facts
    tokenizer = load_tokenizer(model.tokenizer_directory) if chat is None else chat.tokenizer
    if (ids := tokenizer.vocab_size) > model.config.vocab_size:
        raise ConversionError(
            model.path,
            f"has {model.config.vocab_size} embeddings, but its tokenizer has {ids} ids; they do not belong together",
        )
    own = facts.chat_template or tokenizer.chat_template
    if template is not None:
        chat = ChatFormat(get_template(template), tokenizer)
    elif chat is None:
        formats = (ChatFormat(one, tokenizer, boundary=b) for one in TEMPLATES.values() for b in ("separate", "joint"))
        chat = next((one for one in formats if one.chat_template == own), None)
    ends = end_ids(model)
    if chat is not None:
        return trained_format(chat, ends)
    if not own:
        raise ConversionError(model.path, f"has no chat template; name one: {', '.join(TEMPLATES)}")
    made = PromptFormat(tokenizer, own, name=f"{model.path}: its chat template", end_ids=ends)
    made.require_own_marks()
    return made


def text_format(model: StoredModel) -> PromptFormat:
    """As `prompt_format`, to go on with texts by `encode_text`: the model needs no template."""
    try:
        return prompt_format(model)
    except ConversionError:
        return prompt_format(model, "plain")


def own_format(model: StoredModel, template: str | None = None) -> PromptFormat:
    """As `prompt_format`, but `template` must not replace another that the model has."""
    name = None if template is None else get_template(template).name
    try:
        own = prompt_format(model)
    except ConversionError:
        if name is None:
            raise
        return prompt_format(model, name)
    if name is not None and (own.chat is None or own.chat.template.name != name):
        known = "its own template" if own.chat is None else f"template {own.chat.template.name}"
        raise ConversionError(model.path, f"reads texts in {known}, not in {name}; leave out --template")
    return own


def trained_format(chat: ChatFormat, end_ids: Iterable[int] = ()) -> PromptFormat:
    """How a model reads conversations that training writes in this way."""
    name = f"template {chat.template.name}"
    return PromptFormat(chat.tokenizer, chat.chat_template, name=name, chat=chat, end_ids=end_ids)


def conversation(prompt: str, system: str = "") -> list[dict[str, str]]:
    """The messages of one prompt."""
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": prompt}]


def end_ids(model: StoredModel) -> list[int]:
    """Ids that end a text, as the model's own files say."""
    values = (facts.get("eos_token_id") for facts in (model.facts.token_ids, model.facts.generation))
    return list(dict.fromkeys(number for value in values for number in _ids(value)))


def _check(messages: Messages) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = [("user", "assistant")[place % 2] for place in range(len(turns))]
    if turns != expected or len(turns) % 2 == 0:
        raise DataError(
            f"messages have the roles {', '.join(roles) or 'none'}; allowed: system (optional), then user and "
            "assistant in turn, a user message last"
        )


def _token(tokenizer: Tokenizer, kind: str) -> str:
    """The spelling of BOS or EOS for a chat template, which may write BOS where training adds none."""
    number = getattr(tokenizer, f"{kind}_id")
    if number is not None:
        return tokenizer.token(number) or ""
    declared = declared_token(Path(tokenizer.path).parent, kind)
    return "" if declared is None else declared[1]


def _cut_after(text: str, whole: str) -> str:
    """What is written up to the end of its last message; a template may strip blanks of it."""
    at = whole.rindex(text.strip())
    kept = text.lstrip()
    return whole[: at + len(kept if whole.startswith(kept, at) else text.strip())]


def _ids(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value or [])
