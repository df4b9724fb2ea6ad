"""XML as stores answer: flat lists of entries, read as their bytes come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat


@dataclass(slots=True)
class Document:
    """The texts of an XML document's leaves: of each entry (elements named in `repeated`), and of all others."""

    repeated: Sequence[str] = ()
    entries: list[dict[str, str]] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    root: str = ""
    _open: dict[str, str] | None = None
    _text: list[str] = field(default_factory=list)
    _parser: expat.XMLParserType = field(default_factory=expat.ParserCreate)

    def __post_init__(self) -> None:
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text.append
        self._parser.StartDoctypeDeclHandler = _refuse_doctype

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Take the next bytes. Raises ExpatError, and ValueError for a document that defines entities."""
        self._parser.Parse(data, last)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.root = self.root or name
        self._text.clear()
        if name in self.repeated:
            self._open = {}
        elif self._open is not None and attributes.get("Encoded") == "true":
            self._open["Encoded"] = name

    def _end(self, name: str) -> None:
        if name in self.repeated and self._open is not None:
            self.entries.append(self._open)
            self._open = None
        else:
            # The first of a name: what lies deeper (an owner's, a tag's) comes after what counts.
            (self.others if self._open is None else self._open).setdefault(name, "".join(self._text))
        self._text.clear()


def _refuse_doctype(*_: object) -> NoReturn:
    raise ValueError("it has a document type")
