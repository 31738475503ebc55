"""The model card: front matter that the hub's own reader takes, the objective as resolved, nothing of this machine."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import rpo
from rpo.core.objectives import DPO, RPO
from rpo.llm.training.model_card import write_model_card

ARGUMENTS: dict[str, Any] = {
    "base_model": "HuggingFaceH4/mistral-7b-sft-beta",
    "dataset": "HuggingFaceH4/ultrafeedback_binarized",
    "objective": RPO(beta=0.01, eta=0.005).to_dict(),
    "config": {"learning_rate": 5e-7, "seed": 42, "bf16": True, "max_prompt_length": None, "output_dir": "/home/me/x"},
    "data_report": {"rows": 12, "pairs": 10, "refused": {"empty|odd": 2}, "messages": ["row 3 ..."], "identical": 0},
    "metrics": {"eval_loss": 0.6123456789, "eval_logps/chosen": -250.0, "eval_runtime": 3.2},
    "environment": {"torch": "2.13.0", "python": "3.11.7"},
}


def card(folder: Path, **changed: Any) -> str:
    return write_model_card(folder, **(ARGUMENTS | changed)).read_text(encoding="utf-8")


def test_the_hub_reads_the_front_matter(tmp_path: Path) -> None:
    data = ModelCard(card(tmp_path)).data.to_dict()
    assert data == {
        "library_name": "transformers",
        "tags": ["rpo", "dpo", "preference-optimization"],
        "base_model": "HuggingFaceH4/mistral-7b-sft-beta",
        "base_model_relation": "finetune",
        "datasets": ["HuggingFaceH4/ultrafeedback_binarized"],
    }


def test_it_states_objective_data_metrics_and_versions(tmp_path: Path) -> None:
    """eta * beta = 0.005 * 0.01 = 5e-5. Of the data 12 rows gave 10 pairs; zeros and sentences stay in run.json."""
    text = card(tmp_path)
    for line in (
        "| beta | 0.01 |", "| eta | 0.005 |", "| eta * beta, the weight of the SFT term | 5e-05 |",
        "| rows | 12 |", "| pairs | 10 |", "| refused/empty\\|odd | 2 |",
        "| learning_rate | 5e-07 |", "| seed | 42 |", "| bf16 | True |",
        "| eval_loss | 0.612346 |", "| eval_logps/chosen | -250 |", "| torch | 2.13.0 |",
    ):  # fmt: skip
        assert line in text.splitlines(), line
    assert "2405.16436" in text
    for absent in ("row 3", "identical", "max_prompt_length", "eval_runtime", "/home/me"):
        assert absent not in text


@pytest.mark.parametrize("objective", [RPO(beta=0.1, eta=0.0), DPO(beta=0.1)])
def test_eta_zero_is_called_dpo(tmp_path: Path, objective: RPO | DPO) -> None:
    text = card(tmp_path, objective=objective.to_dict())
    assert "# HuggingFaceH4/mistral-7b-sft-beta, trained by DPO" in text
    assert "| eta * beta, the weight of the SFT term | 0 |" in text
    assert "trained by RPO" in card(tmp_path)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (rpo.SimPO(beta=2.0, gamma=1.0), "arXiv 2405.14734"),
        (rpo.KTO(), "Source: Ethayarajh et al. 2024"),
        (rpo.SFT(), "Supervised fine-tuning"),
    ],
)
def test_a_method_is_called_by_its_name_and_described_by_itself(tmp_path: Path, made: Any, words: str) -> None:
    """The control is RPO's card, which cites the paper of RPO alone."""
    text = card(tmp_path, objective=made.to_dict())
    assert f"trained by {type(made).__name__}" in text and words in text
    assert "2405.16436" not in text and "weight of the SFT term" not in text
    assert "2405.16436" in card(tmp_path)


def test_the_card_links_to_no_page(tmp_path: Path) -> None:
    assert "](http" not in card(tmp_path)


def test_an_adapter_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    data = ModelCard(card(tmp_path)).data
    assert (data.library_name, data["base_model_relation"]) == ("peft", "adapter")


@pytest.mark.parametrize("path", ["/home/me/models/mine", "./mine", "there/mine"])
def test_paths_of_this_machine_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """`there/mine` reads like a hub name but is a folder here."""
    (tmp_path / "there" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = card(tmp_path, base_model=path, dataset=f"{path}/pairs.jsonl")
    assert "# mine, trained by RPO" in text
    assert "`pairs.jsonl`" in text
    assert path not in text
    assert "base_model" not in ModelCard(text).data.to_dict()


def test_names_cannot_act_in_the_page(tmp_path: Path) -> None:
    """A folder, a data set, a reason and an objective of others: no HTML, no link, no way out of a code span."""
    name = "m`<img src=x onerror=y>[z](javascript:y)\x1b[2J"
    text = card(tmp_path, base_model=name, dataset=f"d/{name}", data_report={"refused": {"<b>|[a](b)": 2}})
    body = text.split("---", 2)[2]
    assert "\x1b" not in text and "``m`<img" in body  # in a code span only
    assert "<img" not in body.replace("``m`<img", "") and "\\[z\\](javascript:y)" in body
    assert "| refused/&lt;b&gt;\\|\\[a\\](b) | 2 |" in body


def test_equal_arguments_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    assert card(tmp_path) == card(tmp_path, environment={"python": "3.11.7", "torch": "2.13.0"})
    assert card(tmp_path) != card(tmp_path, metrics={"eval_loss": 0.7})


def test_another_objective_is_described_by_its_fields(tmp_path: Path) -> None:
    text = card(tmp_path, objective={"name": "SFT"}, metrics={})
    assert "trained by SFT" in text
    assert "| name | SFT |" in text
    assert "eta * beta" not in text
    assert "Not recorded." in text
