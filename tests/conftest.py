"""What several test modules share."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from interp_embed import Dataset
from tests.support.fake_sae import TEXTS, WideSAE, WordSAE
from tests.support.fork_server import Server
from tests.support.hypotheses import register_profiles
from tests.support.paths import PYTHON_PATH

register_profiles()


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked ``soak`` unless it is asked for; a search begins anywhere."""
    if "soak" not in config.option.markexpr:
        soaks = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=soaks)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
    if "FUZZ_UNTIL" in os.environ:
        random.Random(config.getoption("--hypothesis-seed")).shuffle(items)


def pytest_runtest_teardown(item):
    """End a search between two tests when its time is over."""
    if time.time() > float(os.environ.get("FUZZ_UNTIL", "inf")):
        item.session.shouldstop = "the time is over"


@pytest.fixture(scope="session", autouse=True)
def _interrupts_arrive():
    """Undo what a shell does to a job in the background: there SIGINT is ignored, children's too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """Skip fsync: thousands of little files would be waited for.

    What would survive a power cut is found from the order of the calls; see `FileRecorder`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _children_import_from_this_checkout():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHON_PATH)
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
    """A process with everything imported, whose children encode; see `tests.support.fork_server`."""
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
