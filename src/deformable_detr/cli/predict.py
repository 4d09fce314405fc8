"""`deformable-detr predict`: objects in images and videos."""

from deformable_detr.cli.command import Command
from deformable_detr.cli.predict_options import PredictOptions
from deformable_detr.cli.screen import log_to_screen

DESCRIPTION = """\
Detect objects in images. Each image is written with boxes and labels drawn on it, and predictions.json holds all
detections in COCO's format: images, categories, and annotations with bbox (x, y, width, height in pixels) and score.

Also in videos, cameras and network streams: drawn to NAME.mp4, with NAME.json beside it. Ctrl-C ends both properly."""

EXAMPLES = """\
  deformable-detr predict runs/first street.jpg                            drawn to runs/predict/street.jpg
  deformable-detr predict runs/first photos/ --batch-size 8                all images of a folder
  deformable-detr predict runs/first "photos/**/*.jpg" --threshold 0.3     a pattern, with subfolders
  deformable-detr predict runs/first a.jpg b.jpg --classes person dog --output found
  deformable-detr predict runs/first photos/ --no-draw                     the JSON alone
  deformable-detr predict detector.onnx photos/                            an exported file, in onnxruntime
  deformable-detr predict runs/first aerial.tif --tiles 640                small objects in a large image
  deformable-detr predict runs/first clip.mp4 --track                      a video: boxes, numbers, traces
  deformable-detr predict runs/first 0                                     a camera, until Ctrl-C; also rtsp://…
  torchrun --nproc-per-node 4 -m deformable_detr predict runs/first photos/     the images shared out over 4 GPUs
"""


def run(options: PredictOptions) -> None:
    """Predict on images or on videos."""
    from deformable_detr.inference.video import is_video

    log_to_screen()
    if any(is_video(source) for source in options.source):
        from deformable_detr.cli.predict_videos import predict_videos

        predict_videos(options)
    else:
        from deformable_detr.cli.predict_images import predict_images

        predict_images(options)


COMMAND = Command("predict", PredictOptions, run, DESCRIPTION, EXAMPLES)
