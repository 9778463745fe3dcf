"""Deviations of the converted model as a Python object and as a module."""

import copy
import pickle
import warnings

import torch
from bio_transformations import BioConverter as Package
from torch import nn

import biofx
from deviating.entry import Entry, Measured, raised


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))


def moved_by_copy(converted: nn.Module) -> tuple[float, float]:
    """Largest change of (the original's, the copy's) weights when the copy is rejuvenated."""
    twin = copy.deepcopy(converted)
    start = converted[0].weight.detach().clone()
    twin.rejuvenate_weights()
    ours, its = (float((net[0].weight.detach() - start).abs().max()) for net in (converted, twin))
    return ours, its


def deepcopy() -> Measured:
    texts = [
        "`copy.deepcopy(model).rejuvenate_weights()` changes the original by "
        "{:.2f} and the copy by {:.2f}".format(*moved_by_copy(make()(small())))
        for make in (Package, biofx.BioConverter)
    ]
    return Measured(*texts)


def pickling() -> Measured:
    package, ours = Package()(small()), biofx.BioConverter()(small())
    x = torch.randn(3, 12)
    again = pickle.loads(pickle.dumps(ours))
    same = "the same" if torch.equal(again(x), ours(x)) else "other"
    return Measured(
        f"`pickle.dumps(model)`: {raised(lambda: pickle.dumps(package))}",
        f"the loaded model gives {same} outputs",
    )


def state_dict() -> Measured:
    plain = small()
    keys = set(plain.state_dict())
    extra = sorted(set(Package()(copy.deepcopy(plain)).state_dict()) - keys)
    ours = sorted(set(biofx.BioConverter()(plain).state_dict()) ^ keys)
    return Measured(
        f"{len(extra)} keys more: {', '.join(f'`{key}`' for key in extra)}",
        f"{len(ours)} keys differ from the original's",
    )


def gamma_check() -> Measured:
    def convert(make: type, before: int, after: int) -> str:
        model = nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Linear(after, 4))
        net = make(weight_splitting_Gamma=2)(model)
        net(torch.randn(3, before))
        return "runs"

    def tried(make: type) -> str:
        return "; ".join(
            f"Linear({before}, {after}): {raised(lambda b=before, a=after: convert(make, b, a))}"
            for before, after in ((7, 8), (8, 6))
        )

    def silent() -> str:
        net = Package(weight_splitting_Gamma=2)(
            nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(8, 4))
        )
        return raised(lambda: net[0](torch.randn(3, 8)))

    ours = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))
    refused = raised(lambda: biofx.transform(ours, biofx.BioConfig(weight_splitting_Gamma=2)))
    if refused == "nothing is raised":
        bio = biofx.transform(ours, biofx.BioConfig(weight_splitting_Gamma=2))
        layer = biofx.info(bio).layers["0"]
        refused = f"{layer.action}, “{layer.reason}”"
    return Measured(
        f"{tried(Package)}; Linear(8, 7) converts, and its forward: {silent()}",
        f"{tried(biofx.BioConverter)}; Linear(8, 7): {refused}",
    )


def dimensions() -> Measured:
    x = torch.randn(2, 5, 12)
    package = Package(weight_splitting_Gamma=2)(small())
    ours = biofx.BioConverter(weight_splitting_Gamma=2)(small())
    with torch.no_grad():
        flat = ours(x.reshape(10, 12)).reshape(2, 5, 4)
        far = float((ours(x) - flat).abs().max())
    return Measured(
        f"input of shape (2, 5, 12): {raised(lambda: package(x))}",
        f"runs; the difference from the same rows as a 2-D input is {far:.1e}",
    )


def script() -> Measured:
    warnings.simplefilter("ignore")
    package = Package(weight_splitting_Gamma=2)(small())
    bio = biofx.transform(small(), biofx.BioConfig(weight_splitting_Gamma=2))
    x = torch.randn(3, 12)
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.pt")
        biofx.export(bio, file, example_inputs=x, fold=False)
        far = float((torch.jit.load(str(file))(x) - bio.eval()(x)).abs().max())
    return Measured(
        f"`torch.jit.script(model)`: {raised(lambda: torch.jit.script(package))}",
        f"`biofx.export` without folding: largest difference of the loaded file {far:.1e}",
    )


def last_layer() -> Measured:
    def nested() -> nn.Module:
        head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        return nn.Sequential(nn.Sequential(nn.Linear(12, 8), nn.ReLU()), head)

    def split(model: nn.Module) -> list[str]:
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and "forward" in vars(module)
        ]

    package = split(Package(weight_splitting_Gamma=2)(nested()))
    bio = biofx.transform(nested(), biofx.BioConfig(weight_splitting_Gamma=2))
    layers = biofx.info(bio).layers
    ours = [name for name, layer in layers.items() if layer.action == "split"]
    return Measured(f"splits the layers {', '.join(package)}", f"splits {', '.join(ours)}")


def again() -> Measured:
    def found(make: type) -> str:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = make(fuzzy_learning_rate_factor_nu=0.1)(small())
            x = torch.randn(3, 12)
            before = model(x)
            model = make(fuzzy_learning_rate_factor_nu=0.4, weight_splitting_Gamma=2)(model)
        spread = float((model[0].bio_mod.fuzzy_learning_rate_parameters - 1).abs().max())
        same = "the same" if torch.equal(model(x), before) else "other"
        said = "a warning says so" if caught else "nothing is said"
        gamma = model[0].bio_mod.config.weight_splitting_Gamma
        return (
            f"largest abs(f − 1) {spread:.2f}; {same} outputs, and {said}; "
            f"`bio_mod.config` shows Γ = {gamma}"
        )

    return Measured(found(Package), found(biofx.BioConverter))


ENTRIES = [
    Entry("deepcopy", "A copy of a converted model", "The package's layers hold a function that "
          "returns the original layer, and a copy holds the same one.", deepcopy),
    Entry("pickle", "Pickling", "The package attaches functions to the instance.", pickling),
    Entry("state-dict", "The state dict", "Of a network with two linear layers.", state_dict),
    Entry("again", "Converting a converted model", "From ν = 0.1 to ν = 0.4 and Γ = 2. Both give "
          "the layers new factors, and split nothing that was converted unsplit. biofx shows the Γ "
          "in use.", again),
    Entry("divisor", "What Γ must divide", "Splitting sums groups of Γ *output* units. The package "
          "checks a linear layer's inputs. Γ = 2.", gamma_check),
    Entry("dimensions", "Splitting and inputs with more dimensions", "Γ = 2, linear layers, as in "
          "any transformer.", dimensions),
    Entry("script", "TorchScript of a split model", "Γ = 2.", script),
    Entry("output", "Which layer is the output", "Output layers are not split. The package looks "
          "among the model's direct children; biofx looks in the graph for weight layers with none "
          "downstream. The network has `0.0`, `1.0` and the output `1.2`, nested in two "
          "`Sequential`s; Γ = 2.", last_layer),
]  # fmt: skip
