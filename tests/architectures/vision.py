"""Complete small models for images and grids."""

import torch
import torch.nn.functional as F
from torch import nn

from .control_flow import DropPath
from .table import architecture, floats

IMAGES = floats((2, 3, 16, 16))


def conv_norm_act(cin, cout, kernel=3, stride=1, groups=1, act=nn.ReLU):
    """Conv without bias, batch norm, activation: the block that most networks repeat."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), act())


class BasicBlock(nn.Module):
    """torchvision's basic residual block: one ReLU object used twice, `downsample` or None."""

    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(cout), nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.downsample = None
        if stride != 1 or cin != cout:
            self.downsample = conv_norm_act(cin, cout, 1, stride, act=nn.Identity)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


@architecture("resnet18", IMAGES, tags={"captured", "conv", "stateful"})
class ResNet18(nn.Module):
    """ResNet-18 with 4 to 32 channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool = conv_norm_act(3, 4, stride=2), nn.MaxPool2d(3, 2, 1)
        stages = ((4, 4, 1), (4, 8, 2), (8, 16, 2), (16, 32, 1))
        self.layers = nn.Sequential(
            *(nn.Sequential(BasicBlock(i, o, s), BasicBlock(o, o)) for i, o, s in stages)
        )
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(32, 10)

    def forward(self, x):
        x = self.avgpool(self.layers(self.pool(self.stem(x))))
        return self.fc(torch.flatten(x, 1))


@architecture("resnext_bottleneck", floats((2, 16, 8, 8)), tags={"captured", "conv", "stateful"})
class ResNeXtBottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            conv_norm_act(16, 8, 1),
            conv_norm_act(8, 8, 3, groups=4),
            conv_norm_act(8, 16, 1, act=nn.Identity),
        )

    def forward(self, x):
        return F.relu(x + self.body(x), inplace=True)


@architecture("densenet", IMAGES, tags={"captured", "conv", "stateful"})
class DenseNet(nn.Module):
    """Dense blocks that concatenate everything, transitions that halve."""

    class Block(nn.ModuleDict):
        def __init__(self, channels, growth=4, depth=3):
            super().__init__()
            for i in range(depth):
                width = channels + i * growth
                norm, conv = nn.BatchNorm2d(width), nn.Conv2d(width, growth, 3, padding=1)
                self[f"denselayer{i}"] = nn.Sequential(norm, nn.ReLU(), conv)

        def forward(self, x):
            features = [x]
            for _, layer in self.items():
                features.append(layer(torch.cat(features, 1)))
            return torch.cat(features, 1)

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, 8, 3, 2, 1))
        self.features.add_module("block1", self.Block(8))
        self.features.add_module("transition1", nn.Sequential(nn.Conv2d(20, 8, 1), nn.AvgPool2d(2)))
        self.features.add_module("block2", self.Block(8))
        self.classifier = nn.Linear(20, 5)

    def forward(self, x):
        return self.classifier(self.features(x).relu().mean((2, 3)))


@architecture("mobilenet_v2", IMAGES, tags={"captured", "conv", "rng", "stateful"})
class MobileNetV2(nn.Module):
    """Inverted residuals: expand, depthwise, linear projection."""

    class InvertedResidual(nn.Module):
        def __init__(self, cin, cout, stride, expand):
            super().__init__()
            hidden = cin * expand
            self.use_res_connect = stride == 1 and cin == cout
            self.conv = nn.Sequential(
                *([conv_norm_act(cin, hidden, 1, act=nn.ReLU6)] if expand != 1 else []),
                conv_norm_act(hidden, hidden, 3, stride, hidden, nn.ReLU6),
                nn.Conv2d(hidden, cout, 1, bias=False),
                nn.BatchNorm2d(cout),
            )

        def forward(self, x):
            return x + self.conv(x) if self.use_res_connect else self.conv(x)

    def __init__(self):
        super().__init__()
        plan = ((4, 4, 1, 1), (4, 6, 2, 3), (6, 6, 1, 3), (6, 8, 2, 3))
        self.features = nn.Sequential(
            conv_norm_act(3, 4, stride=2, act=nn.ReLU6), *(self.InvertedResidual(*p) for p in plan)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 5))

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1)).flatten(1)
        return self.classifier(x)


@architecture("squeeze_excitation", floats((2, 8, 8, 8)), tags={"captured", "conv"})
class SqueezeExcitation(nn.Module):
    """Channel gates from Linears on the pooled map, `b, c, _, _ = x.size()` as published."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(8, 2, bias=False), nn.ReLU(), nn.Linear(2, 8, bias=False), nn.Sigmoid()
        )

    def forward(self, x):
        x = self.conv(x)
        b, c, _, _ = x.size()
        gate = self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
        return x * gate.expand_as(x)


@architecture("vgg_bn", IMAGES, tags={"captured", "conv", "rng", "stateful"})
class VGG(nn.Module):
    """VGG with batch norm built from a list of numbers and "M"s; dropout in the classifier."""

    def __init__(self, plan=(4, "M", 8, 8, "M")):
        super().__init__()
        layers, channels = [], 3
        for item in plan:
            layers.append(nn.MaxPool2d(2) if item == "M" else conv_norm_act(channels, item))
            channels = channels if item == "M" else item
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(128, 16), nn.ReLU(True), nn.Dropout())
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.features(x)
        return self.head(self.classifier(x.view(x.size(0), -1)))


@architecture("u_net", floats((1, 3, 16, 16)), tags={"captured", "conv", "stateful"})
class UNet(nn.Module):
    """Skips kept in a list and popped, transposed convolutions on the way up."""

    def __init__(self):
        super().__init__()
        widths = (4, 8, 16)
        self.downs = nn.ModuleList(
            conv_norm_act(i, o) for i, o in zip((3, 4, 8), widths, strict=True)
        )
        self.middle = conv_norm_act(16, 16)
        self.lifts = nn.ModuleList(nn.ConvTranspose2d(w, w, 2, 2) for w in reversed(widths))
        self.ups = nn.ModuleList(conv_norm_act(2 * w, max(w // 2, 4)) for w in reversed(widths))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for lift, up in zip(self.lifts, self.ups, strict=True):
            x = up(torch.cat([skips.pop(), lift(x)], dim=1))
        return self.head(x)


class ChannelsFirstNorm(nn.LayerNorm):
    """torchvision's LayerNorm2d."""

    def forward(self, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias)
        return x.permute(0, 3, 1, 2)


@architecture("convnext_block", floats((2, 8, 8, 8)), tags={"conv", "training", "rng"})
class ConvNeXt(nn.Module):
    """Depthwise 7x7, Linears on channels last, layer scale, stochastic depth."""

    class Block(nn.Module):
        def __init__(self, dim=8, rate=0.2):
            super().__init__()
            self.dwconv, self.norm = (
                nn.Conv2d(dim, dim, 7, padding=3, groups=dim),
                nn.LayerNorm(dim),
            )
            self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
            self.gamma, self.drop_path = nn.Parameter(0.1 * torch.ones(dim)), DropPath(rate)

        def forward(self, x):
            y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
            y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
            return x + self.drop_path(y.permute(0, 3, 1, 2))

    def __init__(self):
        super().__init__()
        self.blocks, self.norm = nn.Sequential(self.Block(), self.Block()), ChannelsFirstNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.norm(self.blocks(x)).mean([-2, -1]))


@architecture("vision_transformer", IMAGES, tags={"attention", "captured", "rng"})
class VisionTransformer(nn.Module):
    """Patches by a conv, class token, learned positions, pre-norm blocks."""

    class Block(nn.Module):
        def __init__(self, dim=8, heads=2):
            super().__init__()
            self.heads, self.scale = heads, (dim // heads) ** -0.5
            self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            self.mlp = nn.Sequential(
                nn.Linear(dim, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, dim)
            )

        def attend(self, x):
            b, n, c = x.shape
            qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            attention = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
            return self.proj((attention @ v).transpose(1, 2).reshape(b, n, c))

        def forward(self, x):
            x = x + self.attend(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.cls_token, self.position = (
            nn.Parameter(torch.randn(8)),
            nn.Parameter(torch.randn(17, 8)),
        )
        self.blocks, self.head = nn.Sequential(self.Block(), self.Block()), nn.Linear(8, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], 1, -1), x), dim=1) + self.position
        return self.head(self.blocks(x)[:, 0])


@architecture(
    "swin_window_attention", floats((2, 8, 8, 8)), tags={"attention", "captured", "shapes"}
)
class Swin(nn.Module):
    """Shifted windows: pad to a multiple, roll, partition, relative bias, mask, reverse."""

    class Block(nn.Module):
        def __init__(self, dim=8, window=4, shift=0, size=8):
            super().__init__()
            self.window, self.shift, self.heads = window, shift, 2
            self.norm, self.qkv = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim)
            self.proj, self.mlp = nn.Linear(dim, dim), nn.Linear(dim, dim)
            self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, self.heads))
            points = torch.cartesian_prod(torch.arange(window), torch.arange(window))
            offset = points[:, None] - points[None] + window - 1
            index = offset[..., 0] * (2 * window - 1) + offset[..., 1]
            self.register_buffer("index", index, persistent=False)
            region = (torch.arange(size) >= size - shift).long()
            regions = self.partition((2 * region[:, None] + region).view(1, size, size, 1))
            self.register_buffer("mask", (regions != regions.mT)[:, None] if shift else None)

        def partition(self, x):
            b, h, w, c = x.shape
            x = x.view(b, h // self.window, self.window, w // self.window, self.window, c)
            return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window**2, c)

        def forward(self, x):
            b, h, w, c = x.shape
            y = F.pad(self.norm(x), (0, 0, 0, -w % self.window, 0, -h % self.window))
            if self.shift > 0:
                y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
            qkv = self.qkv(self.partition(y)).unflatten(-1, (3, self.heads, -1))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            scores = q @ k.mT + self.table[self.index].permute(2, 0, 1)
            if self.mask is not None:
                scores = scores.masked_fill(self.mask.repeat(b, 1, 1, 1), -100.0)
            y = self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
            n = self.window
            y = y.view(b, h // n, w // n, n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
            if self.shift > 0:
                y = torch.roll(y, (self.shift, self.shift), (1, 2))
            return x + y + self.mlp(x + y)

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(self.Block(), self.Block(shift=2))
        self.merge, self.head = nn.Linear(32, 16, bias=False), nn.Linear(16, 3)

    def forward(self, x):
        x = self.blocks(x)
        parts = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.head(self.merge(torch.cat(parts, -1)).flatten(1, 2).mean(1))


@architecture("mlp_mixer", IMAGES, tags={"captured"})
class MLPMixer(nn.Module):
    """MLPs across patches and across channels."""

    class Block(nn.Module):
        def __init__(self, patches=16, dim=8):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.tokens = nn.Sequential(nn.Linear(patches, 8), nn.GELU(), nn.Linear(8, patches))
            self.channels = nn.Sequential(nn.Linear(dim, 16), nn.GELU(), nn.Linear(16, dim))

        def forward(self, x):
            x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.norm2(x))

    def __init__(self):
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.blocks = nn.Sequential(self.Block(), self.Block())

    def forward(self, x):
        return self.head(self.blocks(self.patch(x).flatten(2).mT).mean(1))


@architecture("two_branch_detector", IMAGES, tags={"captured", "conv", "shared"})
class Detector(nn.Module):
    """Shared heads over levels, dict of lists out (RetinaNet)."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)])
        self.head = nn.ModuleDict({"boxes": nn.Conv2d(4, 4, 1), "scores": nn.Conv2d(4, 2, 1)})

    def forward(self, x):
        out = {name: [] for name in self.head}
        for level in self.levels:
            x = F.relu(level(x))
            for name, head in self.head.items():
                y = head(x)
                out[name].append(y.flatten(2).permute(0, 2, 1))
        return {name: torch.cat(maps, 1) for name, maps in out.items()}


@architecture("capsules", floats((2, 3, 8, 8)), tags={"captured", "conv", "direct-weights"})
class Capsules(nn.Module):
    """Routing by agreement: a fixed number of iterations, `detach` on all but the last."""

    def __init__(self, iterations=3):
        super().__init__()
        self.iterations, self.primary = iterations, nn.Conv2d(3, 8, 3, stride=2)
        self.weight = nn.Parameter(0.3 * torch.randn(3, 18, 4, 5))

    @staticmethod
    def squash(x):
        norm2 = x.square().sum(-1, keepdim=True)
        return norm2 / (1 + norm2) * x / (norm2 + 1e-8).sqrt()

    def forward(self, x):
        u = self.squash(self.primary(x).unflatten(1, (2, 4)).movedim(2, -1).flatten(1, 3))
        votes = torch.einsum("bic,jicd->bjid", u, self.weight)
        fixed, logits = votes.detach(), votes.detach().sum(-1, keepdim=True) * 0
        for i in range(self.iterations):
            last = i == self.iterations - 1
            v = self.squash((logits.softmax(1) * (votes if last else fixed)).sum(2))
            logits = logits + (fixed * v.unsqueeze(2)).sum(-1, keepdim=True)
        return v.norm(dim=-1), v


@architecture("point_net", floats((2, 3, 10)), tags={"captured", "conv", "stateful"})
class PointNet(nn.Module):
    """A predicted transform (plus identity buffer), shared MLPs as 1x1 conv, a max over points."""

    def __init__(self):
        super().__init__()
        self.local, self.transform = nn.Conv1d(3, 8, 1), nn.Linear(8, 9)
        self.register_buffer("identity", torch.eye(3))
        self.mlp = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        t = self.transform(torch.max(self.local(x), 2)[0]).view(-1, 3, 3) + self.identity
        x = torch.bmm(t, x)
        return self.head(self.mlp(x).max(dim=-1).values), t


@architecture("graph_convolution", floats((5, 8), (5, 5)), tags={"captured"})
class GraphConvolution(nn.Module):
    """Adjacency matmuls with symmetric normalisation, two layers."""

    class Layer(nn.Module):
        def __init__(self, cin, cout):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(cin, cout) / cin**0.5)

        def forward(self, x, adjacency):
            return adjacency @ (x @ self.weight)

    def __init__(self):
        super().__init__()
        self.a, self.b = self.Layer(8, 16), self.Layer(16, 3)

    def forward(self, x, adjacency):
        adjacency = (adjacency + adjacency.T).sigmoid()
        scale = adjacency.sum(-1).rsqrt()
        adjacency = scale[:, None] * adjacency * scale
        return self.b(torch.relu(self.a(x, adjacency)), adjacency)


@architecture(
    "message_passing",
    lambda: ((torch.randn(5, 8), torch.randint(5, (2, 9))), {}),
    tags={"shapes"},
)
class MessagePassing(nn.Module):
    """Gather along edges, scatter with `index_add_` (PyG style, edge unpacking)."""

    def __init__(self):
        super().__init__()
        self.message, self.update = nn.Linear(16, 8), nn.GRUCell(8, 8)

    def forward(self, x, edges):
        source, target = edges
        for _ in range(2):
            messages = torch.relu(self.message(torch.cat([x[source], x[target]], -1)))
            total = torch.zeros(x.size(0), 8, dtype=x.dtype).index_add_(0, target, messages)
            x = self.update(total, x)
        return x


@architecture("coord_conv", IMAGES, tags={"captured", "conv", "factories"})
class CoordConv(nn.Module):
    """Coordinate channels by `linspace` and `meshgrid` of the input's size."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(5, 4, 3, padding=1)

    def forward(self, x):
        b, _, h, w = x.shape
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        grid = torch.stack([ys, xs]).to(x).expand(b, -1, -1, -1)
        return self.conv(torch.cat([x, grid], 1))
