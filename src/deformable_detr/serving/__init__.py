"""A detector behind HTTP: uploads in, JSON or drawn images out, many requests in one batch. Needs the extra `serve`."""

from deformable_detr.serving.app import create_app
from deformable_detr.serving.connections import build_server
from deformable_detr.serving.limits import Limits

__all__ = ["Limits", "build_server", "create_app"]
