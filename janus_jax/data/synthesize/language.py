"""Whether a text is English: by its script, and by the most frequent words of languages that share that script.

A heuristic, not a trained model. It is made for filtering: texts without words of any of the lists, such as code or
formulas, and texts of a few words pass.
"""

import re
import unicodedata

_WORDS = {
    "en": "the of and to in is that it for was on are with as his they be at this have from or had by but what some we "
    "can out other were all there when your how said an each she which do their if will way about many then them "
    "would like so these her make has him into my you i not more who does",
    "de": "der die und das nicht ein eine ich ist mit sich auf für von dem den des auch wie im zu es werden wird oder "
    "aber wenn sie wir nach bei einer zum kann über sind noch nur aus einen wurde",
    "fr": "le la les et des une est pas que qui dans pour sur avec plus ne ce il elle nous vous je au aux du par cette "
    "mais ou son ses être sont comme tout fait leur avez quel quelle",
    "es": "el la los las y que de en un una es por con para no se lo como más pero sus le ya o este sí porque esta "
    "entre cuando muy sin sobre también me hasta hay donde quien desde todo del al qué cómo",
    "it": "il la le di che e un una per non con sono si da come anche più ma nel della dei delle gli questo lo alla "
    "quando se ho io cosa perché essere molto hanno",
    "pt": "o os as de que e do da em um uma para com não por mais dos como mas foi ao ele das tem à seu sua ou ser "
    "quando muito há nos já está eu também só pelo pela você são",
    "nl": "de het een en van ik te dat die in is niet op zijn aan met als voor er maar om hem dan zou of wat mijn men "
    "dit zo door over ze zich bij ook tot je naar heb hoe",
    "sv": "och att det som en på är av för med till den har de inte om ett han men var jag från vi så kan när hur "
    "också eller ska",
    "pl": "i w nie na się z do to że jest o jak ale po co tak za od przez dla czy być już tylko jego ich może",
    "tr": "ve bir bu için da de ile ne gibi daha çok ama olarak var en kadar olan değil",
    "id": "yang dan di dengan untuk ini itu dari dalam tidak akan pada juga ke karena ada saya bisa atau apa",
    "vi": "và của là có không được một trong cho các với để này người những đã như khi",
}
_LISTS = {name: frozenset(words.split()) for name, words in _WORDS.items()}
_OTHER_SCRIPT = 0.3
"""Share of letters outside Latin script from which a text is not English."""
_LEAST = 3
"""Frequent words that another language needs to outweigh English."""

LANGUAGES = re.compile(
    r"\b(translat\w*|german|french|spanish|italian|portuguese|dutch|swedish|polish|turkish|indonesian|vietnamese|"
    r"russian|chinese|mandarin|japanese|korean|arabic|hindi|hebrew|greek|latin|ukrainian|thai|persian)\b",
    re.IGNORECASE,
)
"""In an instruction that may ask for another language."""


def is_english(text: str) -> bool:
    """Whether a text is English, or cannot be told to be anything else."""
    letters = [one for one in text[:20_000] if one.isalpha()]
    if letters:
        other = sum(1 for one in letters if ord(one) > 0x24F and not _is_latin(one))
        if other / len(letters) > _OTHER_SCRIPT:
            return False
    words = re.findall(r"[^\W\d_]+", text[:20_000].casefold())
    counts = {name: sum(word in frequent for word in words) for name, frequent in _LISTS.items()}
    best = max(counts, key=lambda name: (counts[name], name == "en"))
    return best == "en" or counts[best] < _LEAST or counts[best] < 1.5 * counts["en"]


def _is_latin(character: str) -> bool:
    # mathematical letters and full-width forms are not another script
    return unicodedata.normalize("NFKC", character)[:1].isascii() or "LATIN" in unicodedata.name(character, "")
