"""The body of a request → the files in it, with the limits enforced while it is read."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from deformable_detr.serving.limits import Limits, RefusedError

FIELD = "image"
"""Name of the form field that holds pictures."""

_HOW = f"send a picture as the body (Content-Type: image/jpeg, image/png, …) or as form field {FIELD!r} of multipart/form-data"


@dataclass(frozen=True)
class Upload:
    """A file as it came."""

    name: str
    """Its name as the client calls it, or `image 0`."""

    content: bytes
    """Not looked at yet."""


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Read the pictures of a request, still encoded: a raw `image/*` body, or a form with one or more files.

    Raises:
        RefusedError: 400 a broken body or form, 413 too many bytes or files, 415 another media type, 422 no picture in it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = _limited(request, limits)
    if kind == "multipart/form-data":
        return await _form_uploads(request, body, limits)
    if not _can_be_picture(kind):
        raise RefusedError(415, f"cannot take a body of type {kind or 'unknown'}: {_HOW}")
    content = b"".join([chunk async for chunk in body])
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


async def _form_uploads(request: Request, body: AsyncGenerator[bytes, None], limits: Limits) -> list[Upload]:
    parser = MultiPartParser(request.headers, body, max_files=limits.max_pictures + 1, max_fields=limits.max_pictures + 1)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise _too_many(limits) from None
        raise RefusedError(400, f"the form cannot be read: {error.message}") from None
    try:
        files = form.multi_items()
        if not files:
            raise RefusedError(422, f"the form is empty: {_HOW}")
        if len(files) > limits.max_pictures:
            raise _too_many(limits)
        return [await _form_file(index, name, value) for index, (name, value) in enumerate(files)]
    finally:
        await form.close()


async def _form_file(index: int, field: str, value: UploadFile | str) -> Upload:
    if field != FIELD:
        raise RefusedError(422, f"unknown form field {printable(field)!r}: {_HOW}")
    if isinstance(value, str):
        raise RefusedError(422, f"form field {FIELD!r} holds text where a file is expected: {_HOW}")
    name = printable(value.filename or f"image {index}")
    kind = (value.content_type or "").partition(";")[0].strip().lower()
    if kind and not _can_be_picture(kind):
        raise RefusedError(415, f"{name}: cannot take a file of type {kind}: {_HOW}")
    content = await value.read()
    if not content:
        raise RefusedError(422, f"{name}: the file is empty")
    return Upload(name, content)


def printable(text: str) -> str:
    """A client's text as it can be sent back: of bounded length, without halves of surrogate pairs."""
    return text[:200].encode("utf-8", "replace").decode("utf-8")


def _too_many(limits: Limits) -> RefusedError:
    return RefusedError(413, f"more than the {limits.max_pictures} pictures allowed in one request; split it")


def _can_be_picture(kind: str) -> bool:
    return kind.startswith("image/") or kind == "application/octet-stream"
