"""The JSON bodies of requests and responses, as types that also make the OpenAPI description."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Pixels = Annotated[float, Field(description="Pixels of the upright image.")]


class Settings(BaseModel):
    """What a client may ask for, in the query string."""

    model_config = ConfigDict(extra="forbid")

    threshold: float | None = Field(
        None, ge=0, le=1, description="Smallest score of a detection. Left out: the model's own one per class, else 0.5."
    )
    top_k: int | None = Field(
        None, ge=1, le=1000, description="At most this many detections per image, the best ones. Left out: the model's own number."
    )
    classes: list[str] | None = Field(None, description="Only objects of these classes, as in classes=dog&classes=cat.")


class Detection(BaseModel):
    """One object."""

    class_name: str
    label: int = Field(description="The class as the network counts: 0 … K-1.")
    category_id: int = Field(description="The class as the training data numbered it.")
    score: float = Field(description="In [0, 1].")
    box: tuple[Pixels, Pixels, Pixels, Pixels] = Field(description="Left, top, right, bottom.")


class ImageTimes(BaseModel):
    """Milliseconds that one image took."""

    decode_ms: float
    wait_ms: float = Field(description="For its batch to begin.")
    network_ms: float = Field(description="That its batch took, resizing and scores included.")
    batch_size: int = Field(description="Images in that batch, of this and of other requests.")


class ImageResponse(BaseModel):
    """One image."""

    name: str = Field(description="The file's name as sent.")
    width: int = Field(description="Of the upright image, in pixels.")
    height: int = Field(description="Of the upright image, in pixels.")
    detections: list[Detection] = Field(description="Highest score first.")
    times: ImageTimes


class DetectResponse(BaseModel):
    """The response of /detect."""

    model: str
    images: list[ImageResponse] = Field(description="In the order in which they were sent.")
    total_ms: float = Field(description="From the request's head to this response.")


class Health(BaseModel):
    """The response of /health."""

    ready: bool
    model: str
    device: str
    precision: str
    classes: list[str]
    batch_size: int
    version: str


class ErrorResponse(BaseModel):
    """The body of every response that is not 2xx."""

    error: str = Field(description="What was wrong, and what to do.")
