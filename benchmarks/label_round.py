"""What 50 images that `label` chooses gain over 50 random ones.

    python benchmarks/label_round.py bccd --steps 600 --seeds 0 1 2 --device cuda --pretrained-backbone resnet18.pth --output round

For each seed: train with `--recipe small-data` on 50 random images; put the other training images into the order of
`deformable-detr label`; then train anew, with as many steps, on the 50 and the first 50 of that order, and on the 50 and 50 random
ones. The annotations are the dataset's own: proposals corrected without an error. AP on the splits `val` and `test`.
"""

import argparse
import json
import random
from pathlib import Path

from own_data import Results, recipe_config, run_ours

from deformable_detr import Detector
from deformable_detr.inference.labelling import CANDIDATE, by_usefulness, propose


def main() -> None:
    """Run what is missing, and print AP and AP50 of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="with the splits train and val in COCO format")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--images", type=int, default=50, help="at the beginning, and to be added")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pretrained-backbone", type=Path, required=True, help="timm weights of a ResNet-18")
    parser.add_argument("--output", type=Path, default=Path("round"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results = Results(options.output / "results.jsonl")
    for seed in options.seeds:
        run_seed(seed, options, results)


def run_seed(seed: int, options: argparse.Namespace, results: Results) -> None:
    """The three trainings of one seed."""
    record = json.loads((options.dataset / "annotations" / "instances_train.json").read_text())
    names = sorted(image["file_name"] for image in record["images"])
    random.Random(seed).shuffle(names)
    first, others = names[: options.images], names[options.images :]
    weights = train_on("first", first, seed, options, results)
    further = {"chosen": lambda: in_order(weights, others, options), "random": lambda: others}
    for kind, order in further.items():
        train_on(kind, [*first, *order()[: options.images]], seed, options, results)


def train_on(kind: str, names: list[str], seed: int, options: argparse.Namespace, results: Results) -> Path:
    """A training on some of the training images, unless there is a row of it; the best weights."""
    dataset, folder = (options.output / f"{part}-{kind}-{seed}" for part in ("data", "run"))
    key = {"dataset": options.dataset.name, "images": kind, "seed": seed, "steps": options.steps, "device": options.device}
    if not results.find(key):
        write_part(options.dataset, names, dataset)
        results.add(key | {"count": len(names)} | run_ours(recipe_config(dataset, folder, seed, options, "train.evaluate_every=8")))
    return folder / "weights" / "best.safetensors"


def write_part(dataset: Path, names: list[str], output: Path) -> None:
    """A dataset whose split `train` has these images alone; images are links."""
    (output / "annotations").mkdir(parents=True)
    for path in (dataset / "annotations").glob("instances_*.json"):
        record, split = json.loads(path.read_text()), path.stem.removeprefix("instances_")
        if split == "train":
            record["images"] = [image for image in record["images"] if image["file_name"] in set(names)]
        kept = {image["id"] for image in record["images"]}
        record["annotations"] = [entry for entry in record["annotations"] if entry["image_id"] in kept]
        (output / "annotations" / path.name).write_text(json.dumps(record))
        (output / split).mkdir()
        for image in record["images"]:
            (output / split / image["file_name"]).symlink_to((dataset / split / image["file_name"]).resolve())


def in_order(weights: Path, names: list[str], options: argparse.Namespace) -> list[str]:
    """The images in the order in which a label helps most, as `deformable-detr label` gives it."""
    detector = Detector.load(weights, device=options.device)
    limits = detector.score_limits(None).numpy()
    paths = [options.dataset / "train" / name for name in names]
    found = propose(detector.iterate(paths, min(CANDIDATE, float(limits.min()))), limits)
    return [Path(proposal.image.path).name for proposal in by_usefulness(found)]


if __name__ == "__main__":
    main()
