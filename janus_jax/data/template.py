"""Text forms of an example, and its token ids.

Where the prompt ends and a response begins is the token boundary:

- `separate`: each is tokenized by itself. A sentencepiece model that adds a leading space mark gives the response the
  first token of `[/INST] response`.
- `joint`: prompt and response are tokenized as one text, without a space between them; the first token of
  `[/INST]response`, and where pieces merge across the border, the prompt ends before them.

BOS stands once at the start of the prompt, EOS at the end of each response, both as ids.
"""

import dataclasses
from typing import Literal, get_args

import numpy as np

from janus_jax.data.schema import Row, check_kind
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import DataError

Boundary = Literal["separate", "joint"]
BOUNDARIES: tuple[Boundary, ...] = get_args(Boundary)


@dataclasses.dataclass(frozen=True)
class Template:
    """How system message, instruction and response become text.

    An empty system message takes `prompt_without_system`: the text then starts with the instruction, without the
    newline that would part the two.

    The texts of the user are put in as they are: nothing in them is stripped, escaped or read as a placeholder.
    """

    name: str
    prompt: str
    """With `{system}` and `{instruction}`."""
    prompt_without_system: str
    """With `{instruction}`."""
    response: str
    """With `{response}`; EOS follows as an id, it is not part of the text."""
    chat_template: str
    """The same form in Jinja over `messages`, `bos_token`, `eos_token`, for exported tokenizers."""

    def prompt_text(self, system: str, instruction: str) -> str:
        form = self.prompt if system else self.prompt_without_system
        return form.format(system=system, instruction=instruction)

    def response_text(self, response: str) -> str:
        return self.response.format(response=response)


MISTRAL_INST = Template(
    name="mistral-inst",
    prompt="[INST] {system}\n{instruction} [/INST]",
    prompt_without_system="[INST] {instruction} [/INST]",
    response="{response}",
    chat_template=(
        "{%- if messages and messages[0]['role'] == 'system' -%}"
        "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
        "{%- else -%}"
        "{%- set system = '' -%}{%- set turns = messages -%}"
        "{%- endif -%}"
        "{{- bos_token -}}"
        "{%- for message in turns -%}"
        "{%- if message['role'] == 'user' -%}"
        "{{- '[INST] ' + (system + '\\n' if loop.first and system else '') + message['content'] + ' [/INST]' -}}"
        "{%- elif message['role'] == 'assistant' -%}"
        "{{- ' ' + message['content'] + eos_token -}}"
        "{%- else -%}"
        "{{- raise_exception('roles are system (first only), user and assistant') -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
    ),
)
"""The paper's SFT form (its configuration files and inference code): no <<SYS>>, the system text is the first lines."""

CHATML = Template(
    name="chatml",
    prompt="<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    prompt_without_system="<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    response="{response}<|im_end|>",
    chat_template=(
        "{{- bos_token -}}"
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' -}}"
        "{{- eos_token if message['role'] == 'assistant' else '\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    ),
)
"""ChatML as plain text, as the published DPO and ORPO runs had it: no special tokens were added to the vocabulary."""

PLAIN = Template(
    name="plain",
    prompt="{system}\n{instruction}",
    prompt_without_system="{instruction}",
    response="{response}",
    chat_template=(
        "{%- set system = messages[0]['content'] if messages and messages[0]['role'] == 'system' else '' -%}"
        "{%- set turns = messages[1:] if messages and messages[0]['role'] == 'system' else messages -%}"
        "{%- if not turns or turns | length > 2 or turns[0]['role'] != 'user'"
        " or (turns | length == 2 and turns[1]['role'] != 'assistant') -%}"
        "{{- raise_exception('no marks part turns here: write a conversation as the text of one user message; "
        "allowed: system (optional), user, assistant (optional)') -}}"
        "{%- endif -%}"
        "{{- bos_token + (system + '\n' if system else '') + turns[0]['content'] -}}"
        "{%- if turns | length == 2 -%}{{- ' ' + turns[1]['content'] + eos_token -}}{%- endif -%}"
    ),
)
"""No marks at all, for prompts that bring their own ("\\n\\nHuman: ...\\n\\nAssistant:"). Exported tokenizers take one
prompt and one response: how further turns would be marked is for the data to say."""

TEMPLATES = {template.name: template for template in (MISTRAL_INST, CHATML, PLAIN)}


def get_template(name: str) -> Template:
    """Raises DataError for a name that is not in TEMPLATES."""
    if name not in TEMPLATES:
        raise DataError(f"template {name!r}: unknown; allowed: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def check_boundary(boundary: str) -> None:
    """Raises DataError for a token boundary that is not in BOUNDARIES."""
    if boundary not in BOUNDARIES:
        raise DataError(f"boundary {boundary!r}: unknown; allowed: {', '.join(BOUNDARIES)}")


def encode_prompt(template: Template, tokenizer: Tokenizer, system: str, instruction: str) -> np.ndarray:
    """[n] int32 ids of the prompt, BOS first (if the tokenizer has one)."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return np.asarray(bos + tokenizer.encode(template.prompt_text(system, instruction)), np.int32)


def encode_response(template: Template, tokenizer: Tokenizer, response: str) -> np.ndarray:
    """[m] int32 ids of the response, EOS last."""
    return np.asarray([*tokenizer.encode(template.response_text(response)), tokenizer.eos_id], np.int32)


def encode_example(
    template: Template, tokenizer: Tokenizer, row: Row, kind: str, boundary: Boundary = "separate"
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Ids of a row: prompt [n], chosen [c] (the response, for sft), rejected [r] or None (sft); all int32.

    A reward-model row (kind rm) holds system message and instruction joined in its prompt already.
    """
    check_kind(kind)
    check_boundary(boundary)
    if kind != "sft" and row.rejected is None:
        raise DataError(f"kind {kind} needs a rejected response, the row has none")
    texts = [row.chosen] if kind == "sft" or row.rejected is None else [row.chosen, row.rejected]
    prompt = encode_prompt(template, tokenizer, row.system, row.prompt)
    if boundary == "separate":
        responses = [encode_response(template, tokenizer, text) for text in texts]
    else:
        prompt, responses = _encode_joint(template, tokenizer, row, prompt, texts)
    if not len(prompt):  # without BOS; no slot would predict the response's first token
        text = template.prompt_text(row.system, row.prompt)
        raise DataError(f"the tokenizer makes no token of the prompt {text[:40]!r}")
    return prompt, responses[0], responses[1] if len(responses) == 2 else None


def _encode_joint(
    template: Template, tokenizer: Tokenizer, row: Row, alone: np.ndarray, texts: list[str]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Prompt and responses, cut from the ids of prompt + response.

    The prompt is what its ids `alone` and the ids of all wholes begin with, so that the responses of a pair share it
    and nothing of a response is in it. TRL 0.8.6 goes back by one token at most; so does this wherever at most one
    token of the prompt merges with a response.
    """
    form = template.prompt_text(row.system, row.prompt)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    wholes = [
        np.asarray([*bos, *tokenizer.encode(form + template.response_text(text)), tokenizer.eos_id], np.int32)
        for text in texts
    ]
    shared = len(alone)
    for whole in wholes:
        length = min(shared, len(whole) - 1)  # EOS is never the prompt's
        differ = np.flatnonzero(alone[:length] != whole[:length])
        shared = int(differ[0]) if len(differ) else length
    if not shared:
        raise DataError(f"boundary joint: the tokenizer merges all of the prompt {form[:40]!r} with its response")
    return alone[:shared], [whole[shared:] for whole in wholes]
