"""The scripts of docs/how-to/encode-on-a-cluster.md do what the page says; what a batch system adds is stood in for."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import distributed
import pytest
import yaml

from interp_embed import Dataset
from interp_embed.store import Store
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import assert_chunks_equal, read_everything
from tests.support.fake_sae import WordSAE
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "how-to" / "encode-on-a-cluster.md").read_text(encoding="utf-8")
RECORDS = [{"text": f"doc{i} the cat sat on {i % 7}", "n": i} for i in range(40)]


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.M | re.S)


def block(kind, having):
    return next(text for text in blocks(kind) if having in text)


@pytest.fixture
def shell(tmp_path):
    """Run a shell script in a folder with documents, where the commands of SLURM are stood in for."""
    tools = tmp_path / "bin"
    tools.mkdir()
    command = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m interp_embed.cli "$@"\n'
    (tools / "interp-embed").write_text(command)
    (tools / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tools / "sbatch").write_text(SBATCH)
    for tool in tools.iterdir():
        tool.chmod(0o755)
    Dataset(RECORDS, WordSAE(), compute_activations=False).pandas().to_parquet(
        tmp_path / "documents.parquet"
    )

    def call(script, *arguments, **environment):
        return subprocess.run(
            ["bash", "-c", script, "bash", *map(str, arguments)],
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return call


# Runs a job at once, an array task by task, and prints its number.
SBATCH = """#!/bin/bash
while [ $# -gt 0 ]; do
    case "$1" in
        --wrap) wrapped=$2; shift ;;
        --*) ;;
        *) break ;;
    esac
    shift
done
if [ -n "$wrapped" ]; then
    bash -c "$wrapped" >> jobs.txt 2>&1
else
    tasks=$(sed -n 's/.*--array=0-\\([0-9]*\\).*/\\1/p' "$1")
    for i in $(seq 0 "$tasks"); do
        SLURM_ARRAY_TASK_ID=$i bash "$@" >> jobs.txt 2>&1
    done
fi
echo "job $? $*" >> ended.txt
echo 17
"""


def planned(script):
    """Plan with the SAE of the tests, in small chunks."""
    return re.sub(
        r"interp-embed plan (\S+) (\$?\S+?)(?=[\"\s])",
        r"interp-embed plan \1 \2 --sae tests.support.fake_sae:WordSAE --chunk-documents 2",
        script.replace(" --sae embedded --chunk-documents 256", ""),
    )


def assert_right(path):
    assert verify(path) == []
    expected = Dataset(RECORDS, WordSAE())
    assert_chunks_equal(read_everything(Store(path)), read_everything(expected.selection.store))


def test_the_three_commands(shell, tmp_path):
    script = planned(block("sh", "worker 3/16"))
    done = shell(f"set -e\n{script}")
    assert done.returncode == 0, done.stderr
    assert_right(tmp_path / "corpus.zarr")


def test_the_commands_for_one_machine(shell, tmp_path):
    lines = block("sh", "--processes 2").splitlines()
    plan = planned("interp-embed plan documents.parquet corpus.zarr\n")
    assert shell(plan).returncode == 0
    assert shell(lines[2]).returncode == 0
    assert_right(tmp_path / "corpus.zarr")
    for line in lines[:2]:  # there may be no GPU, and no other fault
        said = shell(line.replace("encode documents.parquet", "encode"))
        assert said.returncode == 0 or "this process sees" in said.stderr


@pytest.mark.timeout(300)
def test_the_array_of_slurm(shell, tmp_path):
    store = tmp_path / "shared.zarr"
    array = block("sh", "#SBATCH").replace("0-15", "0-3").replace("/16", "/4")
    (tmp_path / "encode.sh").write_text(array)
    script = planned(block("sh", "--parsable")).replace("/shared/corpus.zarr", str(store))
    done = shell(script)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "jobs.txt").read_text()
    assert '{"worker": "0/4"' in log, log
    assert "complete, 40 of 40 documents encoded" in log
    assert_right(store)


def test_the_indexed_job_of_kubernetes(shell, tmp_path):
    job = yaml.safe_load(block("yaml", "Job"))["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert job["completions"] == job["parallelism"] == 16
    assert shell(planned("interp-embed plan documents.parquet corpus.zarr\n")).returncode == 0
    for index in (15, 0):
        command = shlex.join(container["command"])
        environment = {e["name"]: e["value"] for e in container["env"]}
        environment |= {"STORE": "corpus.zarr", "JOB_COMPLETION_INDEX": str(index)}
        done = shell(command, **environment)
        assert done.returncode == 0, done.stderr
    assert '"documents": 40' not in done.stderr, "the first one did it all"
    assert shell("interp-embed finish corpus.zarr").returncode == 0
    assert_right(tmp_path / "corpus.zarr")


def test_the_script_for_dask(shell, tmp_path):
    (tmp_path / "run.py").write_text(block("python", "client=client"))
    assert shell(planned("interp-embed plan documents.parquet corpus.zarr\n")).returncode == 0
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        command = [sys.executable, "run.py", "corpus.zarr", cluster.scheduler_address]
        done = shell(shlex.join(command))
    assert done.returncode == 0, done.stderr
    assert "40 documents encoded, 0 failed" in done.stdout
    assert_right(tmp_path / "corpus.zarr")
