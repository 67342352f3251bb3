"""Text forms of an example, and its token ids.

The prompt and each response are tokenized separately and concatenated (boundary "separate"): with a sentencepiece
model that adds a leading space mark, the response's first token is the one of `[/INST] response`. BOS stands once at
the start of the prompt, EOS at the end of each response.
"""

import dataclasses

import numpy as np

from janus_jax.data.schema import Row, check_kind
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import DataError


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

TEMPLATES = {template.name: template for template in (MISTRAL_INST, CHATML)}


def get_template(name: str) -> Template:
    """Raises DataError for a name that is not in TEMPLATES."""
    if name not in TEMPLATES:
        raise DataError(f"template {name!r}: unknown; allowed: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def encode_prompt(template: Template, tokenizer: Tokenizer, system: str, instruction: str) -> np.ndarray:
    """[n] int32 ids of the prompt, BOS first (if the tokenizer has one)."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return np.asarray(bos + tokenizer.encode(template.prompt_text(system, instruction)), np.int32)


def encode_response(template: Template, tokenizer: Tokenizer, response: str) -> np.ndarray:
    """[m] int32 ids of the response, EOS last."""
    return np.asarray([*tokenizer.encode(template.response_text(response)), tokenizer.eos_id], np.int32)


def encode_example(
    template: Template, tokenizer: Tokenizer, row: Row, kind: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Ids of a row: prompt [n], chosen [c] (the response, for sft), rejected [r] or None (sft); all int32.

    A reward-model row (kind rm) holds system message and instruction joined in its prompt already.
    """
    check_kind(kind)
    prompt = encode_prompt(template, tokenizer, row.system, row.prompt)
    chosen = encode_response(template, tokenizer, row.chosen)
    if kind == "sft":
        return prompt, chosen, None
    if row.rejected is None:
        raise DataError(f"kind {kind} needs a rejected response, the row has none")
    return prompt, chosen, encode_response(template, tokenizer, row.rejected)
