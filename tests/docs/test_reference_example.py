"""The API reference's complete example, with the embedded SAE and without the LLM."""

from __future__ import annotations

import numpy as np
import pytest

from interp_embed.store import is_store


@pytest.mark.model
def test_the_complete_example_of_the_reference_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    import pandas as pd

    from interp_embed import Dataset
    from interp_embed.sae import LocalSAE

    # Prepare your data
    data = pd.DataFrame({
        "text": [
            "The cat sat on the mat.",
            "Dogs are loyal pets.",
            "Python is a programming language.",
            "Machine learning is fascinating.",
        ],
        "category": ["animals", "animals", "tech", "tech"]
    })  # fmt: skip

    # Initialize an SAE
    sae = LocalSAE.embedded()

    # Create a dataset (automatically computes activations)
    dataset = Dataset(
        data=data,
        sae=sae,
        dataset_description="Example dataset with mixed topics",
        field="text",
        save_path="example_dataset.pkl",  # Auto-saves during computation
    )

    # Get feature activations
    max_activations = dataset.latents("max")
    print(f"Activation shape: {max_activations.shape}")

    # Find top documents for a specific feature
    top_docs = dataset.top_documents_for_feature(feature=42, k=3)
    for doc in top_docs:
        print(doc)

    # Sort by feature activation
    sorted_dataset = dataset.sort_by_features([42, 100, 200])

    # Save and load
    dataset.save_to_file("my_dataset.pkl")
    loaded_dataset = Dataset.load_from_file("my_dataset.pkl")

    # What it gave
    assert f"Activation shape: (4, {sae.d_sae})" in capsys.readouterr().out
    assert np.isfinite(max_activations).all()
    assert (max_activations > 0).any(axis=1).all()
    assert len(dataset.failures()) == 0
    assert is_store("example_dataset.pkl")
    assert (tmp_path / "my_dataset.pkl").is_file()
    np.testing.assert_array_equal(loaded_dataset.latents("max"), max_activations)
    assert loaded_dataset.documents() == data["text"].tolist()
    assert len(sorted_dataset) == 4
    highest = max_activations[:, [42, 100, 200]].max(axis=1)
    order = np.argsort(-highest, kind="stable")
    assert sorted_dataset.documents() == [data["text"][i] for i in order]
    assert len(top_docs) == min(3, int((max_activations[:, 42] != 0).sum()))
    strongest = int(max_activations[0].argmax())
    marked = dataset.top_documents_for_feature(strongest, k=4)
    assert any("<<" in doc and doc.replace("<<", "").replace(">>", "") in set(data["text"])
               for doc in marked)  # fmt: skip
    for row, text in zip(loaded_dataset, data["text"], strict=True):
        ordinary = zip(row.tokenized_document, row.special_tokens, strict=True)
        assert "".join(token for token, special in ordinary if not special) == text
