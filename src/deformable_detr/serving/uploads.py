"""The body of a request → the files in it, with the limits enforced while it is read."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from deformable_detr.serving.limits import Limits, RefusedError
from deformable_detr.serving.multipart import BrokenFormError, Part, read_form

FIELD = "image"
"""Name of the form field that holds images."""

_HOW = f"send an image as the body (Content-Type: image/jpeg, image/png, …) or as form field {FIELD!r} of multipart/form-data"


@dataclass(frozen=True)
class Upload:
    """A file as it came."""

    name: str
    """Its name as the client calls it, or `image 0`."""

    content: bytes
    """Not looked at yet."""


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Read the images of a request, still encoded: an image as the body, or a form with one or more files.

    Raises:
        RefusedError: 400 a broken body or form, 413 too many bytes or files, 415 another media type, 422 no image in it.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RefusedError(415, f"cannot take a body with Content-Encoding {printable(encoding)}: send it as it is")
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind and kind != "multipart/form-data" and not _can_be_image(kind):
        raise RefusedError(415, f"cannot take a body of type {printable(kind)}: {_HOW}")
    content = b"".join([chunk async for chunk in _limited(request, limits)])
    if kind == "multipart/form-data":
        return _form_uploads(content_type, content, limits)
    if not content:
        raise RefusedError(422, f"the body is empty: {_HOW}")
    return [Upload("image 0", content)]


async def _limited(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The chunks of the body, until they are too many."""
    refusal = RefusedError(413, f"the body is larger than the {limits.max_megabytes:g} MB allowed; shrink or split it")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limits.max_bytes:
        raise refusal
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > limits.max_bytes:
                raise refusal
            yield chunk
    except ClientDisconnect:
        raise RefusedError(400, "the connection was closed before the whole body had come") from None


def _form_uploads(content_type: str, body: bytes, limits: Limits) -> list[Upload]:
    try:
        parts = read_form(content_type, body, limits.max_images)
    except BrokenFormError as error:
        raise RefusedError(400, f"the form cannot be read: {error}") from None
    if len(parts) > limits.max_images:
        raise RefusedError(413, f"more than the {limits.max_images} images allowed in one request; split it")
    if not parts:
        raise RefusedError(422, f"the form is empty: {_HOW}")
    return [_form_upload(index, part) for index, part in enumerate(parts)]


def _form_upload(index: int, part: Part) -> Upload:
    if part.name != FIELD:
        raise RefusedError(422, f"unknown form field {printable(part.name)!r}: {_HOW}")
    if part.filename is None:
        raise RefusedError(422, f"form field {FIELD!r} holds text where a file is expected: {_HOW}")
    name = printable(part.filename) or f"image {index}"
    if part.type and not _can_be_image(part.type):
        raise RefusedError(415, f"{name}: cannot take a file of type {printable(part.type)}: {_HOW}")
    if part.encoding not in ("binary", "8bit", "7bit"):
        raise RefusedError(415, f"{name}: cannot take Content-Transfer-Encoding {printable(part.encoding)}: send the file as it is")
    if not part.content:
        raise RefusedError(422, f"{name}: the file is empty")
    return Upload(name, part.content)


def printable(text: str) -> str:
    """A client's text as it can be sent back: of bounded length, on one line."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


UNKNOWING = ("application/octet-stream", "binary/octet-stream", "*/*", "application/x-www-form-urlencoded")
"""Types of clients that do not know what they send; curl --data-binary and Python's urllib name the last one."""


def _can_be_image(kind: str) -> bool:
    return kind.startswith("image/") or kind in UNKNOWING
