import json
import re
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow
SMALLER = {  # to be replaced, once in each notebook
    "quickstart": {
        '"max_train_samples": 3000, "batch_size": 100': '"max_train_samples": 100, "batch_size": 20',
        "epochs=3": "epochs=1",
        "test = load_synthetic()[1]": "test = load_synthetic(20, 100)[1]",
    },
    "colab": {'"max_train_samples": 2000, "batch_size": 100}, 3': '"max_train_samples": 100, "batch_size": 20}, 1'},
}


def outputs(notebook):
    """Returns the kinds of the outputs of each code cell."""
    return [
        [(output.output_type, *sorted(output.get("data", {}))) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def read(name):
    return nbformat.read(REPOSITORY / "examples" / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module", params=SMALLER)
def executed(request, tmp_path_factory):
    """The name of a notebook, the notebook after a smaller run without network, and the folder it ran in."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    notebook, smaller = read(name), SMALLER[name]
    assert all(sum(text in cell.source for cell in notebook.cells) == 1 for text in smaller)
    for cell in notebook.cells:
        for text, small in smaller.items():
            cell.source = cell.source.replace(text, small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("S10_SMALL", "1")
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        client = NotebookClient(
            notebook, timeout=200, coalesce_streams=True, resources={"metadata": {"path": str(folder)}}
        )
        client.create_kernel_manager()
        client.km.kernel_spec.argv[0] = sys.executable  # this environment's, whatever python3 the system knows
        client.execute()
    return name, notebook, folder


def test_the_notebooks_train_with_the_rate_they_found(executed):
    name, notebook, folder = executed
    run, search = sorted((folder / "outputs").iterdir())
    assert re.fullmatch(rf"{name}-\d{{6}}", run.name)
    assert search.name == f"{run.name}-lr"
    found = json.loads((search / "lr_finder.json").read_text())
    assert json.loads((run / "config.json").read_text())["max_lr"] == found["recommended_max_lr"]
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "completed after epoch 1" in text
    assert re.search(r"\d+\.\d+% of \d+ test images", text)


def test_the_committed_notebooks_were_executed_and_have_the_same_kinds_of_outputs(executed):
    name, notebook, _ = executed
    committed = read(name)
    nbformat.validate(committed)
    assert outputs(committed) == outputs(notebook)
    counts = [cell.execution_count for cell in committed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    text = nbformat.writes(committed)
    assert "Traceback" not in text
    assert str(REPOSITORY) not in text


def test_nothing_is_installed_where_the_package_is_there(executed):
    assert not (executed[2] / "keep-torch.txt").exists()
