"""What is noted of an inference request, and what a DICOM SEG needs."""

import asyncio
import threading

import pytest
from fastapi import HTTPException
from lib import infer_route
from lib.workers import COUNT, in_worker


def look(params: str, output: str | None):
    """The check of a request for case1 with these form fields."""
    return infer_route.look_first("case1", "", params, None, None, output)


async def seen_after(output: str | None) -> tuple[bool, bool]:
    """Whether a request's task is known as an inference, and whether an empty mask is refused in it."""
    await look("{}", output)
    infer_route.check_dicom_seg_mask(1)
    try:
        infer_route.check_dicom_seg_mask(0)
    except HTTPException as error:
        return infer_route.is_inference(), (error.status_code, "mask is empty" in error.detail) == (422, True)
    return infer_route.is_inference(), False


@pytest.mark.parametrize(("output", "refused"), [("dicom_seg", True), ("image", False), ("json", False), (None, False)])
def test_an_empty_mask_is_refused_as_a_dicom_seg_alone(output, refused):
    assert asyncio.run(seen_after(output)) == (True, refused)
    assert not infer_route.is_inference()


@pytest.mark.parametrize("text", ["[1]", '"x"', "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_params_that_are_no_object(text):
    with pytest.raises(HTTPException) as caught:
        asyncio.run(look(text, None))
    assert caught.value.status_code == 400
    assert len(caught.value.detail) < 300


def test_a_session_that_ended_while_the_click_waited_is_no_other_image(monkeypatch):
    async def click(session: dict | None) -> None:
        monkeypatch.setattr(infer_route, "check_session", lambda session_id: None)  # it was there
        await infer_route.look_first("case1", "mine", "{}", None, None, None)
        request = {"image": "case1"} | ({"session": session} if session else {})
        await in_worker(infer_route.check_session_found, request)

    asyncio.run(click({"name": "mine"}))
    with pytest.raises(HTTPException) as caught:
        asyncio.run(click(None))
    assert (caught.value.status_code, "send the volume again" in caught.value.detail) == (404, True)


def test_workers_are_the_same_few_threads():
    async def several() -> set[int]:
        return set(await asyncio.gather(*(in_worker(threading.get_ident) for _ in range(20))))

    first = asyncio.run(several())
    assert 1 <= len(first) <= COUNT
    assert threading.get_ident() not in first
    assert first | asyncio.run(several()) <= {thread.ident for thread in threading.enumerate()}
