"""Templates: how system message, instruction and response become text."""

import dataclasses

from janus_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Template:
    """How system message, instruction and response become text.

    With an empty system message, `prompt_without_system` applies: the text then starts with the instruction, without
    the newline that separates the two.

    The user's texts are inserted unchanged: nothing in them is stripped, escaped or read as a placeholder.
    """

    name: str
    prompt: str
    """Contains `{system}` and `{instruction}`."""
    prompt_without_system: str
    """Contains `{instruction}`."""
    response: str
    """Contains `{response}`. EOS follows as an id and is not part of the text."""
    chat_template: str
    """The same template in Jinja over `messages`, `bos_token`, `eos_token`, for exported tokenizers."""

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
"""The paper's SFT template (from its configuration and inference code): no <<SYS>>, the system text comes first."""

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
"""ChatML as plain text, as in the published DPO and ORPO runs: the vocabulary has no special tokens for it."""

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
        "{{- raise_exception('template plain has no marks between turns: write a conversation as the text of one "
        "user message; allowed: system (optional), user, assistant (optional)') -}}"
        "{%- endif -%}"
        "{{- bos_token + (system + '\n' if system else '') + turns[0]['content'] -}}"
        "{%- if turns | length == 2 -%}{{- ' ' + turns[1]['content'] + eos_token -}}{%- endif -%}"
    ),
)
"""No marks, for prompts that bring their own ("\\n\\nHuman: ...\\n\\nAssistant:"). Exported tokenizers take one prompt
and one response, because only the data knows how it marks further turns."""

TEMPLATES = {template.name: template for template in (MISTRAL_INST, CHATML, PLAIN)}


def get_template(name: str) -> Template:
    """Raises DataError for a name that is not in TEMPLATES."""
    if name not in TEMPLATES:
        raise DataError(f"template {name!r}: unknown; allowed: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
