"""Looks over the skeleton of DICOM files before ITK may open them.

GDCM allocates what an element's length field names before it finds that the file is shorter: one damaged or forged
byte costs gigabytes. The walk below visits every element without reading its value and refuses lengths that reach
beyond the file.
"""

import mmap
import struct
from pathlib import Path

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xE000, 0xE00D, 0xE0DD
_TRANSFER_SYNTAX = (0x0002, 0x0010)
_PIXEL_DATA = (0x7FE0, 0x0010)
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"
_SHORT_VR = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VR = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


def dicom_fault(path: Path) -> str | None:
    """Tells what makes a file unfit for reading as DICOM, or None when its elements all lie within the file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[128:132] != b"DICM":
                return "it has no DICOM marker"
            return _Walk(data).fault()
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        return f"it cannot be read ({error})"


class _Walk:
    """One pass over the elements of a file."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.at = 132
        self.order = "<"
        self.implicit = False
        self.outer: list[bool] = []  # the implicit flag outside each open sequence of undefined length
        self.fragments = False  # inside compressed pixel data, whose items hold bytes and not elements

    def fault(self) -> str | None:
        """Walks to the end; the first fault or None."""
        in_meta, syntax = True, b""
        while self.at + 8 <= len(self.data):
            tag = struct.unpack_from(self.order + "HH", self.data, self.at)
            if in_meta and tag[0] != 0x0002:
                in_meta = False
                if not syntax:
                    return "its file meta information names no transfer syntax"
                if syntax == _DEFLATED:
                    return "its elements are deflated, which is not supported"
                self.implicit, self.order = syntax == _IMPLICIT, ">" if syntax == _BIG_ENDIAN else "<"
                tag = struct.unpack_from(self.order + "HH", self.data, self.at)
            start = self.at
            length, enter = self._delimiter(tag[1]) if tag[0] == 0xFFFE else self._element(tag)
            if length != _UNDEFINED and self.at + length > len(self.data):
                return f"its element ({tag[0]:04x},{tag[1]:04x}) at byte {start} reaches beyond the file; it is damaged"
            if tag == _TRANSFER_SYNTAX:
                syntax = self.data[self.at : self.at + min(length, 64)].rstrip(b"\0 ")
            if not enter:
                self.at += length
        return "it ends within its first elements" if in_meta else None

    def _delimiter(self, element: int) -> tuple[int, bool]:
        """Steps over the head of an item or of an end mark: length of what follows, and whether to look inside."""
        (length,) = struct.unpack_from(self.order + "I", self.data, self.at + 4)
        self.at += 8
        if element == _ITEM and not self.fragments:
            return length, True
        if element == _SEQUENCE_END:
            if not self.fragments and self.outer:
                self.implicit = self.outer.pop()
            self.fragments = False
        return (0 if element in (_ITEM_END, _SEQUENCE_END) else length), length == _UNDEFINED

    def _element(self, tag: tuple[int, int]) -> tuple[int, bool]:
        """Steps over the head of an element: length of its value, and whether to look inside."""
        vr = b"" if self.implicit else self.data[self.at + 4 : self.at + 6]
        if vr in _SHORT_VR:
            (length,) = struct.unpack_from(self.order + "H", self.data, self.at + 6)
            self.at += 8
            return length, False
        long = vr in _LONG_VR
        if long and self.at + 12 > len(self.data):
            return len(self.data), False
        (length,) = struct.unpack_from(self.order + "I", self.data, self.at + (8 if long else 4))
        self.at += 12 if long else 8
        if length == _UNDEFINED:
            if tag == _PIXEL_DATA or vr in (b"OB", b"OW"):
                self.fragments = True
            else:
                self.outer.append(self.implicit)
                self.implicit = self.implicit or vr == b"UN"  # such a value is always written without VRs
            return length, True
        holds_items = not long and self.data[self.at : self.at + 4] == struct.pack(self.order + "HH", 0xFFFE, _ITEM)
        return length, vr == b"SQ" or holds_items
