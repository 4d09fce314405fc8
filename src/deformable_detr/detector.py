"""The whole product as one object: train on a folder, load, predict, evaluate, save.

Whoever only predicts does not wait for training, figures and videos to be imported: methods import what they alone need.
"""

import logging
import os
from collections.abc import Callable, Generator, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

import torch

from deformable_detr.checkpoints import hub, load_pretrained, save_weights
from deformable_detr.class_names import MatchBy
from deformable_detr.inference.predictor import Predictor
from deformable_detr.inference.sources import ImageLike, open_single
from deformable_detr.keywords import EvaluationOptions, LoadOptions, PredictionOptions, TrainSettings
from deformable_detr.precision import Precision
from deformable_detr.schema import plain_numbers

if TYPE_CHECKING:
    from accelerate import PartialState

    from deformable_detr.data.coco import CocoDataset
    from deformable_detr.data.dataset import DetectionDataset
    from deformable_detr.evaluation import CocoEvaluator, Metrics
    from deformable_detr.export.parity import Difference
    from deformable_detr.inference.video import Frame, Video
    from deformable_detr.training.callbacks import Callback
    from deformable_detr.training.trainer import TrainResult
    from deformable_detr.visualize import Description, Explanation, Report

logger = logging.getLogger(__name__)


class Detector(Predictor):
    """A detector from training to use.

    ```python
    detector = Detector.train("path/to/dataset", preset="r50-two-stage", epochs=12, output_dir="runs/first")
    detector = Detector.load("runs/first")                     # later: a run folder or a weights file
    detections = detector.predict("street.jpg", threshold=0.5)  # supervision.Detections; folders, lists, arrays too
    metrics = detector.evaluate("path/to/dataset")
    ```

    Args are those of :class:`~deformable_detr.inference.predictor.Predictor`.
    """

    result: "TrainResult | None" = None
    """The result of the training, for a detector from :meth:`train`."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "auto",
        precision: Precision | Literal["auto"] = "fp32",
        optimize: bool = True,
        compile: bool = False,
        **options: Unpack[LoadOptions],
    ) -> Self:
        """A detector from weights.

        Args:
            source: a run folder (its best weights), or a weights file of any known format.
            device: `auto` takes a GPU where there is one.
            precision: autocast dtype of the model when predicting and evaluating; `auto` measures what is fastest here.
            optimize: make the model fast for inference, see :meth:`optimize`.
            compile: compile it too.
            options: further keywords of :func:`~deformable_detr.checkpoints.load.load_pretrained`; see
                :class:`~deformable_detr.keywords.LoadOptions`.

        Raises:
            FileNotFoundError: there is no such file or folder.
            ValueError: the file is damaged or does not fit.
        """
        detector = cls(load_pretrained(source, **options), device=device, precision=precision)
        return detector.optimize(optimize, compile=compile)

    @classmethod
    def train(
        cls,
        dataset: str | Path | None = None,
        *,
        config: str | Path | None = None,
        callbacks: "Sequence[Callback]" = (),
        show_progress: bool = True,
        **settings: Unpack[TrainSettings],
    ) -> Self:
        """Train on a dataset (COCO, YOLO or Pascal VOC) and give back the detector with the best weights.

        The folder of the run (`output_dir`) keeps the config, the log, curves, weights and sample images. Started by `accelerate
        launch` or torchrun, all processes train together and each gets the detector. Where processes are started afresh (Windows,
        macOS), a script calls this below `if __name__ == "__main__":`.

        Args:
            dataset: folder with `annotations/instances_<split>.json` and the images of the splits `train` and `val`; may be left
                out where `config` or the run that is resumed names it.
            config: YAML file with settings, such as the `config.yaml` of a run folder.
            callbacks: told what happens in the run (:class:`~deformable_detr.training.callbacks.Callback`).
            show_progress: a live bar on a terminal, log lines elsewhere.
            settings: any setting of :class:`~deformable_detr.config.RunConfig`, in one of three forms: by its own name
                (`preset="r50-two-stage", epochs=12, lr=1e-4`), as a group (`model={"num_queries": 100}`), or dotted, as
                on the command line (`**{"optimizer.lr": 1e-4}`). `weights=` starts from a file, `resume=True` goes on. They
                override `config`, which overrides the recipe, which overrides the preset: see :mod:`deformable_detr.settings`.

        Raises:
            ValueError: an unknown setting or a value of the wrong type; the message names it.
            FileNotFoundError: the dataset, a split or its images are missing.
            FileExistsError: `output_dir` holds a run already.
        """
        from deformable_detr.training.callbacks import Samples
        from deformable_detr.training.recipe import plan_run
        from deformable_detr.training.trainer import train
        from deformable_detr.visualize.drawing.samples import draw_samples

        asked: dict[str, Any] = {**settings} if dataset is None else {"dataset": dataset, **settings}
        run, opened = plan_run(asked, config)
        result = train(run, opened, callbacks=[Samples(draw_samples), *callbacks], show_progress=show_progress)
        detector = cls.load(result.best_weights, device=run.train.device)
        detector.result = result
        return detector

    def evaluate(
        self, dataset: "str | Path | DetectionDataset", split: str | None = None, **options: Unpack[EvaluationOptions]
    ) -> "Metrics":
        """Measure COCO AP and AR on one split of a dataset.

        The classes of the detector and of the dataset are matched by name. Started by `accelerate launch` or torchrun, the
        images are shared out and every process gets the numbers of the whole.

        Args:
            dataset: folder as for :meth:`train`, or the opened dataset (:func:`~deformable_detr.data.dataset.open_dataset`).
            split: which part of it; None takes `val`, and all images of a dataset that has no splits (`all`).
            options: see :class:`~deformable_detr.keywords.EvaluationOptions`.

        Returns:
            The numbers; `.table()` for the screen, `.to_dict()` for JSON, `.per_class`.

        Raises:
            FileNotFoundError: the dataset, the split or its images are missing.
            ValueError: damaged annotations, or not one class in common.
        """
        from deformable_detr.data.dataset import open_dataset

        opened = open_dataset(dataset)
        return self._detect_split(opened, split or opened.evaluation_split(), **options)[0].compute()

    def analyze(
        self,
        dataset: "str | Path | DetectionDataset",
        split: str | None = None,
        *,
        thresholds: Sequence[float] | None = None,
        worst: int = 12,
        **options: Unpack[EvaluationOptions],
    ) -> "Report":
        """Evaluate as :meth:`evaluate` does, and look closely: curves, thresholds, confusions, error types, worst images.

        ```python
        report = detector.analyze("path/to/dataset")
        report.save("report")                     # report.html and its figures
        report.analysis.confusion.confusions(5)   # the same as data
        ```

        Args:
            dataset: as for :meth:`evaluate`.
            split: which part of it; see :meth:`evaluate`.
            thresholds: for each class of the detector the score from which on a detection counts. None: those that are stored with
                the weights, else those that maximise F1 on this split.
            worst: how many of the worst images are shown.
            options: see :class:`~deformable_detr.keywords.EvaluationOptions`.

        Returns:
            The analysis with its page and figures; `.analysis` is the data.

        Raises:
            FileNotFoundError: the dataset, the split or its images are missing.
            ValueError: damaged annotations, not one class in common, another number of thresholds than of classes, or `worst` is
                below 0.
        """
        from deformable_detr.data.dataset import open_dataset
        from deformable_detr.evaluation import analyze
        from deformable_detr.visualize import Report

        (worst,) = plain_numbers("a whole number", Integral, int, worst=worst)
        if worst < 0:
            raise ValueError(f"worst must be at least 0, not {worst}")
        opened = open_dataset(dataset)
        split = split or opened.evaluation_split()
        evaluator, images = self._detect_split(opened, split, **options)
        index_of = {image_id: index for index, image_id in enumerate(images.image_ids)}
        return Report(
            analysis=analyze(evaluator, self.metadata.thresholds if thresholds is None else thresholds),
            title=f"{opened.path.resolve().name}, {split} split",
            read_image=lambda image_id: images.image(index_of[image_id]),
            image_name=lambda image_id: images.image_path(index_of[image_id]).name,
            worst=worst,
        )

    def _detect_split(
        self,
        dataset: "DetectionDataset",
        split: str,
        *,
        batch_size: int = 1,
        num_workers: int = 2,
        top_k: int | None = None,
        match_by: MatchBy = "name",
        results_file: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> "tuple[CocoEvaluator, CocoDataset]":
        """The detections of a whole split, in every process, and its images; options are those of :class:`EvaluationOptions`."""
        from deformable_detr.data.loader import build_dataset, build_loader
        from deformable_detr.evaluation import detect

        join_processes(self.device)
        images = build_dataset(dataset, split, self.metadata.evaluation_data(), training=False)
        one = f", all classes as one ({self.categories.names[0]})" if self.metadata.single_class else ""
        logger.info("%s: %d images of the split %r%s", dataset.path, len(images), split, one)
        loader = build_loader(images, batch_size=batch_size, training=False, num_workers=num_workers)
        total = len(loader.sampler)  # pyright: ignore[reportArgumentType] (this process's share)
        evaluator = detect(
            self.inference_model,
            loader,
            self.categories,
            images.ground_truth,
            device=self.device,
            top_k=self.metadata.model.max_detections if top_k is None else top_k,
            nms_iou=self.nms_iou,
            match_by=match_by,
            precision=self.precision,
            results_file=results_file,
            progress=None if progress is None else lambda done: progress(done, total),
        )
        return evaluator, images

    def stream(
        self,
        source: "str | Path | Video",
        threshold: float | None = None,
        *,
        every: int = 1,
        **options: Unpack[PredictionOptions],
    ) -> "Generator[Frame, None, None]":
        """Detect objects in a video, a camera's images or a stream, frame by frame.

        ```python
        for frame in detector.stream("street.mp4", every=5):
            print(frame.time, frame.detections.data["class_name"])
        ```

        Args:
            source: a file, the number of a camera (`"0"`), an address (`rtsp://…`), or an opened video.
            threshold: smallest score of a detection; None as for :meth:`predict`.
            every: take every N-th frame.
            options: see :class:`~deformable_detr.keywords.PredictionOptions`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the video cannot be decoded, or an option is out of range.
        """
        from deformable_detr.inference.video import iterate_video

        return iterate_video(self, source, threshold, every=every, **options)

    def track(
        self,
        source: "str | Path | Video",
        threshold: float | None = None,
        *,
        every: int = 1,
        **options: Unpack[PredictionOptions],
    ) -> "Generator[Frame, None, None]":
        """Follow objects through a video: as :meth:`stream`, with `tracker_id`, the same number for the same object.

        A track begins with a detection whose score is at least `threshold`; None as for :meth:`predict`.
        """
        from deformable_detr.inference.video import iterate_video

        return iterate_video(self, source, threshold, every=every, tracker=True, **options)

    def explain(
        self,
        image: ImageLike,
        query: int | None = None,
        *,
        box: Sequence[float] | None = None,
        point: Sequence[float] | None = None,
    ) -> "Explanation":
        """Explain one detection: where its query came from, where each layer looked for it, how box and scores changed.

        ```python
        detector.explain("street.jpg", point=(320, 140)).save("why.html")
        ```

        Args:
            image: as for :meth:`predict`, a single one.
            query: the number of a decoder query, from 0.
            box: (left, top, right, bottom) in pixels: the query whose box overlaps most with it.
            point: (x, y) in pixels: the query whose object is there, the smallest one of several.

        Returns:
            The explanation of that detection; without any of the three, of the strongest one. `.save` writes it.

        Raises:
            FileNotFoundError: no such image.
            ValueError: more than one of query, box and point, no such query, or a box or point of another number of numbers.
        """
        from deformable_detr.visualize import explain, look_inside

        given = [name for name, value in (("query", query), ("box", box), ("point", point)) if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} may not go together: one of them says which detection is meant")
        inside = look_inside(self, image)
        if box is not None:
            query = inside.query_of_box(box)
        elif point is not None:
            if len(point) != 2:
                raise ValueError(f"a point is x, y in pixels, not {list(point)}")
            query = inside.query_at(*point)
        elif query is None:
            query = inside.detections(top_k=1)[0].query
        return explain(inside, query)

    def describe(self, image: ImageLike, *, num_detections: int = 5) -> "Description":
        """Show the way of an image through the model: shapes, parameters and multiply-adds of every stage, boxes of every layer.

        Args:
            image: as for :meth:`predict`, a single one.
            num_detections: how many of the strongest detections are followed through the layers.

        Raises:
            FileNotFoundError: no such image.
            ValueError: it is not an image.
            TypeError: a network without the layers of this one, such as that of an exported file.
        """
        from deformable_detr.visualize import describe

        source = open_single(image, bit_depth=self.metadata.bit_depth)
        return describe(self.model, source.read(), num_detections=num_detections)

    def save(self, path: str | Path) -> Path:
        """Write the weights with everything that :meth:`load` needs, as one `.safetensors` file.

        Raises:
            ValueError: another suffix.
        """
        if Path(path).suffix != ".safetensors":
            raise ValueError(f"weights are written as .safetensors, so call the file {Path(path).with_suffix('.safetensors')}")
        return save_weights(path, self.model)

    def export(self, path: str | Path, **options: Any) -> "Difference":
        """Write a file that runs without this package, and compare it with this detector.

        Args:
            path: `.pt2`, `.onnx` or `.xml` (OpenVINO).
            options: those of :func:`~deformable_detr.export.files.export_model`, such as `grid_sample=False` or `top_k=100`.

        Returns:
            How far its scores and boxes are from this detector's.

        Raises:
            ParityError: too far; the file is not kept.
            ImportError: a package that writes or runs the format is missing.
            ValueError: an unknown suffix, or a size that the model cannot take.
        """
        from deformable_detr.export.files import export_model

        return export_model(self.model, path, **options)

    from_pretrained = load

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> Path:
        """Write the weights, their settings and a model card to a folder that :meth:`from_pretrained` reads.

        Args:
            folder: is made.
            license: of the weights, such as `apache-2.0`, for the card.
        """
        return hub.save_pretrained(self.model, folder, license=license)

    def push_to_hub(self, repo_id: str, *, license: str | None = None, private: bool = False, **options: Any) -> Any:
        """Put the weights and a model card on the Hugging Face hub; :meth:`from_pretrained` reads them from there.

        Args:
            repo_id: `owner/name`; made if there is none.
            license: of the weights, such as `apache-2.0`, for the card.
            private: whether a new model is private.
            options: `token` and `commit_message`.

        Raises:
            ValueError: an impossible name.
        """
        return hub.push_to_hub(self.model, repo_id, license=license, private=private, **options)


def join_processes(device: torch.device) -> "PartialState | None":
    """Join the other processes where `accelerate launch` or torchrun started several; None where this one is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=device.type == "cpu")
