"""Labels come from files and go into files: ours, tables, and Neuronpedia's exports."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import re
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings

from interp_embed import Dataset
from interp_embed.cli.run import run
from interp_embed.exchange.label_files import read_labels, write_labels
from interp_embed.labels.record import LabelExample, combined
from tests.support.fake_sae import WideSAE
from tests.support.hypotheses import examples
from tests.support.labels import RECORDS, label, scored

NEURONPEDIA = [
    {
        "id": "cm1", "modelId": "gpt2-small", "layer": "8-res-jb", "index": "3",
        "description": " words about cats ", "authorId": "a", "typeName": "oai_token-act-pair",
        "explanationModelName": "gpt-4o-mini", "createdAt": "2024-07-01T00:00:00.000Z",
        "embedding": [0.5], "scoreV1": 0,
    },
    {
        "modelId": "gpt2-small", "layer": "8-res-jb", "index": "5", "description": "dogs",
        "typeName": None, "explanationModelName": None,
    },
    {"modelId": "gpt2-small", "layer": "8-res-jb", "index": "6", "description": ""},
]  # fmt: skip


@pytest.fixture
def dataset(data, tmp_path):
    return Dataset(data, WideSAE(), save_path=tmp_path / "s")


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@settings(max_examples=examples(40))
@given(RECORDS, RECORDS)
def test_what_is_written_is_read(tmp_path_factory, one, other):
    folder = tmp_path_factory.mktemp("files")
    for suffix in ("json", "csv"):
        path = str(folder / f"labels.{suffix}")
        write_labels(path, [one, other])
        assert combined(read_labels(path)) == combined([one, other])
        assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_labels_go_from_one_store_to_another(dataset, data, tmp_path):
    records = [
        label(1, "cats, \"dogs\"\nand more", source="llm", model="m", seed=3, prompt_version="1",
              brief_description="b", detailed_explanation="d",
              examples=(LabelExample(0, 1, 2, 0.5),), scores=(scored(0.9, 0.8, 1.0, n=20),)),
        label(1, "a person's"),
    ]  # fmt: skip
    dataset.add_labels(records)
    other = Dataset(data, WideSAE(), save_path=tmp_path / "other")
    for name in ("all.json", "all.csv"):
        count = dataset.export_labels(tmp_path / name)
        assert count == len(dataset.labels())
        other.import_labels(tmp_path / name)
        assert other.feature_labels() == dataset.feature_labels()
    written = {
        (x.feature, x.label, x.source, x.scores, x.examples) for x in dataset.label_records()
    }
    assert {
        (x.feature, x.label, x.source, x.scores, x.examples) for x in other.label_records()
    } == written
    assert dataset.export_labels(tmp_path / "best.csv", best=True) == len(dataset.feature_labels())
    table = pd.read_csv(tmp_path / "best.csv")
    assert dict(zip(table["feature"], table["label"], strict=True)) == dataset.feature_labels()
    assert other.import_labels(tmp_path / "best.csv", source="import") > 0
    assert other.import_labels(tmp_path / "best.csv", source="import") == 0, "nothing is new"


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "json", "explanations", "csv", "folder"])
def test_explanations_of_neuronpedia_are_read_in_each_form_they_come_in(form, dataset, tmp_path):
    path = tmp_path / f"batch-0.{form}"
    if form == "jsonl":
        path.write_text(lines(NEURONPEDIA))
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(lines(NEURONPEDIA).encode()))
    elif form == "csv":
        pd.DataFrame(NEURONPEDIA).to_csv(path, index=False)
    elif form == "folder":
        path.mkdir()
        for number, row in enumerate(NEURONPEDIA):
            (path / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(lines([row]).encode()))
    else:
        path = tmp_path / "export.json"
        path.write_text(
            json.dumps(NEURONPEDIA if form == "json" else {"explanations": NEURONPEDIA})
        )
    assert dataset.import_labels(path) == 2
    records = {x.feature: x for x in dataset.label_records() if x.source == "import"}
    assert set(records) == {3, 5}
    assert records[3].label == "words about cats"
    assert records[3].model == "gpt-4o-mini"
    assert records[3].prompt_version == "oai_token-act-pair"
    assert records[3].origin == "Neuronpedia gpt2-small/8-res-jb"
    assert records[3].created == "2024-07-01T00:00:00.000Z"
    assert dataset.feature_labels()[5] == "dogs"
    assert dataset.import_labels(path) == 0, "the same again is nothing new"


def test_a_feature_of_neuronpedia_brings_all_its_explanations_and_their_scores(tmp_path):
    path = tmp_path / "feature.json"
    score = {"value": 0.8, "explanationScoreTypeName": "eleuther_fuzz",
             "explanationScoreModelName": "gpt-4o-mini"}  # fmt: skip
    feature = {
        "modelId": "m", "layer": "l", "index": "7", "neuron": {},
        "explanations": [
            {"description": "one", "scores": [score, {"value": None}]},
            {"description": "two", "typeName": "t"},
        ],
    }  # fmt: skip
    path.write_text(json.dumps(feature))
    one, two = read_labels(str(path))
    assert (one.feature, one.label, two.label, two.prompt_version) == (7, "one", "two", "t")
    assert (one.scores[0].method, one.scores[0].value, one.scores[0].low) == (
        "eleuther_fuzz", 0.8, None,
    )  # fmt: skip


def test_explanations_of_several_saes_need_to_be_told_apart(dataset, tmp_path):
    path = tmp_path / "two.jsonl"
    path.write_text(lines([*NEURONPEDIA, {**NEURONPEDIA[0], "layer": "9-res-jb", "index": "4"}]))
    before = dataset.feature_labels()
    with pytest.raises(ValueError, match=r"gpt2-small/8-res-jb, gpt2-small/9-res-jb.*only="):
        dataset.import_labels(path)
    assert dataset.feature_labels() == before
    assert dataset.import_labels(path, only="gpt2-small/9-res-jb") == 1
    assert dataset.feature_labels()[4] == "words about cats"
    with pytest.raises(ValueError, match=r"no labels of gpt2-small/1 \(4 rows were read\)"):
        dataset.import_labels(path, only="gpt2-small/1")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.json", '{"3": "cats", "5": "dogs"}'),
        ("plain.csv", "feature,label,remark\n3,cats,x\n5,dogs,\n6,,no label\n"),
        ("plain.tsv", "feature\tlabel\n3\tcats\n5\tdogs\n"),
        ("list.json", '[{"feature": 3, "label": "cats"}, {"feature": "5", "label": "dogs"}]'),
        ("bom.csv", "\ufefffeature,label\n3,cats\n5,dogs\n"),
    ],
)
def test_tables_that_people_make_are_read(name, text, dataset, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    dataset.import_labels(tmp_path / name)
    shown = dataset.feature_labels()
    assert (shown[3], shown[5]) == ("cats", "dogs")
    assert set(dataset.labels()["source"]) == {"sae", "import"}
    dataset.import_labels(tmp_path / name, source="given")
    assert "given" in set(dataset.labels()["source"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", r"a\.json cannot be read as JSON"),
        ("b.json", "[]", "has no labels"),
        ("c.jsonl", '{"feature": 1, "label": "x"}\n{"feature": 1', r"c\.jsonl, line 2"),
        ("d.json", "[3]", r"d\.json, entry 0: expected a JSON object, got 3"),
        ("e.json", '[{"text": "x"}]', r"entry 0: it needs 'feature' and 'label'.*'text'"),
        ("f.csv", "text\nx\n", r"f\.csv has the columns text; labels need 'feature' and 'label'"),
        (
            "g.csv",
            "feature,label\n1,a\n-2,x\n",
            r"line 3: feature must be an integer of at least 0",
        ),
        ("h.csv", "feature,label,scores\n1,x,{\n", r"h\.csv, line 2"),
        ("i.json", '{"format": "interp_embed.labels", "version": 9, "labels": []}', "version 9"),
        ("j.csv", "feature,label,source\n1,x,magic\n", r"line 2: source must be one of"),
        ("k.txt", "1 cats", r"k\.txt has an unknown format"),
        ("m.json", "[" * 100_000, r"m\.json is nested too deeply"),
        ("n.jsonl", '{"feature": 1, "label": "x"}\n{"a": ' + "[" * 100_000, r"n\.jsonl is nested"),
        ("o.csv", f'feature,label,scores\n1,x,"{"[" * 100_000}"\n', r"o\.csv, line 2: nested"),
        (
            "p.json",
            '{"feature": 1, "label": "x", "scores": [1]}',
            "entry 0: scores must be objects",
        ),
        (
            "q.json",
            '{"feature": 1, "label": "x", "scores": "ab"}',
            "entry 0: scores must be objects",
        ),
        ("r.json", '{"feature": 1, "label": "x", "examples": [1]}', "entry 0: examples must be"),
        (
            "s.json",
            '{"feature": 1, "label": "x", "scores": [{"method": "x", "value": 1%s}]}' % ("0" * 400),
            "entry 0: value must be finite",
        ),
        (
            "t.json",
            '{"99999999999999999999": "x"}',
            "entry 0: feature must be an integer of 64 bits",
        ),
        ("u.csv", "feature,label,seed\n1,x,two\n", r"u\.csv, line 2: seed must be an integer"),
        (
            "v.csv",
            "feature,label,label\n1,x,y\n",
            r"v\.csv: columns \['label'\] occur more than once",
        ),
        ("l.json", '[{"feature": 1, "label": "x", "scores": [{"value": 1}]}]', "entry 0: .*method"),
    ],
)
def test_a_file_that_is_none_of_labels_is_named_with_the_place(
    name, text, message, dataset, tmp_path
):
    (tmp_path / name).write_text(text)
    before = dataset.labels()
    with pytest.raises(ValueError, match=message):
        dataset.import_labels(tmp_path / name)
    assert dataset.labels().equals(before)


def test_labels_of_another_sae_are_refused_as_a_whole(dataset, tmp_path):
    (tmp_path / "wide.csv").write_text("feature,label\n1,one\n100000,beyond\n")
    with pytest.raises(IndexError, match=r"wide\.csv: feature 100000 is not among the"):
        dataset.import_labels(tmp_path / "wide.csv")
    assert 1 not in dataset.feature_labels()
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*none\.csv'"):
        dataset.import_labels(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"\.json or \.csv, got '.*labels\.txt'"):
        dataset.export_labels(tmp_path / "labels.txt")
    with pytest.raises(ValueError, match="source must be one of"):
        dataset.import_labels(tmp_path / "wide.csv", source="me")


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "'=x", "''=x", "'x", "a\rb", "a\r\nb", "\x00", " = "],
)
def test_any_text_is_read_from_a_table_and_none_is_a_formula(text, tmp_path):
    record = label(1, f"{text}|", brief_description=text, source="llm", model=text, seed=-3)
    path = tmp_path / "t.csv"
    write_labels(str(path), [record])
    assert read_labels(str(path)) == [record]
    with path.open(newline="", encoding="utf-8") as file:
        _, [*cells] = csv.reader(file)
    assert not [cell for cell in cells if cell.startswith(tuple("=+@\t\r")) or cell == "-x"]


def test_what_says_nothing_is_as_if_it_were_not_there(tmp_path):
    (tmp_path / "n.json").write_text(
        '[{"feature": 1, "label": "x", "model": null, "scores": null, "seed": null},'
        ' {"feature": 2, "label": null}]'
    )
    assert read_labels(str(tmp_path / "n.json")) == [label(1, "x", source="import")]


# The command


def test_the_command_lists_imports_and_exports(dataset, tmp_path, capsys):
    store = str(tmp_path / "s")
    (tmp_path / "mine.csv").write_text("feature,label\n3,cats\n")
    assert run(["labels", store, "--import", str(tmp_path / "mine.csv"), "--source", "given"]) == 0
    assert "mine.csv: 1 new label; 1 feature shows one of them" in capsys.readouterr().err
    assert run(["labels", store]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown] == [
        ["0", "sae", "zeroth"],
        ["3", "given", "cats"],
        ["7", "sae", "<b>seventh</b>"],
    ]
    assert run(["labels", store, "-f", "3", "--json"]) == 0
    assert [x["label"] for x in json.loads(capsys.readouterr().out)] == ["cats"]
    assert run(["labels", store, "--export", str(tmp_path / "out.json"), "--all"]) == 0
    assert "3 labels" in capsys.readouterr().out
    assert len(read_labels(str(tmp_path / "out.json"))) == 3
    dataset.add_labels([label(3, "of a model", source="llm", scores=(scored(0.9, 0.8, 1.0),))])
    assert run(["labels", store, "--all", "--feature", "3"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"of a model  \(detection 0\.90 \[0\.80, 1\.00\]\)", out)


def test_a_label_cannot_move_the_cursor(dataset, tmp_path, capsys):
    dataset.add_labels({3: "cats\x1b[2J\x9b\u202e and \N{GRINNING FACE}"})
    assert run(["labels", str(tmp_path / "s"), "-f", "3"]) == 0
    out = capsys.readouterr().out
    assert "cats\ufffd[2J\ufffd\ufffd and \N{GRINNING FACE}" in out


def test_the_command_names_features_by_their_words(dataset, tmp_path, capsys):
    store = str(tmp_path / "s")
    assert run(["labels", store, "--from-tokens"]) == 0
    said = capsys.readouterr().err
    assert "labels made from tokens: " in said
    assert "; 1 shows a label that comes before: the SAE's own (1)" in said
    assert run(["labels", store]) == 0
    assert "tokens" in capsys.readouterr().out
    assert run(["labels", store, "--from-tokens"]) == 0
    assert " 0 new labels, " in capsys.readouterr().err


@pytest.mark.parametrize("beyond", [0, 9999])
@pytest.mark.parametrize("more", [[], ["--json"], ["--all"], ["--from-tokens"]])
def test_the_command_knows_which_features_there_are(beyond, more, dataset, tmp_path, capsys):
    width = dataset.d_sae
    feature = width + beyond
    assert run(["labels", str(tmp_path / "s"), "-f", "3", "-f", str(feature), *more]) == 2
    out = capsys.readouterr()
    assert f"--feature must be between 0 and {width - 1} for this SAE, got {feature}" in out.err
    assert not out.out


def test_the_command_says_that_a_feature_has_no_label(dataset, tmp_path, capsys):
    assert run(["labels", str(tmp_path / "s"), "-f", "1"]) == 0
    assert capsys.readouterr().out == "no labels for 1\n"


# What is said of an import


def test_an_import_of_what_a_store_has_already_adds_nothing(data, tmp_path):
    first = Dataset(data, WideSAE(), save_path=tmp_path / "first")
    first.add_labels({3: "cats"})
    first.add_labels([label(5, "dogs", source="llm", scores=(scored(0.9, 0.8, 1.0),))])
    count = first.export_labels(tmp_path / "labels.json")
    same = first.import_labels(tmp_path / "labels.json")
    assert (same, same.new, same.same) == (0, 0, count)
    assert str(same).startswith(f"0 new labels, {count} there already; ")

    fresh = Dataset(data, WideSAE(), save_path=tmp_path / "fresh")
    added = fresh.import_labels(tmp_path / "labels.json")
    # Those that came with the SAE are in the fresh store as well.
    assert (added, added.new, added.same) == (2, 2, count - 2)
    assert fresh.label_records() == first.label_records()
    assert fresh.import_labels(tmp_path / "labels.json") == 0


def test_examples_of_documents_that_are_not_there_are_left_out(data, tmp_path):
    first = Dataset(data, WideSAE(), save_path=tmp_path / "first")
    examples = (LabelExample(0, 0, 1, 2.0), LabelExample(len(data) - 1, 0, 1, 1.0))
    first.add_labels([label(5, "dogs", source="llm", examples=examples)])
    first.export_labels(tmp_path / "labels.json")
    smaller = Dataset(data[:3], WideSAE(), save_path=tmp_path / "smaller")
    with pytest.warns(UserWarning, match="documents of another store: .* which has 3, lacks"):
        smaller.import_labels(tmp_path / "labels.json")
    (found,) = (x for x in smaller.label_records() if x.feature == 5 and x.source == "llm")
    assert (found.label, found.examples) == ("dogs", ())


def test_what_was_added_is_counted_by_what_became_of_it(dataset):
    llm = label(3, "cats", source="llm")
    added = dataset.add_labels([llm, label(7, "an import", source="import"), label(0, "mine")])
    assert (added.new, added.scored, added.again, added.same) == (3, 0, 0, 0)
    shown = added.shown
    # 3 had no label; 0 had the SAE's, which a person's replaces and, of 7, an imported one.
    assert (shown.features, shown.replaced, shown.others) == (3, 2, {})
    added = dataset.add_labels([label(3, "by words", source="tokens"), label(7, "x", source="sae")])
    assert (added, added.shown.features) == (2, 0)
    assert added.shown.others == {"written by a language model": 1, "imported": 1}
    added = dataset.add_labels(
        [replace(llm, scores=(scored(0.9, 0.8, 1.0),)), llm, label(0, "mine"), llm]
    )
    assert (added, added.new, added.scored, added.again, added.same) == (1, 0, 1, 0, 3)
    added = dataset.add_labels({0: "better", 1: "new"})
    assert (added.new, added.shown.replaced) == (2, 1)
    added = dataset.add_labels({0: "mine"})
    assert (added, added.again, added.shown.replaced) == (1, 1, 1)
    assert dataset.feature_labels()[0] == "mine"
    assert pickle.loads(pickle.dumps(added)).again == 1
    assert f"{added:d}" == "1"
    assert (
        repr(added) == "0 new labels, 1 said again; 1 feature shows one of them, 1 in place of "
        "another label"
    )


@pytest.mark.parametrize(
    ("other", "mine", "why"),
    [
        ({"source": "given"}, {"source": "tokens"}, "given by a person"),
        ({"source": "given", "created": "2030"}, {"source": "given", "created": "2029"},
         "given by a person, later"),
        ({"source": "tokens", "scores": (scored(0.8, 0.7, 0.9),)}, {"source": "llm"},
         "made from tokens, with a score that is surely better than guessing"),
        ({"source": "tokens"}, {"source": "llm", "scores": (scored(0.5, 0.4, 0.6),)},
         "made from tokens, as these scored no better than guessing"),
        ({"source": "import", "created": "2030"}, {"source": "import", "created": "2029"},
         "imported, later"),
        ({"source": "sae"}, {"source": "tokens"}, "the SAE's own"),
    ],
)  # fmt: skip
def test_why_a_label_does_not_show_is_said(other, mine, why, dataset):
    dataset.add_labels([label(3, "other", **other)])
    added = dataset.add_labels([label(3, "mine", **mine)])
    assert dataset.feature_labels()[3] == "other"
    assert added.shown.others == {why: 1}
    assert f"1 shows a label that comes before: {why} (1)" in str(added)


def test_the_command_says_what_is_wrong_in_a_line(dataset, tmp_path, capsys):
    store = str(tmp_path / "s")
    assert run(["labels", store, "--source", "given"]) == 2
    assert "need --import" in capsys.readouterr().err
    assert run(["labels", store, "--import", str(tmp_path / "none.csv")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert run(["labels", store, "--export", str(tmp_path / "x.txt"), "--from-tokens"]) == 1
    assert ".json or .csv" in capsys.readouterr().err
    assert not Dataset.load_from_file(store).labels()["source"].eq("tokens").any()
