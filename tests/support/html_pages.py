"""HTML pages, read strictly."""

import html.parser

VOID = {"meta", "br", "wbr", "img", "hr", "input", "link"}


class Page(html.parser.HTMLParser):
    """Elements as they open and close; raises where they do not nest."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # (element, text in it)
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text_of(self, *tags: str) -> str:
        """All text inside elements of these kinds, or of all kinds but style and script."""
        return "".join(
            piece for element, piece in self.texts if (element in tags if tags else element not in ("style", "script"))
        )
