"""Transformers' Trainer, with and without the callback, against an uninterrupted run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import biofx
from biofx.plasticity import GradScheduler

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from biofx.integrations.transformers import Plasticity  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = biofx.BioConfig(
    fuzzy_lr_distribution=biofx.Distribution.TEMPORAL,
    fuzzy_lr_dynamic=True,
    fuzzy_lr_update_freq=1,
    fuzzy_lr_decay=0.9,
    crystallize_every=1,
    crystal_thresh=0.05,
    rejuvenate_every=3,
)


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


def examples() -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(0, 40, (8,), generator=random),
            "labels": int(torch.randint(0, 3, (), generator=random)),
        }
        for _ in range(32)
    ]


def arguments(folder: Path, **options: Any) -> Any:
    return transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        learning_rate=0.01,
        report_to=[],
        save_strategy="steps",
        use_cpu=True,
        disable_tqdm=True,
        seed=5,
        **{"num_train_epochs": 3, "save_steps": 5, **options},
    )


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def run(folder: Path, callback: bool = True, resume: str | None = None, **options: Any) -> Any:
    """The model after training, and the scheduler."""
    if callback:
        model, plasticity = bert(), Plasticity(config=CONFIG)
        extra: dict[str, Any] = {"callbacks": [plasticity]}
    else:
        model = biofx.transform(bert(), CONFIG)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = GradScheduler(model, optimizer)
        extra = {"optimizers": (optimizer, None)}
    trainer = transformers.Trainer(
        model, arguments(folder, **options), train_dataset=examples(), **extra
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model, plasticity.schedulers[""] if callback else scheduler


@pytest.mark.parametrize("callback", [True, False])
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "save_steps": 2}])
def test_resumes_to_the_bit(callback: bool, options: dict[str, Any], tmp_path: Path) -> None:
    """From checkpoints with nothing but the Trainer's own files."""
    whole, first = run(tmp_path / "whole", callback, **options)
    place = 5 if not options else 2
    checkpoint = tmp_path / "whole" / f"checkpoint-{place}"
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert state["param_groups"][0]["plasticity"]["steps"] == [place]
    resumed, second = run(tmp_path / "resumed", callback, str(checkpoint), **options)
    assert first.steps == second.steps == ([12] if not options else [6])
    assert same(whole, resumed)
    assert str(first.state_dict()) == str(second.state_dict())
    plain = transformers.Trainer(
        bert(), arguments(tmp_path / "plain", **options), train_dataset=examples()
    )
    plain.train()
    assert not same(whole, plain.model)


def test_the_best_model_at_the_end(tmp_path: Path) -> None:
    plasticity = Plasticity(config=CONFIG)
    trainer = transformers.Trainer(
        bert(),
        arguments(
            tmp_path,
            save_steps=4,
            eval_strategy="steps",
            eval_steps=4,
            load_best_model_at_end=True,
        ),
        train_dataset=examples(),
        eval_dataset=examples()[:8],
        callbacks=[plasticity],
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    from safetensors.torch import load_file

    for name, value in load_file(best / "model.safetensors").items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name
    assert plasticity.schedulers[""].steps == [12]
    loaded = transformers.BertForSequenceClassification.from_pretrained(best)
    batch = torch.stack([one["input_ids"] for one in examples()[:4]])
    torch.testing.assert_close(
        loaded.eval()(batch).logits, trainer.model.eval()(batch).logits, rtol=1e-5, atol=1e-6
    )


def test_a_second_train_goes_on_with_the_same_optimizer(tmp_path: Path) -> None:
    plasticity = Plasticity(config=CONFIG)
    trainer = transformers.Trainer(
        bert(), arguments(tmp_path), train_dataset=examples(), callbacks=[plasticity]
    )
    trainer.train()
    trainer.train()
    assert plasticity.schedulers[""].steps == [24]


def test_attached_early(tmp_path: Path) -> None:
    ends = []
    for early in (False, True):
        plasticity = Plasticity(config=CONFIG)
        trainer = transformers.Trainer(
            bert(),
            arguments(tmp_path / str(early)),
            train_dataset=examples(),
            callbacks=[plasticity],
        )
        if early:
            plasticity.attach(trainer)
        trainer.train(
            resume_from_checkpoint=str(tmp_path / "False" / "checkpoint-5") if early else None
        )
        ends.append(trainer.model)
        assert plasticity.schedulers[""].steps == [12]
    assert same(*ends)


def test_writes_where_it_is_told_to(tmp_path: Path) -> None:
    class Writer:
        def __init__(self) -> None:
            self.found: dict[int, dict[str, float]] = {}

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.found[step] = metrics

    writer = Writer()
    trainer = transformers.Trainer(
        bert(),
        arguments(tmp_path, logging_steps=4),
        train_dataset=examples(),
        callbacks=[Plasticity(config=CONFIG, writer=writer)],
    )
    trainer.train()
    assert list(writer.found) >= [4, 8, 12]
    assert "plasticity/classifier/factor_mean" in writer.found[8]


def test_nothing_transformed_is_refused(tmp_path: Path) -> None:
    trainer = transformers.Trainer(
        bert(), arguments(tmp_path), train_dataset=examples(), callbacks=[Plasticity()]
    )
    with pytest.raises(biofx.PlasticityError, match="nothing in BertForSequenceClassification"):
        trainer.train()
