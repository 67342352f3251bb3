"""Texts and conversations as ids: what `lm_eval --model hf` reads from the model's export, and what a server reads."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from janus_jax.checkpoint.hf.write import Companions, write_companions
from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.errors import ConversionError, DataError, first_line
from janus_jax.generation.prompts import Messages, end_ids, prompt_format
from janus_jax.text.tokenizer import load_tokenizer


class Texts:
    """How a model reads what a task writes.

    Plain text is read as transformers reads it with the tokenizer files of the export: BOS is there if those files say
    so, and a control token that a text spells is read as that token. Conversations are read as training wrote them.

    Args:
        chat: conversations are read too.
        template: a name of `TEMPLATES`, for a model whose files name none.

    Raises:
        ConversionError: the model has no tokenizer, or no template although conversations are to be read.
    """

    def __init__(self, model: StoredModel, *, chat: bool, template: str | None = None):
        if model.tokenizer_directory is None:
            raise ConversionError(model.path, "has no tokenizer; put tokenizer.json or tokenizer.model into it")
        self.chat = prompt_format(model, template) if chat else None
        self.own = load_tokenizer(model.tokenizer_directory) if self.chat is None else self.chat.tokenizer
        """The tokenizer that makes text of what the engine writes."""
        self.hf = _exported(model)
        """The tokenizer of transformers."""
        self._ends = tuple(dict.fromkeys([self.own.eos_id, *end_ids(model)]))
        self.notes: Counter[str] = Counter()
        """What was read in another way than it stands -> how often."""
        self._marked: dict[str, str] = {}

    @property
    def prefix_id(self) -> int:
        """What stands before a text without context: BOS, or else EOS."""
        return self.own.eos_id if self.hf.bos_token_id is None else self.hf.bos_token_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end what the model writes."""
        return self._ends if self.chat is None else self.chat.stop_ids

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Ids of a plain text.

        Args:
            add_special_tokens: None: as the tokenizer files say, but no second BOS before a text that begins with it.
        """
        if add_special_tokens is None:
            add_special_tokens = not text.startswith(self.hf.decode(self.prefix_id))
        return self.hf.encode(text, add_special_tokens=add_special_tokens)

    def written(self, messages: Messages) -> str:
        """The text of a conversation; from then on, texts that begin with it are read as the conversation.

        Raises:
            DataError: the template refuses it.
        """
        assert self.chat is not None
        try:
            text, marked = self.chat.write(messages)
        except DataError:
            if not any(message["role"] == "system" for message in messages):
                raise
            text, marked = self.chat.write([message for message in messages if message["role"] != "system"])
            self.notes["system messages are left out, because the model's chat template takes none"] += 1
        self._marked[text] = marked
        return text

    def context(self, text: str) -> list[int]:
        """Ids of what stands before an answer, at least one."""
        marked = self._marked.get(text)
        ids = self.encode(text) if marked is None or self.chat is None else self.chat.read(marked)
        return ids or [self.prefix_id]

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of its continuation, as one text gives them. Blanks at the end of the context belong to
        the continuation, as lm-evaluation-harness has it.

        Raises:
            DataError: the continuation has no tokens.
        """
        if not context:
            before, after = [self.prefix_id], self.encode(continuation, add_special_tokens=False)
            if after[:1] == before:
                before, after = after[:1], after[1:]
        else:
            stripped = context.rstrip()
            continuation = context[len(stripped) :] + continuation
            marked = self._marked.get(context)
            if marked is None or self.chat is None:
                before, whole = self.encode(stripped), self.encode(stripped + continuation)
            else:
                marked = marked.rstrip()
                before, whole = self.chat.read(marked), self.chat.read(marked + continuation)
            if not before:  # of blanks alone
                before, whole = [self.prefix_id], [self.prefix_id, *whole]
            after = whole[len(before) :]
        if not after:
            raise DataError(f"the continuation {continuation[:60]!r} has no token of its own")
        return before, after


def _exported(model: StoredModel) -> Any:
    """The tokenizer of transformers, of the model's own files or of those that an export of it would have."""
    import transformers

    assert model.tokenizer_directory is not None
    with tempfile.TemporaryDirectory(prefix="janus.eval.") as made:
        directory = Path(model.tokenizer_directory)
        if model.layout is None:  # no Hugging Face directory
            chat, directory = model.chat_format(), Path(made)
            tokenizer = load_tokenizer(model.tokenizer_directory) if chat is None else chat.tokenizer
            template = None if chat is None else chat.chat_template
            write_companions(directory, model.config, model.stored_dtype, Companions(tokenizer, template, model.facts))
        try:
            return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ConversionError(model.path, f"transformers cannot load its tokenizer: {reason}") from error
