"""Print an answer in a terminal while it is generated."""

from __future__ import annotations

from sailkit.asking.report import head, short_report, tail
from sailkit.asking.results import Answer
from sailkit.console import console
from sailkit.rendering import terminal
from sailkit.rendering.model import Report, short
from sailkit.text import clean


class GrowingText:
    """Turns ever longer versions of an untrusted text into the pieces to print.

    The pieces are clean, and together they are the cleaned text, however it was cut.
    """

    def __init__(self, *, cleaned: bool = True) -> None:
        """Begin a text.

        Args:
            cleaned: Replace unsafe characters; not needed where the pieces are encoded, as in JSON.
        """
        self.printed = ""
        self._cleaned = cleaned

    def piece(self, text: str, last: bool = False) -> str:
        """The part of a text that was not printed yet.

        Args:
            text: The text so far.
            last: Whether it is complete. Otherwise an end that may still change is held back: half of a line break, or
                a character whose bytes are incomplete.
        """
        text = text if last else text.rstrip("\r\ufffd")
        cleaned = clean(text, layout=True) if self._cleaned else text
        if not cleaned.startswith(self.printed):  # such as a thought that turns out not to be the answer
            if not last:
                return ""
            self.printed = ""
            cleaned = f"\n{cleaned}"
        piece = cleaned[len(self.printed) :]
        self.printed = cleaned
        return piece


class LiveAnswer:
    """Prints the judged search results, then the answer as it grows; pass it as `stream` to `ask`."""

    def __init__(self) -> None:
        self._console = console()  # before anything redirects standard output
        self._text = GrowingText()
        self._begun = False

    def __call__(self, answer: Answer) -> None:
        """Print what is new in an answer."""
        if not self._begun:
            self._begun = True
            terminal.write(short("", "", *head(answer)), self._console)
            self._print("Answer: ")
        self._print(self._text.piece(answer.answer))

    def finish(self, answer: Answer) -> Report:
        """Print the rest of the text, and return what remains of the report."""
        if not self._begun:
            return short_report(answer)
        self._print(self._text.piece(answer.answer, last=True) + "\n")
        return short("", "", *tail(answer))

    def __enter__(self) -> LiveAnswer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind and self._begun:
            self._print("\n")  # the message about the error begins on a new line

    def _print(self, text: str) -> None:
        self._console.print(text, end="", markup=False, soft_wrap=True)
        self._console.file.flush()
