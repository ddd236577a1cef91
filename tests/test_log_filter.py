"""Identifiers in every form in which the libraries write them into a log, and what has to stay legible."""

from __future__ import annotations

import io
import logging

import pytest
from lib.security.log_filter import HIDDEN, install_log_filter, without_identifiers
from pydicom.dataset import Dataset


def jane() -> Dataset:
    made = Dataset()
    made.PatientName, made.PatientID, made.Modality = "Doe^Jane", "PID-77", "CT"
    made.ReferringPhysicianName, made.StudyDate, made.AccessionNumber = "Roe^Rita", "20240131", "ACC-9"
    made.InstitutionName, made.StudyDescription, made.StudyTime = "St Elsewhere", "Knee", "123059"
    made.StudyInstanceUID = "1.2.3.4"
    return made


IDENTIFIERS = ("Doe", "Jane", "PID-77", "Roe", "Rita", "20240131", "ACC-9", "Elsewhere", "Knee", "123059")


@pytest.mark.parametrize("write", [str, lambda made: str(made.to_json_dict()), Dataset.to_json, repr])
def test_a_whole_header(write):
    text = without_identifiers(f"Header: {write(jane())}")
    assert [one for one in IDENTIFIERS if one in text] == []
    assert "CT" in text
    assert "1.2.3.4" in text


@pytest.mark.parametrize(
    "text",
    [
        "{'PatientName': {'Alphabetic': 'Doe^Jane'}, 'Modality': 'CT'}",
        "{'PatientName': {'Alphabetic': 'Doe}^Jane', 'Other': ['Doe', {'a': 'Jane'}]}, 'Modality': 'CT'}",
        "PatientName=Doe Jane, Modality=CT",
        "PatientName=Doe, Jane, Modality: CT",
        "PatientName=Doe Jane Modality=CT",
        "Info(PatientName=Doe Jane) Modality=CT",
        "Patient's Name PN: 'Doe^Jane'\nModality CS: 'CT'",
        "(0010, 0010) Patient's Name                      PN: Doe^Jane\n(0008, 0060) Modality   CS: 'CT'",
        "{'00100010': {'vr': 'PN', 'Value': [{'Alphabetic': 'Doe^Jane'}]}, '00080060': {'vr': 'CS', 'Value': ['CT']}}",
        "Modality CT; PatientName: 'Doe^Jane",
        "Modality CT; {'PatientName': {'Alphabetic': 'Doe^Ja",
        'Modality CT, StudyTime: 12:30:59 Doe, "PatientID": "Jane\\"Doe"',
    ],
)
def test_values_of_every_form(text):
    hidden = without_identifiers(text)
    assert "Doe" not in hidden
    assert "Ja" not in hidden
    assert HIDDEN in hidden
    assert "CT" in hidden
    assert without_identifiers(hidden) == hidden  # several handlers filter one record


def test_tracebacks_are_filtered_too():
    written = io.StringIO()
    logger, handler = logging.getLogger("test_log_filter"), logging.StreamHandler(written)
    logger.addHandler(handler)
    try:
        install_log_filter()
        try:
            raise ValueError("no such image: {'PatientName': 'Doe^Jane', 'Modality': 'CT'}")
        except ValueError:
            logger.exception("It failed for PatientID=%s", "PID-77")
        logger.warning("Where from?", stack_info=True)
    finally:
        logger.removeHandler(handler)
    text = written.getvalue()
    assert "Doe" not in text
    assert "PID-77" not in text
    assert "ValueError: no such image" in text
    assert "'CT'" in text


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "part", ["'PatientName': {'", "Patient ", "PatientName=a ", "PatientName ", "PatientID= a,", "[{'\\"]
)
def test_a_long_text_is_filtered_at_once(part):
    without_identifiers("PatientID=" + part * 20_000)
    without_identifiers(part + " " * 100_000)
