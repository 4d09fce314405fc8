"""Images with boxes: detections, ground truth, training images, sample sheets, videos. All pixels are RGB uint8."""

from deformable_detr.visualize.drawing.detections import draw_detections, draw_grid, save_drawing, truth_detections

__all__ = ["draw_detections", "draw_grid", "save_drawing", "truth_detections"]
