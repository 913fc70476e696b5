"""Every command on real stores; exit codes; errors in one line and without a traceback."""

from __future__ import annotations

import ast
import gzip
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import interp_embed
from interp_embed import Dataset
from interp_embed.cli import run
from interp_embed.cli.hints import telling_words, words_of_tokens
from interp_embed.cli.run import describe
from interp_embed.cli.saes import best_device, build_sae
from interp_embed.errors import NotAStoreError
from interp_embed.inputs import as_documents
from interp_embed.sae import LocalSAE
from interp_embed.sae.releases.embedded_release import embedded_sae_folder
from interp_embed.selection.row import DatasetRow
from interp_embed.testing import random_chunk, store_from_chunk
from tests.support.fake_sae import WordSAE, words
from tests.support.paths import FIXTURES
from tests.support.waiting import PATIENCE, wait_until

PICKLE = FIXTURES / "original-pandas-2.2.pkl"
RECORDS = [
    {"text": "the cat sat on the mat", "n": 1},
    {"text": "NA", "n": 2},
    {"text": 'say "hello",\ntwice', "n": 3},
    {"text": "007", "n": 4},
    {"text": "", "n": 5},
    {"text": "smile \N{GRINNING FACE} now", "n": 6},
    {"text": "the end", "n": 7},
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def cli(capsys):
    """Run a command; its exit code, what it printed, and what it said on stderr."""

    def call(*arguments):
        code = run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err or "--debug" in arguments
        return code, out, err

    return call


@pytest.fixture
def source():
    path = Path("documents.jsonl")
    path.write_text("".join(json.dumps(r) + "\n" for r in RECORDS), encoding="utf-8")
    return path


@pytest.fixture
def store(source, cli):
    code, _, err = cli("encode", source, "s.zarr", "--sae", "tests.support.fake_sae:WordSAE")
    assert code == 0, err
    return Path("s.zarr")


def start(*arguments, **environment):
    """Start the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from interp_embed.cli import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


# --- the program ---------------------------------------------------------------------------------


def test_help_answers_without_importing_what_commands_need():
    heavy = "{'numpy', 'pandas', 'zarr', 'numba', 'torch', 'rich'}"
    code = (
        "import sys, interp_embed.cli as c\n"
        f"code = c.run(['--help']); sys.exit(code or sorted({heavy} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "encode", "info", "top", "verify", "compact", "convert"):
        assert f"\n  {command} " in done.stdout
    assert "..." not in done.stdout.partition("Commands:")[2].partition("\n\n")[0]


@pytest.mark.parametrize(
    "command", ["demo", "encode", "info", "top", "verify", "compact", "convert"]
)
def test_every_command_has_help(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert out.startswith(f"Usage: interp-embed {command}")


def test_the_version_is_printed(cli):
    assert cli("--version")[:2] == (0, f"interp_embed {interp_embed.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("info",),
        ("top", "s.zarr", "first"),
        ("top", "s.zarr", "1", "-k", "0"),
        ("top", "s.zarr", "1", "--by", "median"),
        ("encode", "a.csv", "s.zarr", "--dtype", "int8"),
        ("encode", "a.csv", "s.zarr", "--batch-size", "0"),
        ("info", "s.zarr", "--no-such-option"),
    ],
)
def test_what_cannot_be_understood_is_exit_code_2(cli, arguments):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert "Usage:" in err


@pytest.mark.parametrize("command", ["info", "verify", "compact"])
def test_a_store_that_is_not_there_is_one_line_and_exit_code_1(cli, command):
    code, out, err = cli(command, "nothing.zarr")
    assert (code, out) == (1, "")
    assert err.startswith("error: there is no store at ")
    assert err.count("\n") == 1


def test_debug_shows_where_an_error_comes_from(cli):
    code, _, err = cli("info", "nothing.zarr", "--debug")
    assert code == 1
    assert "Traceback" in err
    assert "NotAStoreError" in err


def test_errors_are_described_in_one_line():
    assert describe(ValueError("two\n  lines")) == "two lines"
    assert describe(KeyError("document 3")) == "document 3"
    assert describe(NotAStoreError("no store here")) == "no store here"
    assert describe(FileNotFoundError(2, "No such file", "a.csv")) == "a.csv: No such file"
    assert describe(AttributeError("x")) == "AttributeError: x (--debug shows where)"
    assert describe(ValueError()) == "ValueError (--debug shows where)"
    assert describe(ValueError("x" * 5000)).endswith("… (--debug shows all of it)")
    assert "interp_embed[model]" in describe(ModuleNotFoundError("No torch", name="torch"))
    assert "interp_embed[io]" in describe(ImportError("Missing optional dependency 'pyarrow'."))


def test_nothing_but_the_command_line_imports_the_command_line():
    for module in Path(interp_embed.__file__).parent.rglob("*.py"):
        package = module.relative_to(Path(interp_embed.__file__).parent).parts[0]
        allowed = {"cli": ("cli", "viz"), "viz": ("viz",)}.get(package, ())
        tree = ast.parse(module.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.removeprefix("interp_embed.").partition(".")[0]
                if name.startswith("interp_embed.") and top in ("cli", "viz"):
                    # What a dataset and a row show in a notebook is imported when they are shown.
                    inside_a_repr = module.name in ("dataset.py", "row.py") and node.col_offset > 0
                    assert top in allowed or (top == "viz" and inside_a_repr), module


# --- encode --------------------------------------------------------------------------------------


def test_encode_says_what_it_did(cli, source):
    code, out, err = cli("encode", source, "s.zarr", "--sae", "tests.support.fake_sae:WordSAE")
    tokens = sum(len(words(r["text"])) for r in RECORDS)
    assert (code, err) == (0, "")
    assert f"7 of 7 documents encoded, {tokens} tokens" in out
    dataset = Dataset.load_from_file("s.zarr")
    assert dataset.documents() == [r["text"] for r in RECORDS]
    assert dataset.columns == ["text", "n"]


def write(kind, path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    frame = pd.DataFrame(RECORDS)
    lines = "".join(json.dumps(r) + "\n" for r in RECORDS)
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif kind == "csv from a spreadsheet":
        path.write_bytes(b"\xef\xbb\xbf" + frame.to_csv(index=False).encode())
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind == "json":
        path.write_text(json.dumps(RECORDS, indent=1), encoding="utf-8")
    elif kind == "gzip":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("csv", "a.csv"),
        ("csv", "A.CSV"),
        ("tsv", "a.tsv"),
        ("csv from a spreadsheet", "a.csv"),
        ("parquet", "a.parquet"),
        ("parquet", "told by its content"),
        ("json", "a.json"),
        ("jsonl", "a.jsonl"),
        ("jsonl", "a.json"),
        ("jsonl", "told by its content"),
        ("json", "told by its content"),
        ("gzip", "a.jsonl.gz"),
        ("gzip", "told by its content"),
    ],
)
def test_every_kind_of_file_gives_the_same_documents(tmp_path, kind, name):
    write(kind, tmp_path / name)
    frame = as_documents(str(tmp_path / name), "text").frame()
    assert frame["text"].tolist() == [r["text"] for r in RECORDS]
    assert frame["n"].tolist() == [r["n"] for r in RECORDS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"some text", "has an unknown format"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 1,}\n', "JSON Lines: line 2: "),
        ("a.jsonl", b'{"text": "a"}\nnot json\n', "line 2: Expecting value (column 1)\n"),
        ("a.csv", b"text\na\ncaf\xe9\n", "line 3 is not UTF-8 (byte 0xe9); save it as UTF-8\n"),
        ("a.json", b'["a", "b"]', "record 1 must be a JSON object, got str"),
        ("a.csv", b"text\n\xff\xfe", "cannot be read as CSV: line 2 is not UTF-8"),
        ("a.csv", b"", "cannot be read as CSV: No columns"),
        ("a.parquet", b"PAR1 and nothing else", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(cli, name, content, message):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    Path(name).write_bytes(content)
    code, _, err = cli("encode", name, "s.zarr", "--sae", "tests.support.fake_sae:WordSAE")
    assert code == 1
    assert err.startswith(f"error: {name}")
    assert message in err
    assert err.count("\n") == 1
    assert err.count("line ") <= 1
    assert not Path("s.zarr").exists()


def test_a_missing_file_and_a_missing_column_are_named(cli, source):
    code, _, err = cli("encode", "none.csv", "s.zarr", "--sae", "tests.support.fake_sae:WordSAE")
    assert (code, err) == (1, "error: none.csv: No such file or directory\n")
    code, _, err = cli(
        "encode", source, "s.zarr", "--field", "body", "--sae", "tests.support.fake_sae:WordSAE"
    )
    assert code == 1
    assert err == (
        f"error: {source} has no column 'body'; its columns are ['text', 'n']. Name the column with "
        "the text with --field\n"
    )


def test_cells_of_a_csv_are_texts_and_an_empty_one_is_an_empty_text(cli):
    Path("a.csv").write_text("text,n\nNA,1\n,2\n007,3\n")
    assert cli("encode", "a.csv", "s.zarr", "--sae", "tests.support.fake_sae:WordSAE")[0] == 0
    dataset = Dataset.load_from_file("s.zarr")
    assert dataset.documents() == ["NA", "", "007"]
    assert set(dataset.status()) == {"ok"}
    assert "empty cell is an empty text" in " ".join(cli("encode", "--help")[1].split())


def test_failed_documents_are_listed_and_the_others_encoded(cli):
    rows = [{"text": t} for t in ["one FAIL", "two", None, "FAIL", "FAIL again", "three"]]
    Path("a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, out, _ = cli("encode", "a.jsonl", "s.zarr", "--sae", "tests.support.fake_sae:WordSAE")
    assert code == 0
    assert "2 of 6 documents encoded" in out
    assert "4 failed:" in out
    assert "document 0: RuntimeError: this text cannot be encoded" in out
    assert "document 2: the text is missing" in out
    assert "..." in out


def test_nothing_encoded_at_all_is_an_error(cli):
    Path("a.csv").write_text("text\nFAIL\n")
    code, out, err = cli("encode", "a.csv", "s.zarr", "--sae", "tests.support.fake_sae:WordSAE")
    assert code == 1
    assert "this text cannot be encoded" in out
    assert err == "error: no document could be encoded; the reasons are above\n"


def test_the_same_command_again_encodes_nothing_twice(cli, source, store, monkeypatch, tmp_path):
    monkeypatch.setenv("WORD_SAE_LOG", str(tmp_path / "log"))
    code, out, _ = cli("encode", source, store, "--sae", "tests.support.fake_sae:WordSAE")
    assert code == 0
    assert "7 of 7 documents encoded" in out
    assert not (tmp_path / "log").exists()


def test_going_on_with_other_settings_or_documents_is_refused(cli, source, store):
    again = ["encode", source, store, "--sae", "tests.support.fake_sae:WordSAE"]
    code, _, err = cli(*again, "--dtype", "float16")
    assert code == 1
    assert "dtype: stored 'float32', given 'float16'" in err
    source.write_text(source.read_text().replace("the cat", "the dog"))
    code, _, err = cli(*again)
    assert code == 1
    assert "Differences: the texts of documents 0 to 6. Use" in err
    assert "save_path" not in err


def test_float16_halves_the_activations(cli, source):
    cli(
        "encode",
        source,
        "half.zarr",
        "--sae",
        "tests.support.fake_sae:WordSAE",
        "--dtype",
        "float16",
    )
    assert json.loads(cli("info", "half.zarr", "--json")[1])["dtype"] == "float16"


@pytest.mark.parametrize("sae", ["tests.support.fake_sae:WordSAE", "mine:make", "mine:ready"])
def test_an_sae_may_come_from_a_module_in_the_current_folder(cli, source, monkeypatch, sae):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(
        "from tests.support.fake_sae import WordSAE\nready = WordSAE()\ndef make():\n    return WordSAE()\n"
    )
    assert cli("encode", source, "s.zarr", "--sae", sae)[0] == 0
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        ("embeded", "--sae must be 'embedded', RELEASE/SAE_ID"),
        ("no_such_module:make", "module 'no_such_module' is neither installed"),
        ("tests.support.fake_sae:make", "has no attribute 'make'"),
        (
            "tests.support.fake_sae:words",
            "--sae tests.support.fake_sae:words: the factory failed",
        ),
        ("math:sin", "--sae math:sin: the factory failed"),
        ("math:pi", "the factory must return an interp_embed.sae.BaseSAE, got float"),
        ("collections:OrderedDict", "must return an interp_embed.sae.BaseSAE, got OrderedDict"),
        (".", "it contains no cfg.json"),
        ("/no/such/folder", "it contains no cfg.json"),
        ("release/", "--sae must be 'embedded', RELEASE/SAE_ID"),
    ],
)
def test_an_sae_that_cannot_be_found_is_said_before_any_work(cli, source, sae, message):
    code, _, err = cli("encode", source, "s.zarr", "--sae", sae)
    assert code == (1 if "failed" in message else 2)
    assert message in " ".join(err.split())
    assert not Path("s.zarr").exists()


def test_an_sae_that_does_not_load_leaves_no_store_behind(cli, source, monkeypatch):
    monkeypatch.delitem(sys.modules, "unloadable", raising=False)
    Path("unloadable.py").write_text(
        "from tests.support.fake_sae import WordSAE\n"
        "class Unloadable(WordSAE):\n"
        "    def load_models(self):\n"
        "        raise OSError('no such weights')\n"
    )
    code, _, err = cli("encode", source, "s.zarr", "--sae", "unloadable:Unloadable")
    assert (code, err) == (1, "error: no such weights\n")
    assert not Path("s.zarr").exists()
    Path("other").write_text("a file")
    code, _, err = cli("encode", source, "other", "--sae", "unloadable:Unloadable")
    assert code == 1
    assert "a store is a folder" in err
    sys.modules.pop("unloadable", None)


def test_what_a_users_module_lacks_is_not_taken_for_the_module(cli, source, monkeypatch):
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    Path("broken.py").write_text("import surely_not_installed\n")
    code, _, err = cli("encode", source, "s.zarr", "--sae", "broken:make")
    assert code == 1
    assert "No module named 'surely_not_installed'" in err


def test_names_of_saes_are_told_apart(monkeypatch):
    monkeypatch.setattr("interp_embed.cli.saes.best_device", lambda device: "cpu")
    embedded = build_sae("embedded", "auto")
    assert isinstance(embedded, LocalSAE)
    assert embedded.release == "interp-embed-smollm2-135m"
    remote = build_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre", "auto")
    assert (remote.release, remote.sae_id) == ("gpt2-small-res-jb", "blocks.8.hook_resid_pre")
    nested = build_sae("gemma-scope/layer_20/width_16k", "auto")
    assert (nested.release, nested.sae_id) == ("gemma-scope", "layer_20/width_16k")
    folder = build_sae(str(embedded_sae_folder()), "auto")
    assert folder.d_sae == 4096
    assert build_sae("tests.support.fake_sae:WordSAE", "cpu").model_device == "cpu"


def test_a_gpu_that_is_not_there_is_refused(cli, source, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_device("auto") == "cpu"
    arguments = (
        "encode",
        source,
        "s.zarr",
        "--sae",
        "tests.support.fake_sae:WordSAE",
        "--device",
        "cuda:0",
    )
    code, _, err = cli(*arguments)
    assert code == 1
    assert err == (
        "error: --device cuda:0: torch sees no GPU here. Use --device cpu, or auto\n"
    )  # fmt: skip
    for device, problem in {"cuda:0": "sees no GPU", "gpu": "knows no such device"}.items():
        code, _, err = cli("encode", source, "s.zarr", "--device", device)
        assert code == 1
        assert err == (
            f"error: --device {device}: torch {problem}{' here' * (device == 'cuda:0')}. "
            "Use --device cpu, or auto\n"
        )
    assert not Path("s.zarr").exists()
    assert (
        build_sae("tests.support.fake_sae:WordSAE", "gpu").model_device == "gpu"
    )  # it may know one
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_device("auto") == "cuda:0"


def test_ctrl_c_keeps_what_was_committed_and_says_how_to_go_on(cli, tmp_path):
    rows = [{"text": f"{i} slow words"} for i in range(400)]
    Path("a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    Path("slow.py").write_text(
        "from tests.support.fake_sae import WordSAE\n"
        "class Slow(WordSAE):\n"
        "    def encode(self, texts):\n"
        "        import time; time.sleep(0.05)\n"
        "        return super().encode(texts)\n"
        "    def metadata(self):\n"
        "        return {}\n"
    )
    log = tmp_path / "log"
    arguments = ("encode", "a.jsonl", "s.zarr", "--sae", "slow:Slow", "--batch-size", "2",
                 "--save-every", "2")  # fmt: skip
    process = start(*arguments, WORD_SAE_LOG=str(log))
    commits = tmp_path / "s.zarr" / "commits"
    wait_until(lambda: len(list(commits.glob("*.json"))) >= 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted\n" in err
    assert "Run the same command again to resume" in err
    known = json.loads(cli("info", "s.zarr", "--json")[1])
    assert known["encoded"] >= 6
    assert known["missing"] == 400 - known["encoded"]
    before = log.read_text().splitlines()

    process = start(*arguments, WORD_SAE_LOG=str(log))
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "400 of 400 documents encoded" in out
    again = log.read_text().splitlines()[len(before) :]
    assert len(again) == known["missing"]


# --- info ----------------------------------------------------------------------------------------


def test_info_adds_up(cli, store):
    code, out, _ = cli("info", store, "--json")
    facts = json.loads(out)
    size = sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
    dataset = Dataset.load_from_file(store)
    activations = dataset.latents("all", compress=True)
    nonzeros = sum(m.nnz for m in activations)
    token_level = sum(
        f.stat().st_size
        for name in ("feature", "activation", "token_ptr", "doc_ptr")
        for f in store.glob(f"chunks/*/{name}/c/0")
    )
    assert code == 0
    assert facts["documents"] == facts["encoded"] == 7
    assert facts["failed"] == facts["missing"] == 0
    assert facts["tokens"] == dataset.token_count
    assert facts["nonzeros"] == nonzeros
    assert facts["total_bytes"] == size
    assert facts["bytes"]["token level"] == token_level
    assert facts["token_level_bytes_per_nonzero"] == pytest.approx(token_level / nonzeros)
    assert facts["bytes_per_nonzero"] == pytest.approx(size / nonzeros)
    assert facts["columns"] == ["text", "n"]
    assert facts["sae"]["sae_class"] == "tests.support.fake_sae:WordSAE"


def test_info_is_readable(cli, store):
    out = cli("info", store)[1]
    assert "  documents  7\n" in out
    assert "  dtype      float32\n" in out
    assert "  SAE        tests.support.fake_sae:WordSAE\n" in out
    assert "  columns    text (the text), n\n" in out
    assert "  token level" in out
    assert "  total" in out


def test_info_of_a_store_with_nothing_in_it_yet(cli):
    Dataset(
        [{"text": "a"}, {"text": "b"}], WordSAE(), save_path="s.zarr", compute_activations=False
    )
    code, out, _ = cli("info", "s.zarr")
    assert code == 0
    assert "2 (2 not encoded yet)" in out
    assert "features   unknown" in out
    assert json.loads(cli("info", "s.zarr", "--json")[1])["bytes_per_nonzero"] is None


def test_info_counts_failures(cli):
    Dataset([{"text": "FAIL"}, {"text": "b"}], WordSAE(), "A description.", save_path="s.zarr")
    out = cli("info", "s.zarr")[1]
    assert "documents    2 (1 failed)" in out
    assert "description  A description." in out


def test_info_of_a_pickle_says_what_to_do(cli):
    code, _, err = cli("info", PICKLE)
    assert code == 1
    assert "interp-embed convert" in err


# --- top -----------------------------------------------------------------------------------------


@pytest.fixture
def letters():
    """A feature with the values 1, 3 and 2 in documents 0, 2 and 3."""
    Path("letters.py").write_text(
        "import numpy as np\n"
        "from scipy.sparse import csr_matrix\n"
        "from tests.support.fake_sae import WordSAE, words\n"
        "class Letters(WordSAE):\n"
        "    def metadata(self):\n"
        "        return {}\n"
        "    def encode(self, texts):\n"
        "        return [csr_matrix(np.array([[w.count('a')] + [0] * 7 for w in words(t)],\n"
        "                np.float32)) for t in texts]\n"
    )
    Path("l.csv").write_text("text\ncat bee\nbee\ncat baaa\nbanaan aa cat\nbee aa\n")


def test_top_lists_documents_by_their_activation(cli, letters):
    sys.modules.pop("letters", None)
    cli("encode", "l.csv", "l.zarr", "--sae", "letters:Letters")
    code, out, _ = cli("top", "l.zarr", 0, "-k", 3)
    assert code == 0
    assert out.splitlines()[0] == "feature 0 (zeroth): active in 4 of 5 documents"
    found = [line for line in out.splitlines() if ", document " in line]
    assert [line.split() for line in found] == [
        ["1", "max", "3,", "document", "2"],
        ["2", "max", "3,", "document", "3"],
        ["3", "max", "2,", "document", "4"],
    ]
    assert "     <<cat baaa>>\n" in out
    assert "     bee <<aa>>\n" in out
    lowest = cli("top", "l.zarr", 0, "--lowest", "-k", 1)[1]
    assert "  1  max 1, document 0" in lowest
    assert "  1  sum 6, document 3" in cli("top", "l.zarr", 0, "--by", "sum")[1]
    assert "active in 0 of 5" in cli("top", "l.zarr", 1)[1]

    full = Dataset.load_from_file("l.zarr")
    data = [*full.list(), {"text": "cat"}, {"text": "aa"}]
    rows = [*full, None, None]
    Dataset(data, full.sae, rows=rows, save_path="p.zarr", compute_activations=False)
    assert cli("top", "p.zarr", 0)[1].splitlines()[0] == (
        "feature 0: active in 4 of the 5 encoded documents (2 are not encoded yet)"
    )
    data[5]["text"] = None
    Dataset(data[:6], full.sae, save_path="f.zarr")
    assert "active in 4 of the 5 encoded documents (1 failed)\n" in cli("top", "f.zarr", 0)[1]
    sys.modules.pop("letters", None)


def test_top_shows_a_part_of_a_long_document(cli, letters):
    sys.modules.pop("letters", None)
    text = " ".join(["bee"] * 500 + ["cat"] + ["bee"] * 500)
    Path("l.jsonl").write_text(json.dumps({"text": text}) + "\n")
    cli("encode", "l.jsonl", "l.zarr", "--sae", "letters:Letters")
    out = cli("top", "l.zarr", 0)[1]
    assert "<<cat>>" in out
    assert "     … bee bee" in out
    assert out.rstrip().endswith("bee …")
    assert len(out) < 700
    sys.modules.pop("letters", None)


def test_a_feature_that_is_not_there_is_refused(cli, store):
    code, _, err = cli("top", store, 32)
    assert (code, err) == (
        1,
        "error: feature 32 is not among the 32 features of the SAE (0 to 31)\n",
    )


def test_top_reads_the_pickle_of_the_original_library(cli):
    code, out, _ = cli("top", PICKLE, 0)
    assert code == 0
    assert out.startswith("feature 0")


def test_a_reader_that_goes_away_is_no_crash(store):
    process = start("info", store)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(timeout=PATIENCE)


# --- verify, compact, convert --------------------------------------------------------------------


def test_verify_finds_nothing_wrong_with_a_sound_store(cli, store):
    assert cli("verify", store) == (0, f"{store}: nothing is damaged\n", "")


def test_verify_names_what_is_damaged(cli, store):
    shard = next(store.glob("chunks/*/activation/c/0"))
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    code, out, _ = cli("verify", store)
    assert code == 1
    assert f"error: {shard.relative_to(store).as_posix()}: " in out
    assert " error" in out.splitlines()[-1]


def test_verify_of_a_folder_that_is_no_store_says_so(cli, store):
    Path("other").mkdir()
    Path("other/x").write_text("mine")
    code, out, err = cli("verify", "other")
    assert (code, out) == (1, "")
    assert err == cli("info", "other")[2]
    assert "there is no store at " in err
    (store / "zarr.json").unlink()  # of a store that has lost its root the rest is checked
    code, out, _ = cli("verify", store)
    assert code == 1
    assert "error: zarr.json: is missing\n" in out


def test_notes_of_verify_are_no_errors(cli):
    Dataset(
        [{"text": "a"}, {"text": "b"}], WordSAE(), save_path="s.zarr", compute_activations=False
    )
    code, out, _ = cli("verify", "s.zarr")
    assert code == 0
    assert out.splitlines()[-1] == "s.zarr: nothing is damaged, 1 note"


def random_store(path, **kwargs):
    chunk = random_chunk(0, 20, d_sae=50, failures=False)
    return store_from_chunk(path, chunk, **kwargs)


def test_compact_merges_and_changes_nothing_that_is_read(cli):
    random_store("s.zarr", documents_per_chunk=2, finished=False)
    before = Dataset.load_from_file("s.zarr").latents("sum")
    code, out, err = cli("compact", "s.zarr")
    assert (code, err) == (0, "")
    assert "10 chunks before, 1 now; " in out
    np.testing.assert_array_equal(Dataset.load_from_file("s.zarr").latents("sum"), before)
    assert cli("verify", "s.zarr")[0] == 0


def test_index_makes_an_index_that_info_shows_and_verify_checks(cli):
    random_store("s.zarr", documents_per_chunk=2)
    assert re.search(r"^  index +none$", cli("info", "s.zarr")[1], re.MULTILINE)
    assert json.loads(cli("info", "s.zarr", "--json")[1])["bytes"]["index"] == 0
    code, out, err = cli("index", "s.zarr", "--memory", "2G")
    assert (code, err) == (0, "")
    assert " of 20 documents in 1 segment; " in out
    shown = cli("info", "s.zarr")[1]
    assert re.search(r"^  index +complete$", shown, re.MULTILINE)
    assert re.search(r"^    index +[0-9.]+ KiB +[0-9.]+$", shown, re.MULTILINE)
    shards = sum(f.stat().st_size for f in Path("s.zarr/index").rglob("c/0"))
    assert json.loads(cli("info", "s.zarr", "--json")[1])["bytes"]["index"] == shards
    assert cli("verify", "s.zarr")[1] == "s.zarr: nothing is damaged\n"
    before = set(Path("s.zarr/index").iterdir())
    assert cli("index", "s.zarr")[0] == 0
    assert set(Path("s.zarr/index").iterdir()) == before
    next(Path("s.zarr/index").rglob("document/c/0")).write_bytes(b"damaged")
    code, out, _ = cli("verify", "s.zarr")
    assert code == 1
    assert "interp-embed index --rebuild" in out
    assert cli("index", "s.zarr", "--rebuild")[0] == 0
    assert cli("verify", "s.zarr")[0] == 0


def test_index_of_some_documents(cli):
    chunk = random_chunk(0, 20, d_sae=50, failures=False)
    frame = pd.DataFrame({"text": ["x" * 99] * 20})
    store_from_chunk("s.zarr", chunk.take(np.arange(8)), frame, finished=False)
    out = cli("index", "s.zarr")[1]
    assert " of 8 documents in 1 segment; " in out
    assert "  12 documents are not encoded yet\n" in out


@pytest.mark.parametrize("memory", ["much", "-1", "0"])
def test_index_refuses_what_is_no_size(cli, memory):
    random_store("s.zarr")
    code, _, err = cli("index", "s.zarr", f"--memory={memory}")
    assert code == 1
    assert "--memory must be a size such as 8G" in err


def test_a_pickle_converts_to_a_store_and_back(cli):
    assert cli("convert", PICKLE, "new.zarr")[0] == 0
    code, out, _ = cli("convert", "new.zarr", "back.pkl")
    assert code == 0
    assert out.startswith("back.pkl: ")
    first, second = Dataset.load_from_file(PICKLE), Dataset.load_from_file("back.pkl")
    np.testing.assert_array_equal(first.latents("max"), second.latents("max"))
    assert first.documents() == second.documents()


def test_convert_keeps_the_dtype_unless_told_otherwise(cli, source):
    cli(
        "encode",
        source,
        "half.zarr",
        "--sae",
        "tests.support.fake_sae:WordSAE",
        "--dtype",
        "float16",
    )
    cli("convert", "half.zarr", "same.zarr")
    cli("convert", "half.zarr", "single.zarr", "--dtype", "float32")
    assert json.loads(cli("info", "same.zarr", "--json")[1])["dtype"] == "float16"
    assert json.loads(cli("info", "single.zarr", "--json")[1])["dtype"] == "float32"


def test_convert_overwrites_only_when_told_to(cli, store):
    Path("there.pkl").write_text("precious")
    code, _, err = cli("convert", store, "there.pkl")
    assert (code, err) == (
        1,
        "error: there.pkl already exists. Give another path, or --overwrite\n",
    )
    assert Path("there.pkl").read_text() == "precious"
    assert cli("convert", store, "there.pkl", "--overwrite")[0] == 0
    assert Dataset.load_from_file("there.pkl").documents()[0] == "the cat sat on the mat"


def test_convert_refuses_what_is_neither(cli):
    Path("old.pkl").write_text("no pickle")
    code, _, err = cli("convert", "old.pkl", "new.zarr")
    assert code == 1
    assert "neither a store (a folder) nor a pickle" in err


# --- demo ----------------------------------------------------------------------------------------


def test_telling_words_are_whole_and_seldom_without_the_feature():
    def row(tokens, values):
        from scipy.sparse import csr_matrix

        matrix = csr_matrix(np.array(values, np.float32)[:, None])
        return DatasetRow({"text": "".join(tokens)}, list(tokens), matrix)

    rows = [
        row(["c", "ust", "ard", " of", " the", " day"], [0, 2, 3, 1, 0, 0]),
        row(["Custard", " of", " the", " night"], [4, 0, 0, 0]),
    ]
    assert telling_words(rows, 0) == ["custard", "of"]
    assert telling_words(rows, 0, k=1) == ["custard"]
    assert telling_words([], 0) == []
    assert words_of_tokens(["don", "'t", " stop", "!?"]) == [
        ("don't", [0, 1]),
        ("stop", [2]),
        ("!?", [3]),
    ]


@pytest.mark.model
def test_the_demo_shows_what_tells_the_groups_apart_and_a_second_run_encodes_nothing(
    cli, monkeypatch
):
    code, out, err = cli("demo", "--device", "cpu")
    assert code == 0, err
    assert "Encoding on cpu" in out
    assert "400 documents, " in out
    assert "tokens/s" in out
    page = Path("demo/index.html").read_text(encoding="utf-8")
    assert "What tells foods from animals" in page
    assert "WordNet" in page
    assert page.count("<article") == 16
    assert "endoftext" not in page
    # Each feature's share among foods is on the side that the table says.
    rows = [line.split() for line in out.splitlines() if "%" in line and "[" in line]
    assert len(rows) == 16
    assert all(int(r[1][:-1]) > int(r[2][:-1]) for r in rows[:8])
    assert all(int(r[1][:-1]) < int(r[2][:-1]) for r in rows[8:])

    monkeypatch.setattr(LocalSAE, "load", lambda self: pytest.fail("loads a model"))
    code, again, _ = cli("demo", "--device", "cpu")
    assert code == 0
    assert "already has them" in again
    table = again[again.index("Features that") : again.index("400 documents")]
    assert table in out
    assert Path("demo/index.html").read_text(encoding="utf-8") == page
    assert cli("verify", "demo/demo.zarr")[0] == 0


def test_the_demo_refuses_a_store_of_other_texts(cli):
    Dataset(
        [{"text": "another"}],
        LocalSAE.embedded(),
        save_path="demo/demo.zarr",
        compute_activations=False,
    )
    code, _, err = cli("demo", "--device", "cpu")
    assert code == 1
    assert "was made with other documents, another SAE or other settings" in err
    assert "note: delete " in err
