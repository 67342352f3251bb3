"""The files of a tokenizer in a Hugging Face directory."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from janus_jax.errors import DataError, first_line
from janus_jax.storage.json_text import json_fault, json_kind, strict_json

HF_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
"""Tokenizer files of a Hugging Face directory."""

MADE_OF = "janus_jax_made_of"
"""Key of tokenizer_config.json: the files that `save_hf_tokenizer` wrote of one sentencepiece model."""

BESIDE_MODEL = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""Tokenizer files that may accompany a sentencepiece model, with its pad token and chat template."""

SENTENCEPIECE_FILES = ("tokenizer.model", "added_tokens.json", *BESIDE_MODEL)
"""Tokenizer files of a directory without tokenizer.json."""

_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_NEEDED = {"bos": '"<s>"', "eos": '"</s>"'}
"""Tokens that training needs, and an example of each."""
_FIELDS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of AddedToken


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = strict_json(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(path, json_fault(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(path, f"not valid JSON: {first_line(error)}") from error
    except ValueError as error:
        raise DataError(path, str(error)) from error
    if not isinstance(value, dict):
        raise DataError(path, f"holds {json_kind(value)}; allowed: an object")
    return value


def chat_template_of(directory: Path) -> str:
    """The Jinja text of a directory's chat template; of several, the default one. Empty if it has none."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    template = read_json(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several by name
        template = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}.get("default")
    return template if isinstance(template, str) else ""


def declared_token(directory: Path, name: str) -> tuple[Path, str] | None:
    """The file that declares `bos_token`, `eos_token` or `unk_token`, and the token; None if no file does.

    Raises:
        DataError: two files declare different tokens, of which readers take one or the other.
    """
    declared = []
    for file in (directory / "tokenizer_config.json", directory / "special_tokens_map.json"):
        token = read_json(file).get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token == "" and name in _NEEDED:
            none = "; for a model without BOS, set add_bos_token: false" if name == "bos" else ""
            raise DataError(
                file, f'{name}_token is "" (empty), which is no token; name the token, such as {_NEEDED[name]}{none}'
            )
        if token:
            declared.append((file, token))
    if len(declared) == 2 and declared[0][1] != declared[1][1]:
        (file, token), (other, another) = declared
        raise DataError(
            file, f"has {name}_token {token!r}, but {other.name} beside it has {another!r}; write the same in both"
        )
    return declared[0] if declared else None


def declared_tokens(directory: Path) -> dict[str, dict[str, Any]]:
    """The tokens that the files beside a tokenizer add to it as transformers reads them, with the fields of AddedToken.

    These are the named special tokens, `extra_special_tokens` (or, older, `additional_special_tokens`) and
    `added_tokens_decoder`.
    """
    config = read_json(directory / "tokenizer_config.json")
    decoder = config.get("added_tokens_decoder")
    sources = [config] if isinstance(decoder, dict) else [config, read_json(directory / "special_tokens_map.json")]
    tokens = list(decoder.values()) if isinstance(decoder, dict) else []
    for source in sources:
        extra = source.get("extra_special_tokens") or source.get("additional_special_tokens") or []
        tokens += extra.values() if isinstance(extra, dict) else extra
        tokens += [source.get(f"{name}_token") for name in _NAMED]
    declared: dict[str, dict[str, Any]] = {}
    for token in tokens:
        fields = {"content": token} if isinstance(token, str) else token
        if isinstance(fields, dict) and isinstance(content := fields.get("content"), str) and content:
            given = {key: fields[key] for key in _FIELDS if isinstance(fields.get(key), bool)}
            declared.setdefault(content, {"special": True, **given})
    return declared


def copy(files: dict[Path, str], directory: str | Path) -> None:
    """Copies the files that exist under their new names."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for file, name in files.items():
        destination = target / name
        if file.is_file() and file.resolve() != destination.resolve():
            shutil.copyfile(file, destination)


def made_of(*files: Path) -> dict[str, str]:
    """Identifies tokenizer.model and the tokenizer.json that was made of it."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
