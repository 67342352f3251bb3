"""Data and weights that do not fit: another tokenizer, another template, ids that a server would not read."""

import shlex
from collections.abc import Iterator

from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.data.dataset import Dataset, TokenizedDataset
from janus_jax.errors import ConfigError
from janus_jax.model.config import ModelConfig
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.compare import difference, other_prompt
from janus_jax.text.template_fit import replaced_template
from janus_jax.text.tokenizer import Tokenizer, load_tokenizer

_FEW_ROWS, _FEW_OF_ALL = 256, 0.1
"""As many rows of the embedding, and as large a share of them, may belong to no token: sizes are often rounded up."""


def require_same_tokenizer(key: str, model: StoredModel | None, dataset: Dataset, *, allow_other: bool) -> None:
    """Compares the tokenizer of the data with the one beside the weights, if there is one.

    Args:
        key: the configuration key that names the weights.
        allow_other: `init.allow_other_tokenizer`.
    Raises:
        ConfigError: ids that data can use have another meaning; names a first one.
    """
    if model is None or model.tokenizer_directory is None or allow_other:
        return
    built, known = dataset.parts[0].tokenizer(), load_tokenizer(model.tokenizer_directory)
    if built.fingerprint == known.fingerprint:
        return
    if reason := difference(built, known, _control_ids(dataset.parts[0])) or _other_prompt(dataset.parts[0], known):
        raise ConfigError(
            f"{key}={model.path}: its weights know another tokenizer than {dataset.name} was built with: {reason}; "
            f"build the data with --tokenizer {shlex.quote(model.tokenizer_directory)}, or set "
            "init.allow_other_tokenizer: true if you mean it"
        )


def require_same_held_out(dataset: Dataset, held_out: Dataset) -> None:
    """Raises ConfigError if the ids of held-out and training data do not mean the same."""
    names = ("the training data", "the held-out data")
    first = dataset.parts[0]
    for part in held_out.parts:
        ours, theirs = first.manifest, part.manifest
        if (first.tokenizer_fingerprint, ours.marks) == (part.tokenizer_fingerprint, theirs.marks):
            continue
        reason = difference(first.tokenizer(), part.tokenizer(), _control_ids(first) + _control_ids(part), names)
        if not reason and ours.template == theirs.template:
            reason = other_prompt(first.chat_format(), part.chat_format())
        if reason:
            raise ConfigError(
                f"data.eval_dir={part.name}: was built with another tokenizer than the training data {first.name}: "
                f"{reason}; build both with one tokenizer"
            )


def _other_prompt(dataset: TokenizedDataset, known: Tokenizer) -> str:
    """How the weights' tokenizer reads a prompt of the data's template; empty if as the data's does."""
    ours = dataset.chat_format()
    theirs = ChatFormat(ours.template, known, boundary=ours.boundary, bos=ours.bos, marks=ours.marks)
    return other_prompt(ours, theirs)


def require_whole_ids(dataset: Dataset) -> None:
    """Raises ConfigError if a reward model would be asked about other ids than these: it reads prompt and response as
    one text."""
    for part in dataset.parts:
        check = part.manifest.served or {}
        if merged := check.get("merged"):
            name, trained, served = check["example"]
            raise ConfigError(
                part.name,
                f"in {merged} of {check['checked']} compared conversations prompt and response merge if "
                f"they are one text, as a reward model reads them ({name}: {trained} in training, {served} as one "
                "text); build the data with --boundary joint and set compat.token_boundary: joint",
            )


def notes(model: StoredModel | None, dataset: Dataset) -> list[str]:
    """What may be meant and changes what a served model reads, one sentence each."""
    lines = [
        f"{part.name} was built by an earlier version, and nobody compared its ids with what a server would read; "
        "build it again to have that done"
        for part in dataset.parts
        if part.manifest.served is None
    ]
    templates = list(dict.fromkeys(part.manifest.template for part in dataset.parts))
    if len(templates) > 1:
        lines.append(f"the data has the templates {', '.join(templates)}; an export writes {templates[0]}")
    if model is not None and model.template not in (None, templates[0]):
        lines.append(
            f"init.from={model.path} was trained with template {model.template}, the data was built with {templates[0]}"
        )
    return [*lines, *_replaced_templates(model, dataset.parts[0])]


def _replaced_templates(model: StoredModel | None, part: TokenizedDataset) -> Iterator[str]:
    """The chat template that a run's data replaces. What began as a run of ours was trained with `model.template`."""
    if model is not None and model.template is not None:
        return
    chat = part.chat_format()
    whose, own = f"the tokenizer of {part.name}", chat.tokenizer.chat_template
    if model is not None and model.facts.chat_template:
        whose, own = f"init.from={model.path}", model.facts.chat_template
    if note := replaced_template(chat, own, whose):
        yield note


def check_vocabulary(model: ModelConfig, dataset: TokenizedDataset, weights: str | None) -> None:
    """Raises ConfigError if data can use an id that has no row in the embedding. A pad token may have none.

    Args:
        weights: `init.from`; None: random weights, of any shape.
    """
    built = dataset.manifest.tokenizer["vocab_size"]
    if built <= model.vocab_size:
        return
    tokenizer = dataset.tokenizer()
    used = {**tokenizer.vocabulary(), **{f"id {number}": number for number in _control_ids(dataset)}}
    token, number = max((item for item in used.items() if item[1] < built), key=lambda item: item[1])
    if number >= model.vocab_size:
        shown = f"{number + 1} ids (the last is {token!r})"
        if weights is None:
            raise ConfigError(
                f"model.vocab_size = {model.vocab_size}: the tokenizer of {dataset.name} has {shown}; allowed: at "
                f"least {number + 1}"
            )
        raise ConfigError(
            dataset.name,
            f"its tokenizer has {shown}, but the vocab_size of init.from={weights} is {model.vocab_size}; build the "
            "data with the tokenizer of those weights (janus data build --tokenizer)",
        )


def unused_rows(model: ModelConfig, dataset: Dataset, weights: str | None) -> list[str]:
    """A note if many rows of the embedding belong to no token.

    Args:
        weights: `init.from`, whose shape is what it is; None: random weights.
    """
    ids = max(part.manifest.tokenizer["vocab_size"] for part in dataset.parts)
    unused = model.vocab_size - ids
    if weights is not None or unused <= max(_FEW_ROWS, _FEW_OF_ALL * model.vocab_size):
        return []
    return [
        f"the tokenizer of {dataset.name} has {ids:,} ids, so no token uses {unused:,} of the {model.vocab_size:,} "
        f"rows of the embedding; set model.vocab_size={ids}, or a little more"
    ]


def _control_ids(dataset: TokenizedDataset) -> list[int]:
    """BOS, EOS and the marks of the template that are control tokens."""
    tokenizer, marks = dataset.tokenizer(), dataset.manifest.marks
    ids = [tokenizer.bos_id, tokenizer.eos_id, *map(tokenizer.control_id, marks)]
    return [number for number in ids if number is not None]
