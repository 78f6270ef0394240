"""Small whole numbers as an arithmetic code that learns how they are spread.

Differences between two versions of a quantised tensor are mostly 0, 1 or -1, more of them where the network learned more.
Each number is told by decisions between two: is a whole block zero, is this number, its sign, the place of its highest
bit, the bits below. For each decision a probability is kept, by what came shortly before, and moved towards what
happened; a decision costs as many bits as it surprises. Reader and writer move the same probabilities in whole numbers,
so that every machine reads the same.

Sources: G. N. N. Martin, "Range encoding: an algorithm for removing redundancy from a digitised message" (1979), in the
binary form that LZMA uses; zero flag, sign, exponent and mantissa are those of Exp-Golomb codes.
"""

from __future__ import annotations

from typing import Final, final

from edgestill.core.errors import PatchError

BLOCK: Final = 16
"""Numbers that are told to be all zero by one decision."""
MOST_BITS: Final = 32
"""Of a number, its sign included: the magnitude of one of so many bits is at most 2^(bits - 1)."""

_RANGE: Final = 1 << 30
"""At the start; with this much, a number of Python's has one digit, and is fast."""
_LEAST: Final = 1 << 22
_ONE: Final = 14
"""Bits of a probability."""
_RATES: Final = tuple(int(65_536 / (seen + 1.5)) for seen in range(32))
"""How far a probability moves, in 65,536ths, by how often it was asked: first the mean, then one that forgets."""
_OLD: Final = len(_RATES) - 1
_TREE: Final = 3
"""So many bits below the highest have probabilities; further ones are as good as random."""

_ZERO: Final = 2  # the slots before it are those of blocks
_SIGN: Final = _ZERO + 9
_EXPONENT: Final = _SIGN + 9
_MANTISSA: Final = _EXPONENT + MOST_BITS
_SLOTS: Final = _MANTISSA + (MOST_BITS << _TREE)


@final
class Odds:
    """The probability of yes, for each kind of decision, and how often it was asked."""

    __slots__ = ("chance", "seen")

    def __init__(self) -> None:
        self.chance = [1 << (_ONE - 1)] * _SLOTS
        self.seen = [0] * _SLOTS

    def learn(self, slot: int, *, yes: bool) -> None:
        """Moves a probability towards what was decided; `Reader` has the same in line, where devices spend their time."""
        seen, chance = self.seen[slot], self.chance[slot]
        if yes:
            self.chance[slot] = chance + (((1 << _ONE) - chance) * _RATES[seen] >> 16)
        else:
            self.chance[slot] = chance - (chance * _RATES[seen] >> 16)
        if seen < _OLD:
            self.seen[slot] = seen + 1


class Trail:
    """What came shortly before, within one sequence.

    Attributes:
        empty: whether the last block was all zero.
        activity: how large the last few numbers were.
        signs: of the last two that were not zero: none, plus or minus, in base 3.
    """

    __slots__ = ("activity", "empty", "signs")

    def __init__(self) -> None:
        self.empty = False
        self.activity = 0
        self.signs = 0

    def follow(self, number: int) -> None:
        """Goes past a number."""
        size = abs(number)
        self.activity += ((size if size < 16 else 15) << 4) - self.activity >> 2
        if number:
            self.signs = self.signs % 3 * 3 + (2 if number < 0 else 1)


@final
class Writer:
    """Makes the code."""

    def __init__(self) -> None:
        self._low = 0
        self._range = _RANGE
        self._out = bytearray()

    def numbers(self, numbers: list[int], odds: Odds, bits: int = MOST_BITS) -> None:
        """Appends a sequence of numbers of so many bits; the reader must know both counts."""
        trail = Trail()
        for start in range(0, len(numbers), BLOCK):
            block = numbers[start : start + BLOCK]
            empty = not any(block)
            self._bit(trail.empty, odds, yes=empty)
            trail.empty = empty
            if empty:
                trail.activity = 0
                continue
            told = False
            for left, number in zip(range(len(block) - 1, -1, -1), block, strict=True):
                if told or left:  # else it is known to be what makes the block one that is not empty
                    self._bit(_ZERO + trail.activity.bit_length(), odds, yes=number != 0)
                if number:
                    told = True
                    self._nonzero(number, trail.signs, odds, bits)
                trail.follow(number)

    def _nonzero(self, number: int, signs: int, odds: Odds, bits: int) -> None:
        self._bit(_SIGN + signs, odds, yes=number < 0)
        size = abs(number)
        exponent = size.bit_length() - 1
        for step in range(exponent):
            self._bit(_EXPONENT + step, odds, yes=True)
        if exponent < bits - 1:
            self._bit(_EXPONENT + exponent, odds, yes=False)
        node = 1
        for place in range(exponent - 1, -1, -1):
            bit = size >> place & 1
            if node >> _TREE:
                self._even(bit)
            else:
                self._bit(_MANTISSA + (exponent << _TREE) + node, odds, yes=bit == 1)
                node = node << 1 | bit

    def _bit(self, slot: int, odds: Odds, *, yes: bool) -> None:
        part = (self._range >> _ONE) * odds.chance[slot]
        if yes:
            self._range = part
        else:
            self._low += part
            self._range -= part
        odds.learn(slot, yes=yes)
        self._settle()

    def _even(self, bit: int) -> None:
        self._range >>= 1
        if not bit:
            self._low += self._range
        self._settle()

    def _settle(self) -> None:
        """Writes what no later decision can change, unless it carries."""
        while self._range < _LEAST:
            self._carry()
            self._out.append(self._low >> 24)
            self._low = (self._low & 0xFF_FFFF) << 8
            self._range <<= 8

    def _carry(self) -> None:
        if self._low >> 32:
            self._low &= 0xFFFF_FFFF
            at = len(self._out) - 1
            while self._out[at] == 0xFF:
                self._out[at] = 0
                at -= 1
            self._out[at] += 1

    def to_bytes(self) -> bytes:
        """The whole code, as short as it can be; nothing may be appended any more."""
        for kept in (24, 16, 8, 0):  # the fewest bytes that name a number within the last range
            value = -(-self._low >> kept) << kept
            if value < self._low + self._range:
                break
        self._low = value
        self._carry()
        return bytes(self._out + self._low.to_bytes(4, "big")).rstrip(b"\0")


@final
class Reader:
    """Reads what `Writer` wrote. Any other code has some numbers, too, unless it is refused.

    Raises:
        PatchError: some of the codes that no writer makes.
    """

    def __init__(self, code: bytes) -> None:
        self._range = _RANGE
        self._value = int.from_bytes(code[:4].ljust(4, b"\0"), "big")
        if self._value >= _RANGE or code[-1:] == b"\0":
            raise _damaged("a code below 2^30 without zeros at its end", code[:4].hex())
        self._rest = iter(code[4:])

    def numbers(self, count: int, odds: Odds, bits: int = MOST_BITS) -> list[int]:
        """The next sequence, of so many numbers of so many bits."""
        trail = Trail()
        found: list[int] = []
        while len(found) < count:
            length = min(BLOCK, count - len(found))
            trail.empty = self._bit(trail.empty, odds)
            if trail.empty:
                trail.activity = 0
                found += bytes(length)
                continue
            told = False
            for left in range(length - 1, -1, -1):
                number = 0
                if not (told or left) or self._bit(_ZERO + trail.activity.bit_length(), odds):
                    told = True
                    number = self._nonzero(trail.signs, odds, bits)
                found.append(number)
                trail.follow(number)
        return found

    def end(self) -> None:
        """After the last number: PatchError where there is more of the code."""
        if next(self._rest, None) is not None:
            raise _damaged("an end", "more bytes")

    def _nonzero(self, signs: int, odds: Odds, bits: int) -> int:
        negative = self._bit(_SIGN + signs, odds)
        exponent = 0
        while exponent < bits - 1 and self._bit(_EXPONENT + exponent, odds):
            exponent += 1
        size = node = 1
        for _ in range(exponent):
            if node >> _TREE:
                bit = self._even()
            else:
                bit = self._bit(_MANTISSA + (exponent << _TREE) + node, odds)
                node = node << 1 | bit
            size = size << 1 | bit
        return -size if negative else size

    def _bit(self, slot: int, odds: Odds) -> bool:
        chances, chance, seen = odds.chance, odds.chance[slot], odds.seen[slot]
        part = (self._range >> _ONE) * chance
        yes = self._value < part
        if yes:
            self._range = part
            chances[slot] = chance + (((1 << _ONE) - chance) * _RATES[seen] >> 16)
        else:
            self._value -= part
            self._range -= part
            chances[slot] = chance - (chance * _RATES[seen] >> 16)
        if seen < _OLD:
            odds.seen[slot] = seen + 1
        if self._range < _LEAST:
            self._settle()
        return yes

    def _even(self) -> bool:
        self._range >>= 1
        yes = self._value < self._range
        if not yes:
            self._value -= self._range
        if self._range < _LEAST:
            self._settle()
        return yes

    def _settle(self) -> None:
        while self._range < _LEAST:
            self._value = self._value << 8 | next(self._rest, 0)
            self._range <<= 8


def _damaged(expected: str, got: str) -> PatchError:
    return PatchError(
        "a damaged patch",
        where="payload: differences",
        expected=expected,
        got=got,
        fix="fetch the whole file",
    )
