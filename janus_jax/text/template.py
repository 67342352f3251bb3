"""Templates: how system message, instruction and response become text.

A template is declared once, as parts. `ChatFormat` (chat_format.py) binds it to a tokenizer: training ids and the chat
template of exported tokenizers both come from these parts.
"""

import dataclasses

from janus_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt is `begin`, `system` (left out if the system message is empty), `user` and `generation`, in this order.
    A response is its text and `end`; EOS follows as an id.

    The user's texts are inserted unchanged: nothing in them is stripped, escaped or read as a placeholder.
    """

    name: str
    begin: str
    """Before the system message of the first user turn, and before every other user turn."""
    system: str
    """Contains `{system}`."""
    user: str
    """Contains `{instruction}`."""
    generation: str
    """The last part of a prompt: where the model begins to write."""
    end: str
    """After a response, before EOS."""
    between: str = ""
    """Between EOS and the next user turn of a conversation."""
    marks: tuple[str, ...] = ()
    """The marks that some tokenizers know as control tokens."""
    several_turns: bool = True

    def prompt_text(self, system: str, instruction: str) -> str:
        user = self.user.format(instruction=instruction)
        return self.begin + (self.system.format(system=system) if system else "") + user + self.generation


MISTRAL_INST = Template(
    name="mistral-inst",
    begin="[INST] ",
    system="{system}\n",
    user="{instruction} [/INST]",
    generation="",
    end="",
    marks=("[INST]", "[/INST]"),
)
"""The paper's SFT template (from its configuration and inference code): no <<SYS>>, the system text comes first."""

CHATML = Template(
    name="chatml",
    begin="",
    system="<|im_start|>system\n{system}<|im_end|>\n",
    user="<|im_start|>user\n{instruction}<|im_end|>\n",
    generation="<|im_start|>assistant\n",
    end="<|im_end|>",
    between="\n",
    marks=("<|im_start|>", "<|im_end|>"),
)
"""ChatML. The published DPO and ORPO runs spell it as plain text: their vocabulary has no control tokens for it."""

PLAIN = Template(
    name="plain", begin="", system="{system}\n", user="{instruction}", generation="", end="", several_turns=False
)
"""No marks, for prompts that bring their own ("\\n\\nHuman: ...\\n\\nAssistant:"). Exported tokenizers take one prompt
and one response, because only the data knows how it marks further turns."""

TEMPLATES = {template.name: template for template in (MISTRAL_INST, CHATML, PLAIN)}


def get_template(name: str) -> Template:
    """Raises DataError for a name that is not in TEMPLATES."""
    if name not in TEMPLATES:
        raise DataError(f"template {name!r}: unknown; allowed: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
