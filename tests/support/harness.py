"""Rows, models and requests for tests of `janus eval`. The rows are of our own making."""

import json
from pathlib import Path
from typing import Any

from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import CHATML
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support import torch_models
from tests.support.tokenizers import byte_level

WINOGENDER = [
    {
        "sentence": f"The {occupation} waved to the {participant} because {pronoun} had {end}.",
        "pronoun": pronoun,
        "occupation": occupation,
        "participant": participant,
        "gender": gender,
        "label": label,
        "target": (occupation, participant)[label],
        "pct_female": share,
    }
    for occupation, participant, share in (("baker", "guest", 30.0), ("florist", "buyer", 70.0))
    for gender, pronoun in (("female", "she"), ("male", "he"), ("neutral", "they"))
    for label, end in enumerate(("baked the bread", "bought the bread"))
]
CROWS = [
    {"sent_more": "The old fox never learns.", "sent_less": "The young fox never learns.", "bias_type": "age"},
    {"sent_more": "Old bread is bad.", "sent_less": "New bread is bad.", "bias_type": "age"},
    {"sent_more": "The quick fox is poor.", "sent_less": "The brown fox is poor.", "bias_type": "socioeconomic"},
    {"sent_more": "naïve 世界 foxes", "sent_less": "quick 世界 foxes", "bias_type": "nationality"},
]
BBQ = [
    {
        "example_id": number,
        "question_index": "1",
        "question_polarity": polarity,
        "context_condition": condition,
        "category": "Age",
        "answer_info": {"ans0": ["old", "old"], "ans1": ["young", "nonOld"], "ans2": ["Unknown", "unknown"]},
        "additional_metadata": {
            "subcategory": "None",
            "stereotyped_groups": ["old"],
            "version": "None",
            "source": "made for this test",
        },
        "context": "An old baker and a young baker met."
        + (" The young one forgot." if condition == "disambig" else ""),
        "question": f"Who {'forgot' if polarity == 'neg' else 'remembered'} the bread?",
        "ans0": "The old baker",
        "ans1": "The young baker",
        "ans2": "Unknown",
        "label": 2 if condition == "ambig" else int(polarity == "neg"),
    }
    for number, (polarity, condition) in enumerate(
        (polarity, condition) for polarity in ("neg", "nonneg") for condition in ("ambig", "disambig")
    )
]
ROWS = {"winogender_all": WINOGENDER, "crows_pairs_english": CROWS, "bbq": BBQ}


def data(directory: Path) -> Path:
    """Files as `--data-dir` takes them."""
    directory.mkdir()
    for name, rows in ROWS.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def model(path: Path, *, bos: bool, longest: int = 256) -> Path:
    """A random model with a tokenizer that puts BOS before each text, as Mistral's does, or that does not, although it
    declares one, as SmolLM2's."""
    import tokenizers

    tokenizer = load_tokenizer(byte_level(path.parent / f"{path.name}_t", ("<|im_start|>", "<|im_end|>"), bos="<s>"))
    torch_models.mistral(vocab_size=400, max_position_embeddings=longest).save_pretrained(path)
    save_hf_tokenizer(tokenizer, path, chat_template=ChatFormat(CHATML, tokenizer).chat_template)
    file = path / "tokenizer.json"
    made = tokenizers.Tokenizer.from_file(str(file))
    if bos:
        first = [("<s>", made.token_to_id("<s>"))]
        made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=first)
        made.save(str(file))
    return path


def instance(kind: Any, *arguments: Any, number: int = 0, repeats: int = 1) -> Any:
    """A request of the harness."""
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0, ("task", number, repeats))
