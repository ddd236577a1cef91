"""The walk over DICOM elements: sound files of every encoding pass, lengths that lie do not."""

import struct

import pydicom
import pytest
from lib.sam.dicom_check import dicom_fault
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)

SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big_endian": ExplicitVRBigEndian,
    "encapsulated": JPEG2000Lossless,
}


def save(path, syntax, undefined=False):
    """A small image with nested sequences and a private value of unknown form."""
    inner = Dataset()
    inner.CodeMeaning = "INNERMOST"
    middle = Dataset()
    middle.ConceptCodeSequence = Sequence([inner])
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
    data.ProcedureCodeSequence = Sequence([middle, middle])
    for sequence in (data["ProcedureCodeSequence"], middle["ConceptCodeSequence"]):
        sequence.is_undefined_length = undefined
    inner.is_undefined_length_sequence_item = middle.is_undefined_length_sequence_item = undefined
    data.add_new(0x00290010, "LO", "SOMEONE")
    data.add_new(0x00291010, "UN", b"\x01\x02\x03\x04")
    data.Rows = data.Columns = 4
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 1, 16, 16, 15
    data.PixelRepresentation, data.PhotometricInterpretation = 0, "MONOCHROME2"
    if syntax == JPEG2000Lossless:
        data.PixelData = encapsulate([b"\xfe\xff\x00\xe0 not elements ", b"more bytes"])
        data["PixelData"].is_undefined_length = True
    else:
        data.PixelData = bytes(range(32))
    data["PixelData"].VR = "OW"
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3"
    data.file_meta.TransferSyntaxUID = syntax
    data.is_little_endian = syntax != ExplicitVRBigEndian
    data.is_implicit_VR = syntax == ImplicitVRLittleEndian
    data.preamble = bytes(128)
    pydicom.dcmwrite(path, data, write_like_original=False)
    return path


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("name", SYNTAXES)
def test_sound_files_have_no_fault(name, undefined, tmp_path):
    assert dicom_fault(save(tmp_path / "a.dcm", SYNTAXES[name], undefined)) is None


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("name", SYNTAXES)
@pytest.mark.parametrize("tag", [0x00080104, 0x00280010, 0x00291010, 0x7FE00010])
def test_a_length_beyond_the_file_is_found_at_any_depth(tag, name, undefined, tmp_path):
    path = save(tmp_path / "a.dcm", SYNTAXES[name], undefined)
    content = bytearray(path.read_bytes())
    order = ">" if name == "big_endian" else "<"
    at = content.index(struct.pack(order + "HH", tag >> 16, tag & 0xFFFF))
    if name == "implicit":
        content[at + 4 : at + 8] = struct.pack("<I", 0xFFFFFFF0)
    elif content[at + 4 : at + 6] in (b"UN", b"OW", b"OB"):
        content[at + 8 : at + 12] = struct.pack(order + "I", 0xFFFFFFF0)
    else:
        content[at + 6 : at + 8] = b"\xff\xf0"
    path.write_bytes(content)
    assert "beyond the file" in dicom_fault(path)


@pytest.mark.parametrize("name", SYNTAXES)
def test_every_truncation_inside_a_value_is_found(name, tmp_path):
    path = save(tmp_path / "a.dcm", SYNTAXES[name])
    content = path.read_bytes()
    at = content.index(b"INNERMOST")
    path.write_bytes(content[: at + 4])
    assert "beyond the file" in dicom_fault(path)


def test_files_that_are_no_dicom(tmp_path):
    path = tmp_path / "a.dcm"
    for content, message in (
        (b"", "cannot be read"),
        (bytes(300), "no DICOM marker"),
        (bytes(128) + b"DICM", "first elements"),
        (bytes(128) + b"DICM" + bytes(100), "transfer syntax"),
    ):
        path.write_bytes(content)
        assert message in dicom_fault(path)
    assert "cannot be read" in dicom_fault(tmp_path / "missing.dcm")
    assert "cannot be read" in dicom_fault(tmp_path)


def test_deflated_files_are_named(tmp_path):
    assert "deflated" in dicom_fault(save(tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian))
