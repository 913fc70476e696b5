"""What several test modules share."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from fake_sae import WideSAE, WordSAE
from fork_server import Server

from interp_embed import Dataset

TEXTS = [
    "the cat sat on the mat",
    "dogs are loyal pets",
    "",
    "python is a programming language",
    "machine learning is fascinating",
    "the end",
    "a \N{GRINNING FACE} smile",
    "one",
    "  two  spaces  ",
    "the the the",
    "loyal pets sat on python",
]


@pytest.fixture(scope="session", autouse=True)
def _interrupts_arrive():
    """Undo what a shell does to a job in the background: there SIGINT is ignored, children's too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """Skip fsync: no test cuts the power, and thousands of little files would be waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def quick_path(tmp_path):
    """A folder in memory where there is one with room, for tests that write thousands of files."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shutil.disk_usage(shared).free < 2**28:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def server():
    """A process with everything imported, whose children encode; see `fork_server`."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def sae():
    return WordSAE()


@pytest.fixture
def texts():
    return list(TEXTS)


@pytest.fixture
def data(texts):
    """Records with a text, a number, and another column."""
    return [
        {"text": text, "score": (7 * i) % 5, "source": f"s{i % 3}"} for i, text in enumerate(texts)
    ]


@pytest.fixture
def dataset(data):
    """Eleven documents; those at 3 and 8 failed."""
    data[3]["text"] = "python FAIL language"
    data[8]["text"] = None
    return Dataset(data, WideSAE(), "a description", save_every_batch=1, batch_size=2)


# Modules that import packages of the extras at their top: left out where the library is installed alone.
NEED = {
    "boto3": ("encode/test_workers.py", "store/test_object_stores.py"),
    "distributed": ("aggregate/test_distributed.py", "docs/test_clusters_page.py",
                    "docs/test_pages.py", "encode/test_cluster.py"),
    "nbformat": ("docs/test_notebooks.py",),
    "openai": ("docs/test_llm_page.py", "labels/test_report.py", "llm/test_client.py",
               "llm/test_labelling.py", "llm/test_patience.py"),
    "pyarrow": ("inputs/test_inputs.py",),
    "sae_lens": ("sae/test_batches.py", "sae/test_windows.py"),
}  # fmt: skip
collect_ignore = [
    module for package, modules in NEED.items() if find_spec(package) is None for module in modules
]
