"""Writes goldens/tokenizer.json: token ids of tricky texts from mistral_common and from raw sentencepiece.

Runs in an environment of its own, since mistral_common pins an older numpy:

    pip install --no-deps mistral_common==1.13.1
    pip install pydantic 'pydantic-extra-types[pycountry]' jsonschema pillow tiktoken requests sentencepiece numpy
    python tests/text/make_tokenizer_goldens.py

mistral_common puts the tags, BOS and EOS itself. Its own way to join a system message is a blank line; the form of the
Multifaceted runs is one newline, so system and instruction are given to it as one user message.
"""

import json
from importlib.metadata import version
from pathlib import Path

import sentencepiece
from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

TARGET = Path(__file__).parent / "goldens" / "tokenizer.json"
SYSTEM = "You are a patient teacher who answers in short sentences."

EXAMPLES = {  # name: (system, instruction, response)
    "plain": (SYSTEM, "Why does bread rise?", "Yeast eats sugar and gives off gas."),
    "no system": ("", "Why does bread rise?", "Yeast eats sugar."),
    "special tokens as text": (SYSTEM, "What does <s> mean, and </s>, <unk>?", "<s> opens and </s> closes."),
    "tags as text": (SYSTEM, "Ignore [/INST] this [INST]", "[INST] no [/INST]"),
    "leading spaces": ("  Be brief.", "   Why?", "  Because."),
    "inner spaces": ("Be  brief.", "Why   so?", "Be   cause."),
    "newlines": ("One.\n\nTwo.\n", "\nList:\n- a\n- b\n", "1. a\n2. b\n\nDone.\n"),
    "tabs and returns": ("a\tb", "c\r\nd", "e\t\tf\r\n"),
    "emoji": ("Use emojis 😀", "How do I smile? 🙂👍🏽", "Like this: 😀 👩‍👩‍👧‍👦 🇪🇺"),
    "nul": ("a\0b", "c\0", "d\0e"),
    "cjk": ("请用中文回答。", "为什么天空是蓝色的?", "因为空气散射蓝光。日本語も、한국어도。"),
    "very long word": ("Be brief.", "pneumono" * 60, "x" * 400),
    "space mark": ("a▁b", "▁c", "d ▁ e"),
    "byte piece as text": ("<0x0A>", "What is <0x41>?", "<0x41> is A."),
    "combining and wide": ("e\u0301 ﬁ ①", "\ufeffbom\u00a0nbsp", "\u200bzero\u2028line"),
    "right to left": ("أجب بإيجاز", "מדוע?", "לא יודע"),
    "numbers": ("3.14159", "12 345 678,90", "-1e-5 +49 (0) 30"),
    "code": ("Answer in Python.", "def f(x):\n    return x**2", "```python\nprint(f(3))\n```"),
}


def main() -> None:
    mistral = MistralTokenizer.v1()
    path = mistral.instruct_tokenizer.tokenizer.file_path
    raw = sentencepiece.SentencePieceProcessor(model_file=str(path))
    examples, texts = [], {}
    for name, (system, instruction, response) in EXAMPLES.items():
        user = UserMessage(content=f"{system}\n{instruction}" if system else instruction)

        def tokens(*messages) -> list[int]:
            return mistral.encode_chat_completion(ChatCompletionRequest(messages=list(messages))).tokens

        prompt = tokens(user)
        # a request ends on a user message: the response is what stands between the prompt and a second turn
        probe = UserMessage(content="?")
        turn = tokens(probe)[1:]  # without BOS
        dialogue = tokens(user, AssistantMessage(content=response), probe)
        assert dialogue[: len(prompt)] == prompt and dialogue[-len(turn) :] == turn
        examples.append(
            {
                "name": name,
                "system": system,
                "instruction": instruction,
                "response": response,
                "prompt_ids": prompt,
                "response_ids": dialogue[len(prompt) : -len(turn)],
            }
        )
        texts |= {text: raw.encode(text) for text in (system, instruction, response)}
    texts |= {text: raw.encode(text) for text in ("", " ", "  ", "\n", " \n ", "\0", "▁", "<s>", "</s>", "[INST]")}
    golden = {
        "made_with": {name: version(name) for name in ("mistral_common", "sentencepiece")},
        "examples": examples,
        "texts": [{"text": text, "ids": ids} for text, ids in texts.items()],
    }
    TARGET.write_text(json.dumps(golden, indent=None, separators=(",", ":")).replace('},{"', '},\n{"') + "\n")


if __name__ == "__main__":
    main()
