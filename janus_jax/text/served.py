"""Whether a server reads a conversation as training did.

transformers loads the tokenizer files of an export and applies their chat template, as servers do. The ids must be
those that were stored for training.
"""

import contextlib
import dataclasses
import functools
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from janus_jax.errors import DataError, counted, first_line
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.hf_files import read_json
from janus_jax.text.sentencepiece_corpus import sampled_corpus
from janus_jax.text.tokenizer import Tokenizer, save_hf_tokenizer

CONVERSATIONS = "conversations.jsonl"
"""Beside the tokenizer of a data set, a run or a converted directory: conversations with the ids of training."""

_MERGED = 16
"""Tokens on either side of the boundary that may differ where prompt and response merge."""

_READING = ("split_special_tokens", "add_prefix_space", "legacy", "do_lower_case", "fix_mistral_regex")
"""Keys of tokenizer_config.json with which some tokenizers of transformers read texts in another way."""

SAMPLE = 256
"""Conversations of a split that are compared."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """An example as text and as ids."""

    name: str
    """Split and number."""
    system: str
    prompt: str
    responses: list[str]
    prompt_ids: list[int]
    response_ids: list[list[int]]


@dataclasses.dataclass(frozen=True)
class ServedCheck:
    """Counts of compared conversations."""

    checked: int = 0
    merged: int = 0
    """Prompt and response as one text give other ids than apart, because tokens merge at their boundary."""
    control_text: int = 0
    """A text spells a control token: training read it as text, a server reads the token."""
    example: tuple[str, str, str] | None = None
    """Of the first merged one: its name, the stored tokens and the served ones around the boundary."""


def control_pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """What spells one of the tokens; None without any."""
    longest_first = sorted(filter(None, tokens), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def check_built(chat: ChatFormat, conversations: Iterable[Conversation], *, whole: bool) -> ServedCheck:
    """Compares conversations with what an export of `chat` would read. Raises DataError as `check_served` does."""
    return _check(_exported(chat), chat, conversations, whole)


def require_servable(chat: ChatFormat) -> None:
    """Raises DataError if no tokenizer files can be written that transformers loads and that give the same ids."""
    server = _exported(chat)
    needed = {chat.bos_id, chat.tokenizer.eos_id, *map(chat.tokenizer.control_id, chat.marks)}
    normalizer = server.backend_tokenizer.normalizer
    for number, token in server.added_tokens_decoder.items():
        if number not in needed:
            continue
        becomes = normalizer.normalize_str(token.content) if token.normalized and normalizer else token.content
        if becomes != token.content:
            raise DataError(
                chat.tokenizer.path,
                f"{token.content!r} has normalized: true, and the normalizer makes {becomes!r} of it: a server "
                "finds the token only where a text becomes that, and reads it as text elsewhere; set normalized: false "
                "for it in added_tokens, and in tokenizer_config.json if that names it too",
            )
        if token.single_word:
            raise DataError(
                chat.tokenizer.path,
                f"{token.content!r} has single_word: true, so beside a letter it is read as text; set it to false",
            )


def check_served(
    directory: Path, chat: ChatFormat, conversations: Iterable[Conversation], *, whole: bool
) -> ServedCheck:
    """Compares conversations with what the tokenizer files of a directory read.

    The rendered text must be that of training, and so must the ids of every prompt (with `joint`: of the whole
    conversation). Texts that spell a control token are compared with that parsing switched off.

    Args:
        whole: ids of the whole conversation must be equal too (reward models); otherwise those that merge at the
            boundary are counted.
    Raises:
        DataError: names the conversation and shows both lists.
    """
    return _check(_server(directory), chat, conversations, whole)


def _server(directory: Path) -> Any:
    """The tokenizer files of a directory, as transformers reads them beside the config.json of an export.

    Its `model_type` decides as well: transformers ignores some classes that tokenizer_config.json names beside mistral.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, config=transformers.MistralConfig()
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"transformers cannot load the tokenizer as it would be exported: {reason}") from error


@dataclasses.dataclass(frozen=True)
class _Export:
    """The tokenizer files of an export, and the tokenizer of training."""

    files: tuple[tuple[str, bytes], ...]
    """Names and contents. tokenizer_config.json decides too, which no fingerprint covers."""
    fingerprint: str
    tokenizer: Tokenizer = dataclasses.field(compare=False)


def _exported(chat: ChatFormat) -> Any:
    """The tokenizer of an export as transformers reads it."""
    with tempfile.TemporaryDirectory(prefix="janus.served.") as directory:
        save_hf_tokenizer(chat.tokenizer, directory, chat_template=chat.chat_template)
        files = tuple((file.name, file.read_bytes()) for file in sorted(Path(directory).iterdir()))
    return _required(_Export(files, chat.tokenizer.fingerprint, chat.tokenizer))


@functools.lru_cache(maxsize=2)  # a build asks at its start and at its end
def _required(export: _Export) -> Any:
    with tempfile.TemporaryDirectory(prefix="janus.served.") as directory:
        for name, content in export.files:
            Path(directory, name).write_bytes(content)
        if read_json(Path(directory, "tokenizer_config.json")).get("fix_mistral_regex"):  # acts beside this file only
            Path(directory, "config.json").write_text('{"model_type": "mistral"}', encoding="utf-8")
        server = _server(Path(directory))
    _require_no_new_tokens(server, export.tokenizer)
    if not export.tokenizer.ignores_control_tokens:  # of sentencepiece models, the tokenizer.json was compared
        _require_same_reading(server, export.tokenizer)
    return server


def _require_no_new_tokens(server: Any, tokenizer: Tokenizer) -> None:
    """Raises DataError for tokens that transformers appends, but a pad token or the like: no text should be those."""
    known = {*tokenizer.vocabulary(), *tokenizer.control_tokens(), *map(str, server.special_tokens_map.values())}
    new = {token: number for token, number in server.get_vocab().items() if token not in known}
    if new:
        shown = ", ".join(
            f"{token!r} (new id {number})" for token, number in sorted(new.items(), key=lambda one: one[1])[:3]
        )
        raise DataError(
            tokenizer.path.parent / "tokenizer_config.json",
            f"declares {shown}, but tokenizer.json has no such token; remove it there, or let "
            "transformers write both files (AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW)), build with "
            "--tokenizer NEW and give the model rows for the new ids (resize_token_embeddings)",
        )


def _require_same_reading(server: Any, tokenizer: Tokenizer) -> None:
    """Raises DataError for a text that transformers reads in another way than training, on a large mixed corpus.

    Texts that spell control tokens are compared too, unless transformers reads the token whether it parses it or not.
    """
    control = {token: server.convert_tokens_to_ids(token) for token in tokenizer.control_tokens()}
    texts = list(sampled_corpus(tokenizer.vocabulary(), list(control)))
    with _as_text(server) as read:
        for text, served in zip(texts, read(texts), strict=True):
            spelled = {number for token, number in control.items() if token in text}
            if (trained := tokenizer.encode(text)) != served and spelled.isdisjoint(served):
                _require_ids(
                    server,
                    (str(tokenizer.path),),
                    trained,
                    served,
                    f"the test text {text[:60]!r} (of janus_jax, not of your data)",
                )


@contextlib.contextmanager
def _as_text(server: Any) -> Iterator[Callable[[list[str]], list[list[int]]]]:
    """Inside, the yielded function reads texts with the parsing of control tokens switched off."""
    rust = server.backend_tokenizer
    rust.no_truncation()  # a tokenizer.json may hold what its last call asked for; transformers resets it in every call
    rust.no_padding()
    before, rust.encode_special_tokens = rust.encode_special_tokens, True
    try:
        yield lambda texts: [encoding.ids for encoding in rust.encode_batch(texts, add_special_tokens=False)]
    finally:
        rust.encode_special_tokens = before


def _check(server: Any, chat: ChatFormat, conversations: Iterable[Conversation], whole: bool) -> ServedCheck:
    added = (str(token.content) for token in server.added_tokens_decoder.values() if token.special)
    normalized = _normalizer(server)
    tokens = {*map(str, server.all_special_tokens), *added, *chat.marks}
    control = control_pattern({*tokens, *map(normalized, tokens)})
    counts = {"checked": 0, "merged": 0, "control_text": 0}
    example = None
    for one in conversations:
        counts["checked"] += 1
        prompt, wholes = _rendered(server, chat, one)
        texts = [one.system, one.prompt, *one.responses]
        if control is not None and any(map(control.search, [*texts, *map(normalized, texts)])):
            counts["control_text"] += 1
            _require_literal(server, chat, one)
            continue
        if chat.boundary == "separate":
            _require_ids(server, (one.name,), one.prompt_ids, _ids(server, prompt), "this prompt")
        merged = None
        for text, response, stored in zip(wholes, one.responses, one.response_ids, strict=True):
            served = _ids(server, text)
            trained = one.prompt_ids + stored
            if trained == served:
                continue
            boundary = len(one.prompt_ids)
            start, end = _differing(trained, served, boundary)
            after = _MERGED + len(response.encode()) - len(response.lstrip().encode())  # a mark may strip white space
            local = chat.boundary == "separate" and boundary - start <= _MERGED and end - boundary <= after
            if not local:
                _require_ids(server, (one.name,), trained, served, "this conversation")
            longer = len(served) - len(trained)
            merged = (
                one.name,
                _tokens(server, trained[max(0, start - 1) : end + 1]),
                _tokens(server, served[max(0, start - 1) : end + longer + 1]),
            )
        if merged is None:
            continue
        if whole:
            raise DataError(
                one.name,
                f"prompt and response as one text, as a reward model reads them, merge: {merged[1]} was built, "
                f"{merged[2]} is served; build with --boundary joint and set compat.token_boundary: joint",
            )
        counts["merged"] += 1
        example = example or merged
    return ServedCheck(**counts, example=example)


def _normalizer(server: Any) -> Callable[[str], str]:
    """What a text becomes before the tokens that are marked `normalized` are looked for in it."""
    rust = server.backend_tokenizer.normalizer
    some = any(token.normalized for token in server.added_tokens_decoder.values())
    return rust.normalize_str if rust is not None and some else str


def _differing(trained: list[int], served: list[int], boundary: int | None = None) -> tuple[int, int]:
    """The span of `trained` outside the longest common beginning, no longer than `boundary`, and end."""
    shorter = min(len(trained), len(served))
    start = next((i for i in range(shorter) if trained[i] != served[i]), shorter)
    start = start if boundary is None else min(start, boundary)
    same = next((i for i in range(shorter - start) if trained[-1 - i] != served[-1 - i]), shorter - start)
    return start, len(trained) - same


def _rendered(server: Any, chat: ChatFormat, one: Conversation) -> tuple[str, list[str]]:
    """The prompt and the whole conversations that the chat template writes; raises DataError for other texts."""
    messages = [{"role": "system", "content": one.system}] if one.system else []
    messages.append({"role": "user", "content": one.prompt})
    bos = "" if chat.bos_id is None else server.convert_ids_to_tokens(chat.bos_id)
    eos = server.convert_ids_to_tokens(chat.tokenizer.eos_id)
    written = [_apply(server, messages, add_generation_prompt=True)]
    written += [_apply(server, [*messages, {"role": "assistant", "content": text}]) for text in one.responses]
    wholes = [chat.text(one.system, one.prompt, response) + eos for response in one.responses]
    for text, expected in zip(written, (chat.text(one.system, one.prompt), *wholes), strict=True):
        if text != bos + expected:
            raise DataError(one.name, f"the exported chat template writes {text!r:.300}, not {bos + expected!r:.300}")
    return written[0], written[1:]


def _require_literal(server: Any, chat: ChatFormat, one: Conversation) -> None:
    """Compares texts that spell control tokens, with their parsing switched off.

    transformers cannot switch it off for some tokens alone, so marks and tokenizers that read on after BOS are left to
    the other conversations and to the corpus.
    """
    if chat.marks or not chat.tokenizer.ignores_control_tokens:
        return
    bos, eos = [] if chat.bos_id is None else [chat.bos_id], chat.tokenizer.eos_id
    prompt = chat.text(one.system, one.prompt)
    before, texts = (
        (prompt, one.responses) if chat.boundary == "separate" else ("", [prompt + t for t in one.responses])
    )
    with _as_text(server) as read:
        for text, stored in zip(texts, one.response_ids, strict=True):
            ids = [number for part in read([before, text + chat.end]) for number in part]
            served = [*bos, *ids, eos]
            _require_ids(server, (one.name,), one.prompt_ids + stored, served, "this conversation")


def _require_ids(server: Any, places: tuple[str, ...], trained: list[int], served: list[int], what: str) -> None:
    if trained == served:
        return
    start = max(0, _differing(trained, served)[0] - 1)
    shown = [
        f"{len(ids)} ids, from {start}: {ids[start : start + 7]} {_tokens(server, ids[start : start + 7])}"
        for ids in (trained, served)
    ]
    settings = [f" with {key}: {json.dumps(server.init_kwargs[key])}" for key in _READING if key in server.init_kwargs]
    raise DataError(
        *places,
        f"a server would not read {what} as it was tokenized for training; trained {shown[0]}; served {shown[1]}. "
        f"transformers reads it as {type(server).__name__}{','.join(settings)}. If tokenizer_config.json says so, "
        "remove such settings there and set tokenizer_class to PreTrainedTokenizerFast; if it does not, choose another "
        "--template or --boundary",
    )


def _tokens(server: Any, ids: list[int]) -> str:
    return "|".join(map(str, server.convert_ids_to_tokens(ids)))


def _ids(server: Any, text: str) -> list[int]:
    """Ids of a rendered text, as apply_chat_template gives them."""
    return server(text, add_special_tokens=False)["input_ids"]


def _apply(server: Any, messages: list[dict[str, str]], **options: bool) -> str:
    try:
        return server.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # of Jinja or of the tokenizer
        raise DataError(f"the exported chat template fails: {type(error).__name__}: {first_line(error)}") from error


def served_lines(check: Mapping[str, Any]) -> list[str]:
    """What a check found, for people. `check` holds the fields of a `ServedCheck`, which a manifest keeps, with a
    `template_note`."""
    if not check:
        return []
    count, merged = check["checked"], check["merged"]
    lines = [
        f"{counted(count, 'conversation')} checked: an export's chat template gives every prompt the ids of training"
    ]
    if merged:
        name, trained, served = check["example"]
        lines.append(
            f"in {merged:,} of {count:,}, prompt and response read as one text have other ids where they meet: {name} "
            f"is {trained} in training and {served} as one text (--boundary joint trains the latter)"
        )
    if check["control_text"]:
        first = "".join(f", first in {place}" for place in check.get("control_places", ())[:1])
        lines.append(
            f"texts that spell a control token: in {counted(check['control_text'], 'example')}{first}; training reads "
            "text, a server the token"
        )
    if note := check.get("template_note"):
        lines.append(f"look at this: {note}")
    return lines


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """One JSON line for each."""
    lines = (json.dumps(dataclasses.asdict(one), ensure_ascii=False, separators=(",", ":")) for one in conversations)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a file; none if it does not exist, as beside older data sets.

    Raises:
        DataError: the file is damaged.
    """
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            yield Conversation(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}:{number}", f"not a conversation: {first_line(error)}") from error
