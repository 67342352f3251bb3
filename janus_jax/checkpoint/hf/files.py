"""The files of a Hugging Face directory: which are damaged, which travel, and why the others are left out."""

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path

from janus_jax.errors import ConversionError
from janus_jax.storage.local import Place

_POINTER = b"version https://git-lfs.github.com/spec/"
_MARKUP = (b"<!doctype html", b"<html", b"<?xml")
_UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2", ".tmp")

TEMPLATES = "additional_chat_templates"
"""Folder of the chat templates that a tokenizer has beside its default one, as NAME.jinja."""
_TEXTS = ("license*", "licence*", "notice*", "copying*", "use_policy*", f"{TEMPLATES}/*.jinja")
ADAPTER = "adapter_config.json"

_REASONS = {
    "a download that did not finish": [f"*{ending}" for ending in _UNFINISHED],
    "an adapter; not merged into the weights": ["adapter_*"],
    "settings of an image or audio processor; only text is read": [
        "preprocessor_config.json",
        "processor_config.json",
        "image_processor_config.json",
        "video_preprocessor_config.json",
        "chat_template.json",
    ],
    "written for a vocabulary or templates of Mistral's own library": ["tekken.json", "tokenizer.model.v*"],
    "weights in Mistral's or Meta's own format": ["consolidated*", "params.json"],
    "of a tokenizer without tokenizer.json and tokenizer.model, or not used by it": [
        *("vocab.*", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("chat_template.jinja", "*.tiktoken", "spiece.model"),
    ],
    "state of the program that trained the model": [
        "optimizer*",
        "scheduler*",
        "rng_state*",
        "trainer_state.json",
        "training_args*",
        "scaler.pt",
        "zero_to_fp32.py",
        "latest",
    ],
    "code; is never run": ["*.py"],
    "weights in another format; the safetensors files are read": [
        *("pytorch_model*", "*.bin", "*.pt", "*.pth", "*.gguf", "*.ggml", "*.onnx", "*.msgpack", "*.h5", "*.ckpt"),
        *("tf_model*", "flax_model*", "rust_model*", "*.npz"),
    ],
    "not listed in the index of the weights that are read": ["*.safetensors", "*.safetensors.index.json"],
    "housekeeping of git or of a download": [".git", ".gitattributes", ".gitignore", ".cache", ".huggingface"],
}


def damage(file: Path) -> str | None:
    """What is in the place of a file that cannot be read as what its name says; None if that is not known."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(256)
    except OSError:
        return None
    if not start:
        return "is empty (0 bytes); download it again"
    if start.startswith(_POINTER):
        return "is a git-lfs pointer, not the file itself; run `git lfs pull` in its directory"
    if start.lstrip().lower().startswith(_MARKUP):
        return "holds a web page, perhaps the error page of a failed download; download it again"
    return None


def require_whole(directory: Path, names: Iterable[str]) -> None:
    """Raises ConversionError if one of these files exists and is empty, a git-lfs pointer or a web page."""
    for name in names:
        if (directory / name).is_file() and (reason := damage(directory / name)) is not None:
            raise ConversionError(directory / name, reason)


def refuse_adapter(directory: Place) -> None:
    """Raises ConversionError for the directory of an adapter, with or without other weights beside it."""
    if (directory / ADAPTER).exists():
        raise ConversionError(
            directory / ADAPTER,
            "this directory is an adapter (LoRA) that is not merged; merge it into its base model first (peft: "
            "merge_and_unload, then save_pretrained), or remove this file if the weights beside it are merged",
        )


def unfinished(file: Path) -> str:
    """A hint for a missing file whose download did not finish; empty if nothing points at that."""
    for ending in _UNFINISHED:
        if file.with_name(f"{file.name}{ending}").exists():
            return f"; {file.name}{ending} is a download that did not finish"
    cache = file.parent / ".cache" / "huggingface" / "download"
    if next(cache.glob(f"{file.name}*.incomplete"), None) or next(cache.glob("*.incomplete"), None):
        return f"; {cache} holds a download that did not finish"
    return ""


def is_text(name: str) -> bool:
    """Whether a file travels as it is: a licence, a notice or an additional chat template."""
    if name.endswith(("/", *_UNFINISHED)):
        return False
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in _TEXTS)


def read_texts(directory: Path) -> dict[str, str]:
    """Name and text of the files that travel as they are. Bytes that are not UTF-8 become lone surrogates."""
    files = [*directory.glob("*"), *(directory / TEMPLATES).glob("*")]
    names = sorted(file.relative_to(directory).as_posix() for file in files if file.is_file())
    return {name: (directory / name).read_bytes().decode("utf-8", "surrogateescape") for name in names if is_text(name)}


def write_texts(directory: Path, texts: Mapping[str, str]) -> None:
    """Writes what `read_texts` read, byte for byte."""
    for name, text in texts.items():
        file = directory / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text.encode("utf-8", "surrogateescape"))


def left_out(directory: Place, used: Iterable[str]) -> dict[str, str]:
    """The reason for each name in a directory that is neither read nor copied. Names of directories end in a slash.

    Args:
        used: names that are read or copied, beside those that `read_texts` reads.
    """
    names = []
    for child in directory.iterdir():
        if not child.is_dir():
            names.append(child.name)
        elif child.name == TEMPLATES:
            names += [f"{TEMPLATES}/{inner.name}{'/' if inner.is_dir() else ''}" for inner in child.iterdir()]
        else:
            names.append(f"{child.name}/")
    used = frozenset(used)
    return {name: _reason(name) for name in sorted(names) if name not in used and not is_text(name)}


def _reason(name: str) -> str:
    for reason, patterns in _REASONS.items():
        if any(fnmatch.fnmatchcase(name.removesuffix("/"), pattern) for pattern in patterns):
            return reason
    return "a directory; directories are not read" if name.endswith("/") else "not a file of a text model"
