import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow
NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"


def outputs(notebook):
    """Returns the kinds of the outputs of each code cell."""
    return [
        [(output.output_type, *sorted(output.get("data", {}))) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    smaller = {
        '"max_train_samples": 3000, "batch_size": 100': '"max_train_samples": 100, "batch_size": 20',
        "epochs=3": "epochs=1",
        "test = load_synthetic()[1]": "test = load_synthetic(20, 100)[1]",
    }
    assert all(sum(text in cell.source for cell in notebook.cells) == 1 for text in smaller)
    for cell in notebook.cells:
        for text, small in smaller.items():
            cell.source = cell.source.replace(text, small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        client = NotebookClient(
            notebook, timeout=200, coalesce_streams=True, resources={"metadata": {"path": str(folder)}}
        )
        client.create_kernel_manager()
        client.km.kernel_spec.argv[0] = sys.executable  # this environment's, whatever python3 the system knows
        client.execute()
    return notebook, folder


def test_the_notebook_runs(executed):
    notebook, folder = executed
    names = sorted(path.name for path in (folder / "outputs").iterdir())
    assert len(names) == 2
    assert all(re.fullmatch(r"quickstart-\d{6}(-lr)?", name) for name in names)
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "completed after epoch 1" in text
    assert re.search(r"\d+\.\d% of 100 test images", text)


def test_the_committed_notebook_was_executed_and_has_the_same_kinds_of_outputs(executed):
    committed = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(committed)
    assert outputs(committed) == outputs(executed[0])
    counts = [cell.execution_count for cell in committed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    text = Path(NOTEBOOK).read_text()
    assert "Traceback" not in text
    assert str(REPOSITORY) not in text
