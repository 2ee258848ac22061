"""From what the user gave, plain text or Markdown, to a text with its headings and given pronunciations."""

import dataclasses
import html.parser
import re
from collections.abc import Callable, Iterator

from networks.kokoro.lexicon import Lexicon, Pronunciation, take_inline
from networks.kokoro.text import Paragraph, clean, paragraphs

_FRONT_MATTER = re.compile(r"\A---\s*\n.*?\n(?:---|\.\.\.)\s*(?:\n|\Z)", re.DOTALL)
_BLOCK = re.compile(r"\n\n")


@dataclasses.dataclass
class Document:
    """A text as it is spoken. `headings` are positions at which a heading begins; `blocks`: blank lines end paragraphs,
    single line feeds do not."""

    text: str
    pronunciations: list[Pronunciation]
    headings: frozenset[int] = frozenset()
    blocks: bool = False

    def paragraphs(self, pattern: re.Pattern | None = None) -> Iterator[Paragraph]:
        """Paragraphs in order, by `pattern` where one is given."""
        for paragraph in paragraphs(self.text, pattern or (_BLOCK if self.blocks else None)):
            heading = paragraph.heading or paragraph.start in self.headings
            yield dataclasses.replace(paragraph, heading=heading)


def read_document(
    raw: str, markdown: bool, vocab: dict[str, int], lexicon: Lexicon | None, warn: Callable[[str], None]
) -> Document:
    """Clean a text and take the markup out of it. Raises InvalidInputError for what is no text."""
    blocks = list(markdown_blocks(raw, warn)) if markdown else [(raw, False)]
    text, found, headings = "", [], set()
    for content, heading in blocks:
        plain, inline = take_inline(clean(content), vocab, warn)
        if markdown:
            plain, inline = plain.replace("\n\n", "\n "), inline  # of equal length: positions stay
        if heading:
            headings.add(len(text))
        found += [dataclasses.replace(p, start=p.start + len(text), end=p.end + len(text)) for p in inline]
        text += plain + ("\n\n" if markdown else "")
    if lexicon is not None:
        found = lexicon.find(text, found)
    return Document(text, found, frozenset(headings), blocks=markdown)


def markdown_blocks(raw: str, warn: Callable[[str], None]) -> Iterator[tuple[str, bool]]:
    """Text of headings, paragraphs, list items, table rows and code, in order, and whether it is a heading.

    Of links the text stays, of pictures the description, of HTML the text; front matter is left out, and `warn` hears of it.
    """
    from markdown_it import MarkdownIt

    if match := _FRONT_MATTER.match(raw):
        warn(f"front matter of {len(match[0])} characters is not spoken")
        raw = raw[match.end() :]
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    # Phonemes of `[word](/phonemes/)` must not be percent-encoded.
    parser.normalizeLink = lambda url: url
    row: list[str] | None = None
    heading = False
    for token in parser.parse(raw):
        if token.type == "heading_open":
            heading = True
        elif token.type == "heading_close":
            heading = False
        elif token.type == "tr_open":
            row = []
        elif token.type == "tr_close":
            yield ", ".join(cell for cell in row if cell), False
            row = None
        elif token.type == "inline":
            content = _inline_text(token.children or [])
            if row is not None:
                row.append(content)
            else:
                yield content, heading
        elif token.type in ("fence", "code_block"):
            yield token.content, False
        elif token.type == "html_block":
            yield _html_text(token.content), False


def _inline_text(children: list) -> str:
    text, targets = "", []
    for token in children:
        if token.type in ("text", "code_inline"):
            text += token.content
        elif token.type in ("softbreak", "hardbreak"):
            text += " "
        elif token.type == "image":
            text += token.content
        elif token.type == "link_open":
            href = str(token.attrs.get("href", ""))
            targets.append((href, len(text)))
        elif token.type == "link_close":
            href, start = targets.pop()
            if len(href) > 2 and href.startswith("/") and href.endswith("/"):
                text = f"{text[:start]}[{text[start:]}]({href})"
    return text


class _Text(html.parser.HTMLParser):
    def __init__(self, content: str):
        super().__init__()
        self.parts: list[str] = []
        self.feed(content)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def _html_text(content: str) -> str:
    return "".join(_Text(content).parts)
