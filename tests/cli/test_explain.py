"""The explain command and the figure of describe, as a user calls them."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import save_weights
from deformable_detr.cli.__main__ import main
from deformable_detr.cli.explain import numbers
from deformable_detr.model import build_model
from deformable_detr.visualize import explain, look_inside


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=2)
    categories = Categories.from_names(["a < b", "c & d"])
    model.metadata = replace(model.metadata, eval_short_side=64, max_long_side=96, categories=categories)
    Image.new("RGB", (120, 90), (90, 120, 60)).save(folder / "street.png")
    return folder / "street.png", save_weights(folder / "w.safetensors", model), model


class Page(HTMLParser):
    """Collects what a browser would fetch, and the text."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]
        if tag not in ("meta", "link", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_one_file(files, tmp_path, capsys):
    image, weights, model = files
    assert main(["explain", str(image), "--weights", str(weights), "--query", "3", "--output", str(tmp_path / "why.html")]) == 0
    found = look_inside(model, image).detection_of(3)
    shown = capsys.readouterr().out
    assert f"{found.name} {found.score:.2f}, detected by query 3" in shown
    text = (tmp_path / "why.html").read_text(encoding="utf-8")
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", text)
    assert "url(" not in text
    page = Page(text)
    assert page.open == []
    embedded = [source for source in page.sources if source != "data:,"]  # without the empty icon
    assert len(embedded) == 2 * 5  # for light and for dark pages
    assert all(source.startswith("data:image/webp;base64,") for source in embedded)
    assert found.name in page.text  # escaped once, not twice
    assert "proposal number 4 of 10" in page.text
    assert [item.name for item in tmp_path.iterdir()] == ["why.html"]


def test_tables_hold_the_numbers(files):
    image, _, model = files
    inside = look_inside(model, image)
    explanation = explain(inside, 2)
    tables = explanation.tables()
    strongest = inside.decoder[-1].attention_weights[0, 2].max()
    first = tables["Strongest points of the last layer"][1][0]
    assert float(first[-1]) == pytest.approx(float(strongest), abs=1e-3)
    head, level, point = (int(value) for value in first[1:4])
    place = inside.points_in_image(inside.decoder[-1], 2)[head, level, point].tolist()
    assert [float(value) for value in first[4:6]] == pytest.approx(place, abs=0.06)
    assert len(tables["Boxes (pixels)"][1]) == 1 + len(model.decoder.layers)
    shares = [sum(float(cell.rstrip("%")) for cell in row[1:]) for row in tables["Cross-attention per level"][1]]
    assert shares == pytest.approx([100.0] * len(shares), abs=0.3)


@pytest.mark.parametrize("choice", [["--point", "60,45"], ["--box=10,10,100,80"]])
def test_choices_and_figure(files, tmp_path, choice):
    image, weights, _ = files
    target = tmp_path / "why.png"
    assert main(["explain", str(image), "--weights", str(weights), *choice, "--output", str(target)]) == 0
    with Image.open(target) as drawn:
        assert drawn.size[0] > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--query", "1", "--point", "3,4"], "may not go together"),
        (["--query", "99"], "no query 99"),
        (["--point", "3"], "--point takes X,Y"),
        (["--box", "1,2,3,x"], "--box takes LEFT"),
        (["--output", "why.txt"], "why.txt"),
    ],
)
def test_mistakes_are_named(files, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    image, weights, _ = files
    assert main(["explain", str(image), "--weights", str(weights), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_weights_are_needed(capsys):
    assert main(["explain", "street.png"]) == 2
    assert "--weights" in capsys.readouterr().err


def test_numbers():
    assert numbers("1,2.5", 2, "") == [1.0, 2.5]
    assert numbers("(1, 2 3,4)", 4, "") == [1.0, 2.0, 3.0, 4.0]


def test_describe_draws_the_journey(files, tmp_path, capsys):
    image, weights, _ = files
    assert main(["describe", str(image), "--weights", str(weights), "--figure", str(tmp_path / "journey.png")]) == 0
    assert "journey.png" in capsys.readouterr().out
    with Image.open(tmp_path / "journey.png") as drawn:
        assert drawn.size[0] == 1800
