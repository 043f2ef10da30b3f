"""Numbers while they are being written, a character at a time: which characters may follow."""

from typing import NamedTuple, Protocol


class Bounds(NamedTuple):
    """Which values a number may take: low..high, all but one of them where `without` is set."""

    low: int
    high: int
    without: int | None = None

    def least(self, first: int, last: int, step: int = 1) -> int | None:
        """The smallest of first, first + step, ... last that is allowed, or None."""
        value = first if first >= self.low else first + -(-(self.low - first) // step) * step
        value += step if value == self.without else 0
        return value if value <= min(last, self.high) else None


class Numerals(Protocol):
    """How whole numbers 0..bins are written, each in at least one way."""

    bins: int
    characters: str
    """All that stand in numbers."""
    longest: str
    """A text that is no shorter than any number."""

    def fits(self, word: str, bounds: Bounds) -> bool:
        """Whether `word` is a number within the bounds or the beginning of one."""
        ...

    def complete(self, word: str, bounds: Bounds) -> bool:
        """Whether `word`, which must fit, is a number within the bounds as it stands."""
        ...

    def value(self, word: str) -> int:
        """The value of a complete number."""
        ...

    def rest(self, word: str, bounds: Bounds) -> str:
        """The shortest text, then the smallest number, that completes `word`, which must fit."""
        ...

    def alike(self, word: str, bounds: Bounds) -> str:
        """One word for all of equal length that may be followed by the same characters."""
        ...


class WholeNumerals:
    """Decimal whole numbers without leading zeros: 0, 7, 41."""

    characters = "0123456789"

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.longest = str(bins)

    def _least(self, word: str, bounds: Bounds) -> int | None:
        """The smallest number within the bounds that begins with `word`."""
        if word in ("", "0") and bounds.least(0, 0) is not None:
            return 0
        if word == "0":
            return None
        first, last = (int(word), int(word)) if word else (1, 9)
        while first <= bounds.high:
            least = bounds.least(first, last)
            if least is not None:
                return least
            first, last = 10 * first, 10 * last + 9
        return None

    def fits(self, word: str, bounds: Bounds) -> bool:
        """Whether the word may still become a number within the bounds."""
        return (len(word) < 2 or word[0] != "0") and self._least(word, bounds) is not None

    def complete(self, word: str, bounds: Bounds) -> bool:
        """Whether the word is a number within the bounds."""
        return bool(word) and bounds.least(int(word), int(word)) is not None

    def value(self, word: str) -> int:
        """Grid number that the word stands for."""
        return int(word)

    def rest(self, word: str, bounds: Bounds) -> str:
        """Shortest text that makes the word a number within the bounds."""
        return str(self._least(word, bounds))[len(word) :]

    def alike(self, word: str, bounds: Bounds) -> str:
        """Key of what may follow: every value has its own followers."""
        return word

    def text(self, value: int) -> str:
        """The text of a value."""
        return str(value)


class UnitNumerals:
    """Fractions of 1 with one to `decimals` digits: 0.5, 0.500, 1.0; a number counts steps of 10**-decimals."""

    characters = "0123456789."

    def __init__(self, decimals: int) -> None:
        self._decimals = decimals
        self.bins = 10**decimals
        self.longest = "0." + "0" * decimals

    def fits(self, word: str, bounds: Bounds) -> bool:
        """Whether the word may still become a number within the bounds."""
        if not word:
            return bounds.least(0, self.bins) is not None
        digits = word[2:]
        if word[1:2] not in ("", ".") or "." in digits or len(digits) > self._decimals:
            return False
        if word[0] == "1":
            return not digits.strip("0") and bounds.least(self.bins, self.bins) is not None
        step = 10 ** (self._decimals - len(digits))
        first = int(digits or "0") * step
        return word[0] == "0" and bounds.least(first, first + step - 1) is not None

    def complete(self, word: str, bounds: Bounds) -> bool:
        """Whether the word is a number within the bounds."""
        return len(word) >= 3 and bounds.least(self.value(word), self.value(word)) is not None

    def value(self, word: str) -> int:
        """Grid number that the word stands for."""
        return int(word[0] + word[2:].ljust(self._decimals, "0"))

    def rest(self, word: str, bounds: Bounds) -> str:
        """Shortest text that makes the word a number within the bounds."""
        if len(word) < 2:
            begun = (word or ("0" if self.fits("0", bounds) else "1")) + "."
            return begun[len(word) :] + self.rest(begun, bounds)
        if self.complete(word, bounds):
            return ""
        if word[0] == "1":
            return "0"
        places = range(len(word) - 1, self._decimals + 1)
        return next(digits for n in places if (digits := self._with_digits(word, n, bounds)))

    def _with_digits(self, word: str, num: int, bounds: Bounds) -> str:
        """The digits that make of a word below 1 the smallest number within the bounds of `num` digits, or ""."""
        digits = word[2:]
        first = int(digits or "0") * 10 ** (self._decimals - len(digits))
        last = first + 10 ** (self._decimals - len(digits)) - 1
        least = bounds.least(first, last, 10 ** (self._decimals - num))
        return "" if least is None else f"{least:0{self._decimals}d}"[len(digits) : num]

    def alike(self, word: str, bounds: Bounds) -> str:
        """Key of what may follow: below 1, and with no value left out, only the length matters."""
        free = word[:1] == "0" and bounds == Bounds(0, self.bins)
        return word[:2] + "0" * len(word[2:]) if free else word

    def text(self, value: int) -> str:
        """The shortest text of a value."""
        return self.rest("", Bounds(value, value))
