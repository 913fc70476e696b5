"""The examples of the page on labels run, and what the pages say of the code is so."""

from __future__ import annotations

import re

from interp_embed import Dataset
from interp_embed.llm.ask import errors
from interp_embed.llm.ask.prompt_files import Prompts
from interp_embed.testing import LLMServer, samples_of
from tests.support.fake_sae import TEXTS, WordSAE, expected
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "how-to" / "label-features.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference" / "language-models.md").read_text(encoding="utf-8")


def answer(body):
    name = body["response_format"]["json_schema"]["name"]
    if name == "FeatureLabelResponse":
        return {"label": "food", "brief_description": "It is about food."}
    return {"verdicts": [{"sample": s["sample"], "matches": True} for s in samples_of(body)[1]]}


def test_the_examples_of_the_page_run(monkeypatch, capsys):
    words = TEXTS[0].split()
    texts = [{"text": " ".join([*words[n % 5 :], str(n)])} for n in range(40)]
    dataset = Dataset(texts, WordSAE())
    features = {"284": str(expected("cat").argmax()), "266": str(expected("the").argmax())}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    with LLMServer(answer) as server:
        monkeypatch.setenv("OPENROUTER_BASE_URL", server.url)
        monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
        names = {"dataset": dataset}
        for block in blocks:
            exec(re.sub("284|266", lambda found: features[found[0]], block), names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["food", "It is about food."]
    assert printed[2].startswith("0.50 (")
    assert printed[3].startswith("2 features: about ")
    assert printed[4].startswith("2 features labelled, ")
    assert printed[-2] == "food -> food"
    # The label was asked for by label_features, and its answer is in the store.
    assert printed[-1] == "3 1 300"


def test_the_page_names_every_error_and_every_prompt():
    assert all(f"`{name}`" in REFERENCE for name in errors.__all__ if name != "LLMError")
    for name in ("label_user", "score_user", "detection_user", "fuzzing_user", "repair"):
        assert f"{name}.txt" in REFERENCE
        for placeholder in Prompts().template(name).get_identifiers():
            assert f"`${placeholder}`" in REFERENCE
