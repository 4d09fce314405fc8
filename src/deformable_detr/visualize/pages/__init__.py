"""Web pages that are complete in themselves: the report on an evaluation, an explanation, an examination of a dataset."""

from deformable_detr.visualize.pages.comparison import ComparisonReport
from deformable_detr.visualize.pages.doctor import write_doctor_page
from deformable_detr.visualize.pages.explanation import Explanation, explain
from deformable_detr.visualize.pages.report import Report

__all__ = ["ComparisonReport", "Explanation", "Report", "explain", "write_doctor_page"]
