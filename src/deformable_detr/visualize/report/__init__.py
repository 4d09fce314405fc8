"""The report on an evaluation: figures, the worst images, one HTML page that needs no network."""

from deformable_detr.visualize.report.report import Report

__all__ = ["Report"]
