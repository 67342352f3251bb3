"""Trained ids are served ids: templates x tokenizer families x BOS x kinds, read by transformers and sentencepiece."""

import json
import random

import pytest

from janus_jax.data.boundary import encode_example
from janus_jax.data.schema import Record
from janus_jax.errors import DataError
from janus_jax.text.chat_format import ChatFormat, stand_in
from janus_jax.text.served import Conversation, check_built, require_servable
from janus_jax.text.template import CHATML, MISTRAL_INST, PLAIN, TEMPLATES
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support.sentencepieces import trained
from tests.support.tokenizers import WORDS, byte_level, metaspace


def texts(count: int = 60) -> list[str]:
    """Texts of words, white space and odd characters, the same in every run."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))).strip() or "x" for _ in range(count)]


def sentencepiece_directory(directory, **options):
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(trained(**options))
    return directory


CHAT_MARKS = ("<|im_start|>", "<|im_end|>")
FAMILIES = {
    "embedded": lambda _: None,
    "byte-level": byte_level,
    "byte-level with BOS": lambda directory: byte_level(directory, bos="<s>"),
    "byte-level, add_bos_token false": lambda d: byte_level(d, bos="<s>", config={"add_bos_token": False}),
    "byte-level with [INST]": lambda d: byte_level(d, ("[INST]", "[/INST]"), bos="<s>"),
    "byte-level with ChatML": lambda d: byte_level(d, CHAT_MARKS),
    "ChatML whose BOS is a mark": lambda d: byte_level(d, CHAT_MARKS, bos="<|im_start|>"),
    "metaspace first": lambda d: metaspace(d, "first"),
    "metaspace always": lambda d: metaspace(d, "always"),
    "metaspace never": lambda d: metaspace(d, "never"),
    "sentencepiece bpe": lambda d: sentencepiece_directory(d, normalization_rule_name="identity"),
    "sentencepiece defaults": lambda d: sentencepiece_directory(d),
    "no dummy prefix": lambda d: sentencepiece_directory(d, add_dummy_prefix=False),
    "keeps extra spaces": lambda d: sentencepiece_directory(d, remove_extra_whitespaces=False),
    "unigram": lambda d: sentencepiece_directory(d, model_type="unigram"),
    "user-defined marks": lambda d: sentencepiece_directory(d, user_defined_symbols=list(CHAT_MARKS)),
    "control marks": lambda d: sentencepiece_directory(d, control_symbols=["[INST]", "[/INST]"]),
    "no BOS": lambda d: sentencepiece_directory(d, bos_id=-1),
}


def conversations(chat, records, kind):
    for number, record in enumerate(records):
        prompt, *responses = (part.tolist() for part in encode_example(chat, record, kind) if part is not None)
        answers = [text for text in (record.chosen, record.rejected) if text is not None]
        yield Conversation(f"row {number}", record.system, record.prompt, answers, prompt, responses)


WAYS = [(template, boundary) for template in TEMPLATES for boundary in ("separate", "joint")]
MARKED = {
    "byte-level with [INST]": "mistral-inst",
    "ChatML whose BOS is a mark": "chatml",
    "user-defined marks": "chatml",
}
READ = {family: {(MARKED.get(family, [*TEMPLATES][i % 3]), WAYS[i % 2][1])} for i, family in enumerate(FAMILIES)}
"""Ways of each family; transformers takes a second or two to read a family in another way, so the rest is slow."""
READ["embedded"] = {*WAYS}
READ["byte-level with ChatML"] |= {("plain", "joint")}


@pytest.fixture(scope="module")
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(FAMILIES[request.param](tmp_path_factory.mktemp("family") / "tokenizer"))


@pytest.mark.parametrize(
    ("tokenizer", "template", "boundary"),
    [
        pytest.param(family, template, boundary, marks=[] if (template, boundary) in READ[family] else pytest.mark.slow)
        for family in FAMILIES
        for template, boundary in WAYS
    ],
    indirect=["tokenizer"],
)
def test_transformers_reads_what_was_trained(tokenizer, template, boundary):
    template = TEMPLATES[template]
    chat = ChatFormat(template, tokenizer, boundary=boundary)
    some = texts()
    records = [Record(some[i] if i % 2 else "", some[i + 1], some[i + 2], some[i + 3]) for i in range(0, 56, 2)]
    check = check_built(chat, conversations(chat, records, "dpo"), whole=False)
    assert (check.checked, check.control_text) == (28, 0)
    if boundary == "joint":
        assert check.merged == 0
    if any(mark in template.marks and tokenizer.control_id(mark) is not None for mark in (*CHAT_MARKS, "[INST]")):
        assert set(chat.marks) == set(template.marks)


@pytest.mark.parametrize("family", ["byte-level with ChatML", "user-defined marks", "embedded"])
def test_user_text_never_becomes_a_control_token(tmp_path, family):
    tokenizer = load_tokenizer(FAMILIES[family](tmp_path / "tokenizer"))
    chat = ChatFormat(CHATML, tokenizer)
    marks = [tokenizer.control_id(mark) for mark in chat.marks]
    spelled = Record("<|im_start|>", "</s> <|im_end|>", "a<|im_end|>b")
    plain = Record("x", "y", "z")
    counts = [
        [sum(part.tolist().count(mark) for part in encode_example(chat, record, "sft")[:2]) for mark in marks]
        for record in (spelled, plain)
    ]
    assert counts[0] == counts[1]
    check = check_built(chat, conversations(chat, [spelled, plain], "sft"), whole=True)
    assert (check.checked, check.control_text) == (2, 1)


def test_the_control_tokens_of_a_template_are_one_id_each(tmp_path):
    tokenizer = load_tokenizer(FAMILIES["byte-level with ChatML"](tmp_path / "tokenizer"))
    chat = ChatFormat(CHATML, tokenizer)
    start, end = (tokenizer.control_id(mark) for mark in CHAT_MARKS)
    ids = chat.encode_prompt("Be brief.", "Why?")
    assert (ids.count(start), ids.count(end)) == (3, 2)
    assert chat.encode_response("So.") == [*tokenizer.encode("So."), end]  # <|im_end|> is EOS, and stands once


def test_a_conversation_of_several_turns_is_rendered(tmp_path):
    from transformers import AutoTokenizer

    save_hf_tokenizer(load_tokenizer(), tmp_path, chat_template=ChatFormat(CHATML, load_tokenizer()).chat_template)
    apply = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    first = "<s><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n b<|im_end|></s>\n"
    assert apply(turns[:3], tokenize=False, add_generation_prompt=True) == (
        first + "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )
    for bad in (turns[1:], [*turns, {"role": "system", "content": "x"}], [{"role": "system", "content": "x"}]):
        with pytest.raises(Exception, match=r"begins with system|roles are"):
            apply(bad, tokenize=False)


def test_prompt_and_response_that_merge_are_counted_and_refused_for_reward_models(tmp_path):
    tokenizer = load_tokenizer(FAMILIES["byte-level"](tmp_path / "tokenizer"))
    chat = ChatFormat(PLAIN, tokenizer)
    record = Record("", "the qui", "ck brown")
    assert tokenizer.encode("the quick brown") != [*tokenizer.encode("the qui"), *tokenizer.encode("ck brown")]
    check = check_built(chat, conversations(chat, [record], "sft"), whole=False)
    assert check.merged == 1 and check.example is not None and check.example[0] == "row 0"
    with pytest.raises(DataError, match=r"row 0: .*build with --boundary joint"):
        check_built(chat, conversations(chat, [record], "sft"), whole=True)


def test_other_ids_than_those_of_training_are_shown_side_by_side():
    chat = ChatFormat(MISTRAL_INST, load_tokenizer())
    (one,) = conversations(chat, [Record("", "Why?", "So.")], "sft")
    one.prompt_ids[3] += 1
    with pytest.raises(DataError, match=r"row 0: a server would not read this prompt .*; trained .*; served "):
        check_built(chat, [one], whole=False)


def test_a_text_with_the_stand_in_of_a_mark_is_refused(tmp_path):
    chat = ChatFormat(CHATML, load_tokenizer(FAMILIES["byte-level with ChatML"](tmp_path / "tokenizer")))
    with pytest.raises(DataError, match="noncharacters"):
        chat.encode_prompt("", f"a{stand_in(0)}b")


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
def test_no_text_can_hold_the_stand_in_of_any_control_token(tmp_path, template, number):
    tokenizer = load_tokenizer(FAMILIES["byte-level with BOS"](tmp_path / "tokenizer"))
    chat = ChatFormat(template, tokenizer)
    ends = (tokenizer.bos_id, tokenizer.eos_id)
    try:
        ids = chat.encode_prompt("", f"hi {stand_in(number)} x")
    except DataError:
        return
    assert [ids.count(end) for end in ends] == [1, 0]


def test_special_tokens_in_the_vocabulary_of_a_unigram_model_stay_text(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>", "<mask>")]
    pieces += [(piece, -1.0 - i) for i, piece in enumerate(["▁", *"<>/admnpsukhtew"])]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "unk_token": "<unk>"}')
    read = load_tokenizer(tmp_path)
    assert not {0, 1, 2, 3} & set(read.encode("<pad> <mask> </s>"))
    assert read.encode("the") == Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("the").ids


def test_a_difference_far_from_the_boundary_is_no_merge():
    chat = ChatFormat(PLAIN, load_tokenizer())
    (one,) = conversations(chat, [Record("", "Why?", "So " * 40 + "it is.")], "sft")
    one.response_ids[0][30] += 1
    with pytest.raises(DataError, match="a server would not read this conversation"):
        check_built(chat, [one], whole=False)


def test_marks_that_merges_make_too_are_control_tokens(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(
        ["[INST] [/INST] why </s> <s>"] * 20, trainers.BpeTrainer(vocab_size=200, show_progress=False)
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "[INST]", "[/INST]"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    read = load_tokenizer(tmp_path)
    assert ChatFormat(MISTRAL_INST, read).encode_prompt("", "why").count(read.control_id("[INST]")) == 1
    assert read.control_id("[INST]") not in read.encode("[INST]")


def test_what_the_last_call_of_a_tokenizer_asked_for_is_no_part_of_it(tmp_path):
    from tokenizers import Tokenizer

    directory = byte_level(tmp_path / "tokenizer", bos="<s>")
    saved = Tokenizer.from_file(str(directory / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.enable_padding(length=64)
    saved.save(str(directory / "tokenizer.json"))
    chat = ChatFormat(MISTRAL_INST, load_tokenizer(directory))
    records = [Record("", "the quick brown fox", "don't"), Record("", "the </s> fox", "don't")]
    assert check_built(chat, conversations(chat, records, "sft"), whole=True).checked == 2


def test_a_setting_of_the_config_is_refused_by_name_though_the_ids_of_training_are_the_same(tmp_path):
    record = Record("", "Why?", "So.")
    for number, config in enumerate([{}, {"split_special_tokens": True}]):
        directory = byte_level(tmp_path / str(number), bos="<s>", config=config)
        chat = ChatFormat(MISTRAL_INST, load_tokenizer(directory))
        if not config:
            check_built(chat, conversations(chat, [record], "sft"), whole=True)
            continue
        with pytest.raises(DataError, match=r"reads it as TokenizersBackend with split_special_tokens: true\. If "):
            check_built(chat, conversations(chat, [record], "sft"), whole=True)


def flagged(directory, special, normalizer=None, **flags):
    """A byte-level BPE whose control tokens all have the flags of AddedToken."""
    byte_level(directory, special, bos="<s>")
    content = json.loads((directory / "tokenizer.json").read_text()) | {"normalizer": normalizer}
    for token in content["added_tokens"]:
        token |= flags
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return load_tokenizer(directory)


def test_white_space_that_a_mark_strips_is_a_merge_however_long(tmp_path):
    chat = ChatFormat(MISTRAL_INST, flagged(tmp_path / "tokenizer", ["[INST]", "[/INST]"], rstrip=True))
    record = Record("", "Why?", "\t \n" * 40 + "So.")
    assert check_built(chat, conversations(chat, [record], "sft"), whole=False).merged == 1


def test_a_text_that_the_normalizer_makes_a_control_token_counts_as_one(tmp_path):
    lower = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    tokenizer = flagged(tmp_path / "tokenizer", ["[INST]", "[/INST]"], lower, normalized=True)
    chat = ChatFormat(MISTRAL_INST, tokenizer)
    records = [Record("", "Why " * 30 + text, "So.") for text in ("[inst]", "\uff1cs\uff1e", "[Inst")]
    check = check_built(chat, conversations(chat, records, "sft"), whole=True)
    assert (check.checked, check.control_text) == (3, 2)


@pytest.mark.parametrize("template", [CHATML, PLAIN], ids=["marks", "ends"])
def test_control_tokens_that_are_text_beside_a_letter_are_refused(tmp_path, template):
    chat = ChatFormat(template, flagged(tmp_path / "tokenizer", CHAT_MARKS, single_word=True))
    with pytest.raises(DataError, match=r"tokenizer.json: '.*' has single_word: true, so beside a letter"):
        require_servable(chat)


@pytest.mark.parametrize("named", ["LlamaTokenizer", "GemmaTokenizer", "Qwen2TokenizerFast", None])
@pytest.mark.parametrize("family", ["embedded", "metaspace always", "unigram", "byte-level with BOS"])
def test_what_is_written_reads_the_same_without_a_config_json(tmp_path, family, named):
    """As AutoTokenizer reads DATA/tokenizer and RUN/tokenizer, whatever class their source names."""
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(FAMILIES[family](tmp_path / "tokenizer"))
    tokenizer.save(tmp_path / "named")
    config = tmp_path / "named" / "tokenizer_config.json"
    written = json.loads(config.read_text()) if config.is_file() else {}
    config.write_text(json.dumps({**written, "tokenizer_class": named} if named else written))
    tokenizer = load_tokenizer(tmp_path / "named")
    save_hf_tokenizer(tokenizer, tmp_path / "run")
    assert load_tokenizer(tmp_path / "run").fingerprint == tokenizer.fingerprint
    server = AutoTokenizer.from_pretrained(tmp_path / "run")
    # transformers 4 has other defaults for the plain class: token_type_ids, which generate refuses, and the side
    config = json.loads((tmp_path / "run" / "tokenizer_config.json").read_text())
    if named or tokenizer.ignores_control_tokens:
        assert config["model_input_names"] == ["input_ids", "attention_mask"]
    if named and not tokenizer.ignores_control_tokens:
        assert config["padding_side"] == ("right" if "Qwen2" in named else "left")
    for text in (*texts(20), "Hi", " lead", "    if a[i] == 1"):
        assert server(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        if tokenizer.ignores_control_tokens:  # behind a control token a text is read as at the start
            read = server(f"{server.eos_token}{text}", add_special_tokens=False)["input_ids"]
            assert read == [tokenizer.eos_id, *tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("place", "normalized"),
    [
        ("tokenizer.json", ("</s>",)),
        ("tokenizer_config.json", ("<s>", "</s>")),
        ("tokenizer.json", ("<unk>",)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("tokenizer.json", ("<s>", "</s>")),
                ("tokenizer.json", ()),
                ("tokenizer_config.json", ("</s>",)),
                ("tokenizer_config.json", ("<unk>",)),
                ("tokenizer_config.json", ()),
            )
        ),
    ],
)
def test_ends_that_a_normalizer_hides_are_refused_with_the_key_to_change(tmp_path, place, normalized):
    """Old conversions of Llama 1 have `normalized: true` and a normalizer that puts a space before every text."""
    from transformers import AutoTokenizer

    save_hf_tokenizer(load_tokenizer(), tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    flags = {one["content"]: one | {"normalized": one["content"] in normalized} for one in content["added_tokens"]}
    if place == "tokenizer.json":
        content["added_tokens"] = list(flags.values())
    else:
        config["added_tokens_decoder"] = {one.pop("id"): one for one in (dict(flag) for flag in flags.values())}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    chat = ChatFormat(MISTRAL_INST, load_tokenizer(tmp_path))
    read = AutoTokenizer.from_pretrained(tmp_path)("Yes</s>", add_special_tokens=False)["input_ids"]
    assert (read[-1] != chat.tokenizer.eos_id) == ("</s>" in normalized)
    if "</s>" not in normalized:
        require_servable(chat)
        return
    with pytest.raises(DataError, match=f"'{normalized[0]}' has normalized: true, .* set normalized: false for it in"):
        require_servable(chat)


def test_a_regex_that_transformers_replaces_beside_a_config_json_is_refused(tmp_path, monkeypatch):
    """It does so for vocabularies of more than 100,000 tokens."""
    path = byte_level(tmp_path / "tokenizer", config={"fix_mistral_regex": True}) / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"unused {number}": len(vocabulary) + number for number in range(100_000)}
    path.write_text(json.dumps(content))
    chat = ChatFormat(MISTRAL_INST, load_tokenizer(tmp_path / "tokenizer"))
    monkeypatch.setattr("janus_jax.text.served.sampled_corpus", lambda *_: ["don't 3.14 x*2"])
    with pytest.raises(DataError, match=r"with fix_mistral_regex: true\. If tokenizer_config.json says so, remove"):
        require_servable(chat)
