"""Runs the notebooks of docs/walkthrough: `make walkthrough` keeps what they show."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from scripts import Options

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "walkthrough").glob("*.ipynb"))


def executed(path: Path, folder: Path) -> NotebookNode:
    """A notebook with what a fresh run of it shows; raises CellExecutionError if a cell fails.

    Args:
        path: the notebook, which stays as it is.
        folder: where it runs.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as private:
        # Only ipykernel's own specification: those a user has installed may name any interpreter.
        kernel = AsyncKernelManager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            transport="ipc",  # over TCP, other users of the machine could read along
            connection_file=str(Path(private) / "kernel.json"),
        )
        client = NotebookClient(
            notebook,
            km=kernel,
            timeout=300,
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        )
        inline = "module://matplotlib_inline.backend_inline"
        environment = os.environ | {"IPYTHONDIR": private, "MPLBACKEND": inline}
        client.execute(cleanup_kc=True, env=environment)
    # The run has noted the version of Python here, which is nobody's affair.
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    Options("notebooks", __doc__).parse_args()
    for path in NOTEBOOKS:
        with TemporaryDirectory() as folder:
            nbformat.write(executed(path, Path(folder)), path)
