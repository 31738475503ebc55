"""Every field of TRL's DPOConfig is answered by RPOConfig: as it is, converted, or refused with what to do."""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import pytest

import rpo
from rpo.core.errors import InvalidArgument
from rpo.llm.training import trl_fields
from rpo.llm.training.config import RPOConfig, TrainerConfig
from rpo.llm.training.trl_fields import NAMES
from rpo.methods.conversions import from_dpo_config

PAGE = (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text(encoding="utf-8")


def made(**fields: Any) -> RPOConfig:
    return RPOConfig(output_dir="unused", use_cpu=True, **fields)


def objective(**fields: Any) -> Any:
    return made(**fields).resolve_objective(None)


def default(item: Any) -> Any:
    return item.default if item.default is not dataclasses.MISSING else item.default_factory()


def test_every_field_of_dpo_config_is_taken_at_its_default() -> None:
    """One by one and all at once, but for truncation_mode, whose default there is not offered here."""
    trl = pytest.importorskip("trl")
    known = {item.name for item in dataclasses.fields(RPOConfig)}
    theirs = {item.name: default(item) for item in dataclasses.fields(trl.DPOConfig) if item.init}
    assert theirs.keys() - known == NAMES  # what is translated is what is not a field here
    for name in NAMES:
        made(**{name: theirs[name]})
    assert objective(beta=theirs["beta"], **{name: theirs[name] for name in NAMES}) == rpo.RPO(beta=0.1, eta=0.0)


def test_the_page_lists_every_field_that_dpo_config_adds_or_changes() -> None:
    trl = pytest.importorskip("trl")
    from transformers import TrainingArguments

    base = {item.name: default(item) for item in dataclasses.fields(TrainingArguments)}
    theirs = {item.name: default(item) for item in dataclasses.fields(trl.DPOConfig)}
    own = [name for name, value in theirs.items() if name not in base or base[name] != value]
    section = PAGE.partition("### Every field of DPOConfig")[2].partition("\n#")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", section, flags=re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(own)
    assert dict(rows) == {name: str(theirs[name]).replace("'", '"') for name in own}


@pytest.mark.parametrize(
    "fields",
    [
        {"loss_type": "hinge", "beta": 0.3},
        {"loss_type": ["ipo"], "beta": 0.2},
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"loss_type": "exo_pair", "label_smoothing": 0.1},
        {"loss_type": "discopop", "discopop_tau": 0.1},
        {"loss_type": "apo_zero"},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.05], "beta": 0.2},
    ],
)
def test_a_loss_is_the_objective_that_the_conversions_give(fields: dict[str, Any]) -> None:
    assert objective(**fields) == from_dpo_config(**fields)


def test_sigmoid_is_dpo_unless_eta_is_given() -> None:
    assert objective() == rpo.RPO(beta=0.1, eta=0.005)  # the control: nothing said
    assert objective(loss_type="sigmoid", beta=0.3) == rpo.RPO(beta=0.3, eta=0.0)
    assert objective(loss_type=["sigmoid"], eta=0.2) == rpo.RPO(beta=0.1, eta=0.2)
    assert objective(label_smoothing=0.0) == rpo.RPO(beta=0.1, eta=0.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"trust_remote_code": True}, "trust_remote_code: expected False"),
        ({"sync_ref_model": True}, "train in stages"),
        ({"activation_offloading": True}, "activation_checkpointing_kwargs"),
        ({"router_aux_loss_coef": 0.1}, "configuration"),
        ({"pad_token": "<pad>"}, "processing_class"),
        ({"padding_free": 3}, "padding_free"),
        ({"label_smoothing": 0.1}, "where TRL ignores it"),
        ({"loss_type": "sppo_hard"}, "no registered method does"),
        ({"loss_type": "nonsense"}, "loss_type"),
        ({"loss_type": ["sigmoid", "ipo"]}, "class of your own"),
        ({"loss_type": "ipo", "eta": 0.1}, "eta: expected None beside"),
        ({"use_weighting": True}, "WPO"),
        ({"ld_alpha": 0.5}, "LD-DPO"),
        ({"truncation_mode": "keep_start"}, "keep_end"),
        ({"precompute_ref_batch_size": 0}, "precompute_ref_batch_size"),
        ({"loss_types": "ipo"}, "such as"),
        ({"simpo_gamma": 0.5}, "SimPO"),
        ({"warmup_ratio": 0.1}, "warmup_steps=0.1, a share below 1, is the same"),
        ({"typo": 1, "rpo_alpha": 0.5, "beta": 0.2}, "typo, rpo_alpha: expected fields of RPOConfig, got names that"),
        ({"typo": 1, "rpo_alpha": 0.5}, "Check the spelling.] [rpo_alpha: expected an option of RPOConfig"),
    ],
)
def test_what_is_not_done_here_is_refused_with_what_to_do(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        made(**fields)


def test_an_option_of_another_release_that_is_none_asks_for_nothing() -> None:
    assert objective(rpo_alpha=None, beta=0.3) == rpo.RPO(beta=0.3, eta=0.005)
    with pytest.raises(InvalidArgument, match="rpo_alpha"):
        TrainerConfig(output_dir="unused", use_cpu=True, rpo_alpha=None)


def test_an_objective_beside_a_loss_type_is_refused() -> None:
    config = made(loss_type="ipo")
    with pytest.raises(InvalidArgument, match="loss_type"):
        config.resolve_objective(rpo.KTO())
    assert made().resolve_objective(rpo.KTO()) == rpo.KTO()


def test_rows_of_a_reference_batch_become_tokens_and_the_rest_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Four pairs of at most 512 tokens a response: 4,096 tokens; one's own number of tokens is kept."""
    assert made(precompute_ref_batch_size=4, max_length=512).precompute_ref_batch_tokens == 4096
    assert made(precompute_ref_batch_size=4, precompute_ref_batch_tokens=99).precompute_ref_batch_tokens == 99
    assert made(precompute_ref_batch_size=None).precompute_ref_batch_tokens == 16384
    with caplog.at_level(logging.WARNING, logger=trl_fields.__name__):
        made(dataset_num_proc=4, ref_model_sync_steps=512)
    assert "dataset_num_proc = 4 has no effect" in caplog.text and "ref_model_sync_steps" not in caplog.text


def test_other_trainers_arguments_refuse_them_as_before() -> None:
    with pytest.raises(InvalidArgument, match="loss_type"):
        TrainerConfig(output_dir="unused", use_cpu=True, loss_type="ipo")


def test_the_trainer_trains_the_loss_that_was_named(tmp_path: Path) -> None:
    from models_for_tests import tiny_model
    from training import tiny_pairs

    from rpo.llm import RPOTrainer

    args = RPOConfig(
        output_dir=str(tmp_path), use_cpu=True, loss_type="ipo", beta=0.2, max_steps=1, save_strategy="no",
        report_to="none", log="none", disable_tqdm=True, path="padded",
    )  # fmt: skip
    trainer = RPOTrainer(tiny_model("llama"), args=args, train_dataset=tiny_pairs(4))
    assert trainer.objective == from_dpo_config(loss_type="ipo", beta=0.2)
    assert trainer.train().training_loss == pytest.approx((1 / (2 * 0.2)) ** 2, rel=1e-5)  # at pi = pi_ref
