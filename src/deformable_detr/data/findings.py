"""What can be wrong with a dataset: the kinds, how grave each is, what to do; and the collection of what was found where."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from deformable_detr.structures import ImageId

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Kind(NamedTuple):
    """One kind of finding."""

    severity: Severity
    title: str
    advice: str


KINDS: dict[str, Kind] = {
    "file-damaged": Kind("error", "the annotation file cannot be read", "write or download it again"),
    "label-fault": Kind("error", "faulty lines or files of annotations", "correct them; --fix leaves them out"),
    "entry-malformed": Kind("error", "entries that lack a key or have a wrong type", "correct them; --fix leaves them out"),
    "no-images": Kind("error", "no images", "list the images, or check that this is the right file"),
    "category-id-twice": Kind("error", "categories with an id that another one has", "give each its own id; --fix keeps the first"),
    "file-name-missing": Kind("error", "images without a `file_name`", "name the files; --fix leaves them out"),
    "image-id-twice": Kind("error", "images with an id that another one has", "give each its own id; --fix keeps the first"),
    "image-unknown": Kind("error", "annotations of images that are not listed", "list the images; --fix leaves them out"),
    "category-unknown": Kind("error", "annotations of categories that are not listed", "list them; --fix leaves them out"),
    "box-malformed": Kind(
        "error", "boxes that are not four finite numbers with a width and a height of 0 or more", "--fix leaves them out"
    ),
    "boxes-xyxy": Kind(
        "error",
        "boxes written as [left, top, right, bottom]; COCO has [left, top, width, height]",
        "subtract left and top from the last two numbers; --fix does",
    ),
    "boxes-centred": Kind(
        "error",
        "boxes written as [centre x, centre y, width, height]; COCO has [left, top, width, height]",
        "subtract half the size from the first two numbers; --fix does",
    ),
    "boxes-normalised": Kind("error", "boxes in shares of the image; COCO has pixels", "multiply by width and height; --fix does"),
    "box-outside": Kind("error", "boxes that lie wholly outside their image", "check their image; --fix leaves them out"),
    "image-ambiguous": Kind("note", "images whose names several files could have", "give the path below the dataset's folder"),
    "image-missing": Kind("error", "images that are not there", "add the files; --fix leaves them out"),
    "image-damaged": Kind("error", "images that cannot be decoded", "copy them again; --fix leaves them out"),
    "image-size": Kind(
        "error",
        "images of another size than the annotations say",
        "--fix scales the boxes where the aspect ratio is the same, else corrects the size where they fit",
    ),
    "exif-boxes": Kind(
        "error",
        "images that EXIF turns, with boxes that were made on the unturned pixels",
        "--fix states the size of the unturned pixels, which is how boxes are read then",
    ),
    "no-boxes": Kind("error", "no box to train on", "annotate, or check that this is the right file"),
    "class-not-in-train": Kind("error", "classes with boxes that the training split does not list", "use one class list"),
    "no-boxes-to-measure": Kind(
        "warning", "no box to find, so that nothing can be measured", "annotate, or check where the labels lie"
    ),
    "labels-missing": Kind("warning", "not one label of any image", "check where the labels lie; docs/data.md shows the layouts"),
    "image-renamed": Kind(
        "warning", "images found under another name or in another place than annotated", "correct the names; --fix does"
    ),
    "label-renamed": Kind("warning", "labels found under another name than their image's", "rename them; --fix writes one file"),
    "names-numbered": Kind(
        "warning", "class lists whose lines begin with numbers", "nothing; if they are part of the names, list those in a data.yaml"
    ),
    "path-replaced": Kind("warning", "paths that are not there, taken for others that are", "correct the paths"),
    "label-unused": Kind("warning", "label files that belong to no image", "rename them like their images, or remove them"),
    "annotation-unused": Kind("warning", "annotation files that are not used", "nothing if that is meant; else see docs/data.md"),
    "image-format": Kind("warning", "images of formats that are not read", "convert them to JPEG or PNG"),
    "size-missing": Kind("warning", "images without a usable `width` and `height`; the files' own are taken", "--fix writes them"),
    "bit-depth": Kind(
        "warning", "16-bit images that use the lowest bits only, so that they come out nearly black", "set data.bit_depth"
    ),
    "scores": Kind("warning", "boxes with scores, as predictions have", "check that this is ground truth"),
    "box-clipped": Kind("warning", "boxes that reach over the edge by more than 2 pixels", "they are cut off there; --fix does so"),
    "box-degenerate": Kind("warning", "boxes without an area", "training leaves them out; --fix does so"),
    "box-elsewhere": Kind(
        "warning", "boxes that lie elsewhere than their outlines", "check which are right: one of both may be of another image size"
    ),
    "box-turned": Kind(
        "warning", "boxes with an angle, which are taken unturned", "export outlines, or the boxes around the objects"
    ),
    "image-split": Kind("warning", "images that name the split they belong to, which is not read", "write one file for each split"),
    "box-tiny": Kind(
        "warning", "boxes of less than a pixel", "check whether some are shares of the image, as when two datasets were merged"
    ),
    "box-twice": Kind("warning", "boxes that stand there twice", "the second one can never be found; --fix removes it"),
    "annotation-id-twice": Kind("warning", "annotations with an id that another one has", "--fix numbers them anew"),
    "category-name-twice": Kind("warning", "classes with a name that another one has", "--fix makes one class of them"),
    "category-name-alike": Kind(
        "warning", "classes whose names differ in upper and lower case or spaces alone", "give them one name, if they are one"
    ),
    "image-listed-twice": Kind("warning", "images that are listed twice", "--fix merges their boxes"),
    "image-copy": Kind("warning", "images whose file is a copy of another one", "--fix keeps the first one"),
    "image-leak": Kind(
        "warning",
        "images that another split has, too, so that its numbers are too good",
        "remove them from one side; --fix removes them from the split that is trained on",
    ),
    "exif-stored": Kind(
        "warning",
        "images that EXIF turns, annotated as they are stored",
        "they are read so here; other programs may turn them, so store the pixels upright when you can",
    ),
    "class-untrained": Kind("warning", "classes with boxes to find but none to learn from", "add training images of them"),
    "too-many-objects": Kind(
        "warning", "images with more objects than queries", "the surplus cannot be found: raise model.num_queries"
    ),
    "box-computed": Kind("note", "boxes that are missing, computed from their outlines", "nothing; --fix writes them"),
    "split-missing": Kind("note", "splits that are named but not there", "nothing, or correct the path"),
    "ids-sparse": Kind("note", "category ids with gaps or not from 0", "nothing: ids become labels 0 … K−1 here"),
    "class-empty": Kind("note", "classes without a box", "nothing, or remove them from the list"),
    "class-rare": Kind("note", "classes with fewer than 10 training boxes", "expect little of them; more images help most"),
    "class-unmeasured": Kind("note", "classes with training boxes but none in another split", "their AP cannot be measured"),
    "images-empty": Kind("note", "images without a box", "good as background; check that none was forgotten"),
    "crowd": Kind("note", "crowd regions or difficult objects", "neither targets nor false positives"),
    "box-two-classes": Kind("note", "boxes that another class has, too", "check whether both are meant"),
    "image-alike": Kind("note", "images that look like another one", "frames of one video say little more than one of them"),
    "image-unlisted": Kind("note", "images in the folder that are not listed", "nothing, or annotate them"),
    "file-unused": Kind("note", "other files that are not used", "nothing"),
}
"""By code; the order is that of reports within a severity."""

REPLACED = ("image-missing", "image-damaged", "image-size")
"""What a training bears with `on_bad_image: skip`."""


class Item(NamedTuple):
    """One case of a finding."""

    text: str
    """Description of the case, for messages."""

    image: int | None = None
    """Position among the usable images."""

    annotation: int | None = None
    """Position in the file's `annotations`."""

    file: str | None = None
    image_id: ImageId | None = None
    annotation_id: Any = None

    value: Any = None
    """What a repair needs to know."""

    def to_dict(self) -> dict[str, Any]:
        """What is known of file, image id, annotation id, and the text; for JSON."""
        record = {"file": self.file, "image_id": self.image_id, "annotation_id": self.annotation_id, "text": self.text}
        return {key: value for key, value in record.items() if value is not None}


@dataclass(frozen=True)
class Finding:
    """All cases of one kind in one split."""

    code: str
    split: str
    items: tuple[Item, ...]

    @property
    def kind(self) -> Kind:
        """Severity, title and advice."""
        return KINDS[self.code]

    @property
    def severity(self) -> Severity:
        """How grave: an error stops or spoils training, a warning costs accuracy or trust, a note is for information."""
        return self.kind.severity

    @property
    def count(self) -> int:
        """How many cases."""
        return len(self.items)

    @property
    def heading(self) -> str:
        """The title, with the number where it is more than one."""
        return f"{self.kind.title}: {self.count}" if self.count > 1 else self.kind.title

    def __str__(self) -> str:
        return f"{self.split}: {self.heading} ({self.items[0].text}{', …' if self.count > 1 else ''})"

    def to_dict(self, examples: int = 5) -> dict[str, Any]:
        """Plain values with the first few examples, for JSON."""
        return {
            "code": self.code,
            "severity": self.severity,
            "split": self.split,
            "count": self.count,
            "title": self.kind.title,
            "advice": self.kind.advice,
            "examples": [item.to_dict() for item in self.items[:examples]],
        }


@dataclass
class Found:
    """What was found so far in one split."""

    split: str
    items: dict[str, list[Item]] = field(default_factory=dict)

    @classmethod
    def from_lists(cls, items: Mapping[str, Sequence[Sequence[Any]]]) -> "Found":
        """What was written down as JSON, as yet of no split."""
        return cls("", {code: [Item(*item) for item in listed] for code, listed in items.items()})

    def add(self, code: str, *items: Item) -> None:
        """Note cases of a kind."""
        if items:
            self.items.setdefault(code, []).extend(items)

    @property
    def errors(self) -> list[tuple[str, Item]]:
        """All cases of errors, with their codes, in the order in which they were found."""
        return [(code, item) for code, items in self.items.items() if KINDS[code].severity == "error" for item in items]

    def raise_first(self, where: object, but: Sequence[str] = ()) -> None:
        """Be strict: raise the first error, if there is one.

        Args:
            where: the file that is at fault, for the message.
            but: codes that do not matter.

        Raises:
            ValueError: what was found first, and how many more there are.
        """
        if errors := [(code, item) for code, item in self.errors if code not in but]:
            code, item = errors[0]
            more = f" (and {len(errors) - 1} more such faults)" if len(errors) > 1 else ""
            text = item.text if str(where) in item.text else f"{where}: {item.text}"
            raise ValueError(f"{text}{more} [{KINDS[code].title}]; `deformable-detr doctor` lists all, and can repair a copy")

    def take(self, position: Mapping[int, int]) -> "Found":
        """What is about some images, or about none in particular.

        Args:
            position: of each chosen image its new position.
        """
        taken = Found(self.split)
        for code, items in self.items.items():
            kept = (item for item in items if item.image is None or item.image in position)
            taken.add(code, *(item._replace(image=None if item.image is None else position[item.image]) for item in kept))
        return taken

    def copy(self) -> "Found":
        """The same, to add to."""
        return Found(self.split, {code: list(items) for code, items in self.items.items()})

    def withdraw(self, codes: Iterable[str], image: int) -> None:
        """Take back what was noted about the boxes of an image, because there is a better explanation."""
        for code in codes:
            self.items[code] = [item for item in self.items.get(code, ()) if item.image != image]

    def findings(self) -> list[Finding]:
        """All kinds with at least one case, the most severe first."""
        return sort_findings(Finding(code, self.split, tuple(items)) for code, items in self.items.items() if items)


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """The most severe first, then in the order of :data:`KINDS`."""
    codes = list(KINDS)
    return sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), codes.index(finding.code)))
