"""Lightning's Trainer, with and without the callback, against an uninterrupted run."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import biofx
from biofx.plasticity import Crystallize, GradScheduler

lightning = pytest.importorskip("lightning")

from biofx.integrations.lightning import Plasticity  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore:::torch")

CONFIG = biofx.BioConfig(
    fuzzy_lr_distribution=biofx.Distribution.TEMPORAL,
    fuzzy_lr_dynamic=True,
    fuzzy_lr_update_freq=1,
    fuzzy_lr_decay=0.9,
    crystallize_every=1,
    crystal_thresh=0.05,
    rejuvenate_every=3,
)
X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (32,), generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


class Lit(lightning.LightningModule):  # type: ignore[misc,name-defined]
    """An ordinary classifier."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.lr = 0.01
        self.model = net() if model is None else model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class Own(Lit):
    """Makes its scheduler itself, and says nothing of checkpoints."""

    def configure_optimizers(self) -> Any:
        optimizers = super().configure_optimizers()
        self.scheduler = [GradScheduler(self.model, optimizers[0])]
        return optimizers


def data() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=8)


def trainer(folder: Path, **options: Any) -> Any:
    options = {"max_epochs": 4, "logger": False, "enable_checkpointing": False, **options}
    return lightning.Trainer(
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        devices=1,
        **options,
    )


class Holder(nn.Module):
    """Has the names of `Lit`: draws depend on them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = net()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


def by_hand(model: nn.Module | None = None, epochs: int = 4) -> nn.Module:
    model = biofx.transform(Holder() if model is None else model, CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    GradScheduler(model, optimizer)
    for _ in range(epochs):
        for x, y in data():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        decay.step()
    return model


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_the_callback_is_the_loop_by_hand(tmp_path: Path) -> None:
    lit, plasticity = Lit(), Plasticity(config=CONFIG)
    trainer(tmp_path, callbacks=[plasticity]).fit(lit, data())
    assert same(lit, by_hand())
    assert plasticity.schedulers[""].steps == [16]
    assert not same(lit, Lit())


def test_a_module_in_the_module(tmp_path: Path) -> None:
    lit, plasticity = Lit(biofx.transform(net(), CONFIG)), Plasticity()
    trainer(tmp_path, callbacks=[plasticity]).fit(lit, data())
    assert same(lit, by_hand(net()))
    assert list(plasticity.schedulers) == ["model"]


@pytest.mark.parametrize("own", [False, True])
def test_resumes_to_the_bit(own: bool, tmp_path: Path) -> None:
    def start(epochs: int) -> tuple[Any, Any]:
        lit = Own(biofx.transform(net(), CONFIG)) if own else Lit()
        callbacks = [] if own else [Plasticity(config=CONFIG)]
        return lit, trainer(tmp_path, max_epochs=epochs, callbacks=callbacks)

    whole, first = start(4)
    first.fit(whole, data())
    half, second = start(2)
    second.fit(half, data())
    second.save_checkpoint(tmp_path / "half.ckpt")
    resumed, third = start(4)
    third.fit(resumed, data(), ckpt_path=tmp_path / "half.ckpt")
    assert same(whole, resumed)
    assert same(whole, by_hand(net() if own else Holder()))


def test_a_second_fit_goes_on(tmp_path: Path) -> None:
    lit, plasticity = Lit(), Plasticity(config=CONFIG)
    trainer(tmp_path, max_epochs=2, callbacks=[plasticity]).fit(lit, data())
    first = plasticity.schedulers[""]
    crystallized = copy.deepcopy(first.state_dict()["state"]["Crystallize"])
    trainer(tmp_path, max_epochs=1, callbacks=[plasticity]).fit(lit, data())
    second = plasticity.schedulers[""]
    assert second is not first
    assert second.steps == [12]
    before, after = (
        found["model.0.weight"]["factors"]
        for found in (crystallized, second.state_dict()["state"]["Crystallize"])
    )
    assert float(before.min()) < 1
    assert not torch.equal(before, after)


def test_another_model_starts_anew(tmp_path: Path) -> None:
    plasticity = Plasticity(config=CONFIG)
    ends = []
    for _ in range(2):
        lit = Lit()
        trainer(tmp_path, callbacks=[plasticity]).fit(lit, data())
        ends.append(lit)
    assert same(*ends)


def test_a_learning_rate_finder_leaves_no_trace(tmp_path: Path) -> None:
    from lightning.pytorch.tuner import Tuner

    lit, plasticity = Lit(), Plasticity(config=CONFIG)
    run = trainer(tmp_path, callbacks=[plasticity])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*plasticity.*")
        Tuner(run).lr_find(lit, data(), num_training=12, update_attr=False)
    assert same(lit, Lit())
    run.fit(lit, data())
    assert plasticity.schedulers[""].steps == [16]
    assert same(lit, by_hand())


def test_stochastic_weight_averaging(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    ends = []
    for callbacks in ([Plasticity(config=CONFIG)], []):
        lit = Lit()
        average = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2, device="cpu")
        trainer(tmp_path, callbacks=[*callbacks, average]).fit(lit, data())
        ends.append(lit)
        if callbacks:
            assert callbacks[0].schedulers[""].steps == [16]
    assert not same(*ends)
    assert all(torch.isfinite(p).all() for p in ends[0].parameters())


class Configured(Lit):
    """Makes its network when it is told to."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def configure_model(self) -> None:
        if isinstance(self.model, nn.Identity):
            self.model = net()


def test_configure_model(tmp_path: Path) -> None:
    lit, plasticity = Configured(), Plasticity(config=CONFIG)
    run = trainer(tmp_path, callbacks=[plasticity])
    run.fit(lit, data())
    assert same(lit, by_hand())
    assert "configure_model" not in vars(lit)


class Two(Lit):
    """Two optimizers that take turns; one of them may hold no synapse."""

    def __init__(self, norm_only: bool = False) -> None:
        super().__init__()
        self.norm_only = norm_only
        self.scale = nn.LayerNorm(3)
        self.automatic_optimization = False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale(self.model(x))
        return out

    def training_step(self, batch: Any, index: int) -> None:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        optimizer = self.optimizers()[index % 2]
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        if self.norm_only:
            return [
                torch.optim.SGD(self.model.parameters(), lr=0.1),
                torch.optim.SGD(self.scale.parameters(), lr=0.1),
            ]
        first, second = self.model[0], self.model[2]
        return [
            torch.optim.SGD([*first.parameters(), *self.scale.parameters()], lr=0.1),
            torch.optim.AdamW(second.parameters(), lr=0.01),
        ]


@pytest.mark.parametrize("norm_only", [False, True])
def test_several_optimizers(norm_only: bool, tmp_path: Path) -> None:
    lit, plasticity = Two(norm_only), Plasticity(config=CONFIG)
    trainer(tmp_path, callbacks=[plasticity]).fit(lit, data())
    assert plasticity.schedulers[""].steps == ([8] if norm_only else [8, 8])
    whole = copy.deepcopy(lit.state_dict())

    half = Two(norm_only)
    run = trainer(tmp_path, max_epochs=2, callbacks=[Plasticity(config=CONFIG)])
    run.fit(half, data())
    run.save_checkpoint(tmp_path / "two.ckpt")
    resumed = Two(norm_only)
    run = trainer(tmp_path, callbacks=[Plasticity(config=CONFIG)])
    run.fit(resumed, data(), ckpt_path=tmp_path / "two.ckpt")
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole[name]), name


class Exchanges(Lit):
    """Remakes its optimizer after an epoch."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 2:
            self.trainer.strategy.setup_optimizers(self.trainer)


def test_optimizers_exchanged_in_the_middle(tmp_path: Path) -> None:
    lit, plasticity = Exchanges(), Plasticity(config=CONFIG)
    trainer(tmp_path, callbacks=[plasticity]).fit(lit, data())
    assert plasticity.schedulers[""].steps == [16]


def test_logs_numbers(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    lit, logger = Lit(biofx.transform(net(), CONFIG)), CSVLogger(tmp_path)
    run = trainer(tmp_path, callbacks=[Plasticity()], logger=logger, log_every_n_steps=4)
    run.fit(lit, data())
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    header, *rows = text.splitlines()
    assert "plasticity/model.0/factor_mean" in header.split(",")
    assert "plasticity/model.2/crystallized" in header.split(",")
    assert len(rows) == 4
    assert isinstance(run.callback_metrics["plasticity/model.0/crystallized"], Tensor)

    quiet = Lit()
    run = trainer(tmp_path, callbacks=[Plasticity(config=CONFIG, log=False)], logger=logger)
    run.fit(quiet, data())
    assert not any(name.startswith("plasticity") for name in run.callback_metrics)


def test_rules_and_arguments_of_the_scheduler(tmp_path: Path) -> None:
    plasticity = Plasticity(config=biofx.BioConfig(), rules=iter([Crystallize()]), seed=3)
    trainer(tmp_path, max_epochs=1, callbacks=[plasticity]).fit(Lit(), data())
    state = plasticity.schedulers[""].state_dict()
    assert list(state["state"]) == ["Crystallize"]
    assert '"seed": 3' in state["fingerprint"]


def test_a_checkpoint_without_plasticity_warns_and_loads(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=2)
    run.fit(Lit(), data())
    run.save_checkpoint(tmp_path / "plain.ckpt")
    lit = Lit()
    run = trainer(tmp_path, callbacks=[Plasticity(config=CONFIG)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(lit, data(), ckpt_path=tmp_path / "plain.ckpt")
    assert any("no plasticity state" in str(one.message) for one in caught)


def test_a_checkpoint_with_plasticity_loads_into_a_plain_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=2, callbacks=[Plasticity(config=CONFIG)])
    run.fit(Lit(), data())
    run.save_checkpoint(tmp_path / "bio.ckpt")
    lit = Lit()
    trainer(tmp_path).fit(lit, data(), ckpt_path=tmp_path / "bio.ckpt")
    assert not same(lit, by_hand())


def test_nothing_transformed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(biofx.PlasticityError, match="nothing in Lit was made"):
        trainer(tmp_path, callbacks=[Plasticity()]).fit(Lit(), data())
    lit = Lit(biofx.transform(net()))
    with pytest.raises(biofx.ModelError, match="model is transformed already"):
        trainer(tmp_path, callbacks=[Plasticity(config=CONFIG)]).fit(lit, data())
    with pytest.raises(biofx.PlasticityError, match="must be a BioConfig"):
        Plasticity(config={"crystallize_every": 1})  # type: ignore[arg-type]


def test_the_callback_is_copied_without_its_schedulers(tmp_path: Path) -> None:
    plasticity = Plasticity(config=CONFIG)
    trainer(tmp_path, callbacks=[plasticity]).fit(Lit(), data())
    again = copy.deepcopy(plasticity)
    assert again.schedulers == {}
    lit = Lit()
    trainer(tmp_path, callbacks=[again]).fit(lit, data())
    assert same(lit, by_hand())
