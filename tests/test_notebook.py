"""The notebook is code: it runs from top to bottom, and what is stored of it is small."""

import json
import os
import re

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")


@pytest.fixture
def path(root):
    return root / "notebooks" / "talk2dino.ipynb"


def outputs(notebook):
    return [o for cell in notebook.cells for o in cell.get("outputs", [])]


def text(notebook):
    """Everything the cells have printed."""
    return "".join(o.get("text", "") for o in outputs(notebook))


def test_the_notebook_runs_from_top_to_bottom(path, root, tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root / "src"), *_python_path()]))
    monkeypatch.setenv("TALK2DINO_NOTEBOOK_IMAGES", "120")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel chooses the one of notebooks
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    before = sorted(path.parent.iterdir())
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    assert sorted(path.parent.iterdir()) == before, "the notebook writes only what is temporary"
    pictures = [o for o in outputs(notebook) if "image/jpeg" in o.get("data", {})]
    assert len(pictures) >= 5
    untrained, trained = map(
        int, re.search(r"(\d+)% untrained, (\d+)% trained", text(notebook)).groups()
    )
    assert trained > 2 * untrained


def test_the_stored_notebook_shows_its_results_and_is_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 200_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    assert "% trained" in text(notebook)


def test_the_stored_notebook_tells_nothing_about_the_machine_that_ran_it(path):
    stored = json.dumps([o.get("text", "") for o in outputs(nbformat.read(path, as_version=4))])
    assert not re.search(r"/(home|tmp|work|Users|root)/", stored)


def _python_path():
    return filter(None, [os.environ.get("PYTHONPATH")])
