"""The live page of a run: what it reads, whom it answers, and what a browser shows."""

import http.client
import json
import socket

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from deformable_detr.visualize.pages.dashboard import Dashboard, run_state

ADVICE = "the loss <b>diverges</b> & more"
CLASS = 'cat <i> "x"'


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run <b>"
    (folder / "samples").mkdir(parents=True)
    lines = [{"kind": "start", "step": 0}, *({"kind": "train", "step": step, "loss": 20 / step} for step in range(10, 1010, 10))]
    per_class = [{"name": CLASS, "ap": 0.25, "ap50": None, "num_objects": 7}]
    lines.append({"kind": "evaluation", "step": 500, "ap": 0.2, "ap50": 0.5, "per_class": per_class})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra')
    progress = {"time": 1000.0, "state": "training", "step": 1000, "total_steps": 2000, "epoch": 2, "total_epochs": 4}
    (folder / "progress.json").write_text(json.dumps({**progress, "seconds_left": 300.0, "advice": [ADVICE]}))
    Image.fromarray(np.full((60, 90, 3), 90, dtype=np.uint8)).save(folder / "samples" / "overview.png")
    return folder


def test_state_of_a_run(folder):
    state = run_state(folder, now=1060.0)
    assert (state["step"], state["seconds_left"], state["age"], state["advice"]) == (1000, 240.0, 60.0, [ADVICE])
    assert state["loss"][0] == (10, 2.0) and state["loss"][-1] == (1000, 0.02) and len(state["loss"]) == 100
    assert state["ap"] == [(500, 0.2)] and state["classes"][0]["name"] == CLASS
    assert state["samples"] is not None
    json.dumps(state, allow_nan=False)


def test_a_line_that_a_full_disk_cut_off(folder):
    with (folder / "log.jsonl").open("a") as log:  # behind one without an end
        log.write('{"kind": "train", "step": 1010, "loss": 0.5}\n{"kind": "train", "step": 1020, "loss": 0.25}\n')
    assert run_state(folder)["loss"][-2:] == [(1000, 0.02), (1020, 0.25)]


def test_a_run_that_has_not_begun(tmp_path):
    state = run_state(tmp_path / "later")
    assert (state["state"], state["seconds_left"], state["loss"], state["samples"]) == (None, None, [], None)


def test_long_curves_keep_their_end(folder):
    (folder / "log.jsonl").write_text("".join(json.dumps({"kind": "train", "step": s, "loss": 1.0}) + "\n" for s in range(5000)))
    curve = run_state(folder)["loss"]
    assert len(curve) <= 400 and curve[-1] == (4999, 1.0)


def ask(dashboard, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", dashboard._server.server_port, timeout=30)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_only_this_machine_and_only_its_files(folder):
    (folder / "config.yaml").write_text("secret")
    with Dashboard(folder) as dashboard:
        assert dashboard._server.server_address[0] == "127.0.0.1"
        assert [ask(dashboard, path) for path in ("/", "/state.json", "/overview.png")] == [200, 200, 200]
        assert [ask(dashboard, path) for path in ("/config.yaml", "/../config.yaml", "/samples/overview.png")] == [404, 404, 404]
        assert ask(dashboard, "/", host="evil.example") == 403
        assert ask(dashboard, "/", host="localhost:6070") == 200  # through a tunnel


def test_a_port_that_is_taken(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="choose another one with --port"):
            Dashboard(folder, taken.getsockname()[1])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser(folder, open_tab, width, scheme):
    with (
        Dashboard(folder) as dashboard,
        open_tab(dashboard.address, viewport={"width": width, "height": 900}, color_scheme=scheme) as tab,
    ):
        expect(tab.locator("#state")).to_contain_text("step 1000 of 2000", timeout=60_000)
        assert tab.inner_text("h1") == "run <b>"
        assert tab.inner_text("#advice li") == ADVICE
        assert tab.inner_text("#classes td:first-child") == CLASS
        assert tab.locator("#loss polyline").count() == 1
        expect(tab.locator("#samples")).to_be_visible()
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        lines = (folder / "progress.json").read_text()
        (folder / "progress.json").write_text(lines.replace('"training"', '"finished"').replace('"step": 1000', '"step": 2000'))
        expect(tab.locator("#state")).to_contain_text("finished · step 2000 of 2000", timeout=60_000)
