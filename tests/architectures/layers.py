"""Every layer type with weights, direct weights, parametrizations, normalisations, adapters."""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .table import architecture, floats, tokens

# Linear, bilinear, embeddings ----------------------------------------------------------------


@architecture("linear_ranks", floats((2, 3, 8)), tags={"captured"})
class LinearRanks(nn.Module):
    """Linear on 1-D, 3-D and 4-D inputs, with and without bias."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 8, bias=False)

    def forward(self, x):
        y = self.b(torch.relu(self.a(x)))
        z = self.b(self.a(x.reshape(2, 1, 3, 8)))
        return y, z, self.a(x[0, 0])


@architecture("bilinear", floats((4, 8), (4, 6)), tags={"captured"})
class BilinearModel(nn.Module):
    """`nn.Bilinear` between two towers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.join = nn.Linear(8, 5), nn.Linear(6, 4), nn.Bilinear(5, 4, 3)

    def forward(self, a, b):
        return self.join(torch.tanh(self.a(a)), torch.tanh(self.b(b)))


@architecture("lazy_materialised", floats((2, 3, 8, 8)), tags={"captured", "lazy", "stateful"})
def lazy_materialised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        net = nn.Sequential(
            nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
        )
        net(torch.zeros(2, 3, 8, 8))
    return net


@architecture("embedding_padding_idx", tokens((3, 5)), tags={"captured"})
class EmbeddingPadding(nn.Module):
    """Embedding with `padding_idx`, positions, and a `max_norm`-free second table."""

    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(16, 8, padding_idx=0), nn.Embedding(5, 8)
        self.register_buffer("ids", torch.arange(5))
        self.head = nn.Linear(8, 4)

    def forward(self, ids):
        return self.head(self.token(ids) + self.position(self.ids))


@architecture("embedding_max_norm", tokens((3, 5)), tags={"captured", "stateful"})
def embedding_max_norm():
    """`max_norm` renormalises the weight in place during forward."""
    return nn.Sequential(nn.Embedding(16, 8, max_norm=1.0), nn.Linear(8, 4))


@architecture(
    "embedding_bag",
    lambda: ((torch.randint(16, (10,)), torch.tensor([0, 3, 7])), {}),
    tags={"captured"},
)
class EmbeddingBags(nn.Module):
    """EmbeddingBag with offsets, in modes mean, sum and max."""

    def __init__(self):
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(16, 8, mode=m) for m in ("mean", "sum", "max"))
        self.head = nn.Linear(24, 4)

    def forward(self, ids, offsets):
        return self.head(torch.cat([bag(ids, offsets) for bag in self.bags], -1))


# Convolutions --------------------------------------------------------------------------------


@architecture("conv_1d", floats((2, 4, 12)), tags={"captured", "conv"})
def conv_1d():
    return nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU(), nn.ConvTranspose1d(6, 4, 3, stride=2))


@architecture("conv_2d", floats((2, 4, 8, 8)), tags={"captured", "conv"})
class Conv2dKinds(nn.Module):
    """Grouped, depthwise, dilated, strided, 'same' and circular padded 2-D convolutions."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=2, padding=1),
            nn.Conv2d(8, 8, 3, groups=8, padding="same", bias=False),
            nn.Conv2d(8, 8, (3, 1), dilation=2, padding=(2, 0)),
            nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(6, 4, 2, stride=2),
        )

    def forward(self, x):
        return self.net(x)


@architecture("conv_3d", floats((1, 2, 4, 6, 6)), tags={"captured", "conv", "stateful"})
def conv_3d():
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.ConvTranspose3d(4, 2, 2, 2)
    )


@architecture("conv_transpose_2d", floats((2, 4, 4, 4)), tags={"captured", "conv"})
class ConvTranspose(nn.Module):
    """Transposed convolutions: grouped, with `output_padding`, with `output_size`."""

    def __init__(self):
        super().__init__()
        self.a = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.b = nn.ConvTranspose2d(6, 3, 3, stride=2, padding=1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)), output_size=[16, 16])


@architecture("conv_unbatched", floats((3, 8, 8)), tags={"captured", "conv"})
def conv_unbatched():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0), nn.Linear(144, 2))


class WeightStandardisedConv(nn.Conv2d):
    """A conv subclass whose `forward` standardises its weight."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (std + 1e-5), self.bias)


@architecture("weight_standardised_conv", floats((2, 3, 8, 8)), tags={"captured", "conv"})
def weight_standardised_conv():
    return nn.Sequential(
        WeightStandardisedConv(3, 8, 3), nn.GroupNorm(2, 8), WeightStandardisedConv(8, 4, 3)
    )


class SameConv(nn.Conv2d):
    """TensorFlow's "same" padding, computed from the input's size in `forward`."""

    def forward(self, x):
        pads = []
        for size, kernel, stride in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True):
            pad = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads = [pad // 2, pad - pad // 2, *pads]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0)


@architecture("same_padded_conv", floats((2, 3, 7, 7)), tags={"conv", "shapes"})
def same_padded_conv():
    return nn.Sequential(SameConv(3, 4, 3, stride=2), nn.ReLU(), SameConv(4, 4, 2, stride=1))


@architecture("activation_zoo", floats((4, 6, 8)), tags={"captured", "rng"})
def activation_zoo():
    """Activations with and without parameters or randomness between Linears."""
    acts = nn.PReLU(6), nn.RReLU(), nn.GELU("tanh"), nn.Hardswish(), nn.Softmax(-1), nn.GLU()
    return nn.Sequential(*(layer for act in acts for layer in (nn.Linear(8, 8), act)))


@architecture("image_ops", floats((2, 3, 8, 8)), tags={"captured", "conv"})
class ImageOps(nn.Module):
    """Pooling with indices, unpooling, pixel shuffle, grid sampling, fold and unfold."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 3, padding=1), nn.PixelShuffle(2)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.theta, self.mix = nn.Linear(4, 6), nn.Conv2d(1, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        low, indices = self.pool(x)
        x = self.unpool(low, indices) + nn.functional.interpolate(self.mix(self.up(low)), (8, 8))
        grid = F.affine_grid(self.theta(low.mean((2, 3))).view(-1, 2, 3), [2, 4, 8, 8], False)
        return F.unfold(F.grid_sample(x, grid, align_corners=False), 2, stride=2)


# Recurrent -----------------------------------------------------------------------------------


@architecture("lstm", floats((2, 5, 8)), tags={"captured", "recurrent", "rng"})
class LSTMModel(nn.Module):
    """A bidirectional two-layer LSTM with dropout; its states are used."""

    def __init__(self, **options):
        super().__init__()
        self.rnn = nn.LSTM(8, 6, 2, batch_first=True, dropout=0.3, bidirectional=True, **options)
        self.head = nn.Linear(2 * (self.rnn.proj_size or 6), 3)

    def forward(self, x):
        out, (hidden, cell) = self.rnn(x)
        return self.head(out), hidden[-1], cell.mean(0)


@architecture(
    "lstm_projected",
    lambda: ((torch.randn(2, 5, 8).double(),), {}),
    tags={"captured", "recurrent", "rng"},
)
def lstm_projected():
    """`proj_size`; in double precision because oneDNN warns about projections in float32."""
    return LSTMModel(proj_size=4).double()


@architecture("gru_and_rnn", floats((5, 2, 8)), tags={"captured", "recurrent"})
class GRUModel(nn.Module):
    """GRU with an initial state, then a ReLU RNN without bias, time first."""

    def __init__(self):
        super().__init__()
        self.gru, self.rnn = nn.GRU(8, 6), nn.RNN(6, 4, nonlinearity="relu", bias=False)
        self.start = nn.Parameter(torch.zeros(1, 2, 6))

    def forward(self, x):
        out, state = self.gru(x, self.start)
        return self.rnn(out)[0], state


@architecture("recurrent_cells", floats((2, 4, 8)), tags={"recurrent", "shapes"})
class RecurrentCells(nn.Module):
    """LSTMCell, GRUCell and RNNCell in a Python loop over `x.unbind(1)`."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(8, 6), nn.GRUCell(6, 6), nn.RNNCell(6, 4)

    def forward(self, x):
        state, gru, rnn, outs = None, None, None, []
        for step in x.unbind(1):
            state = self.lstm(step, state)
            gru = self.gru(state[0], gru)
            rnn = self.rnn(gru, rnn)
            outs.append(rnn)
        return torch.stack(outs, 1)


@architecture(
    "packed_sequence",
    lambda: ((torch.randint(1, 16, (3, 5)), torch.tensor([3, 5, 2])), {}),
    tags={"recurrent"},
)
class PackedLSTM(nn.Module):
    """Embedding, pack, LSTM, unpack: a PackedSequence between modules."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(16, 8), nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, ids, lengths):
        packed = pack_padded_sequence(
            self.embed(ids), lengths, batch_first=True, enforce_sorted=False
        )
        out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(out)


# Attention -----------------------------------------------------------------------------------


@architecture("multihead_attention", floats((2, 5, 8)), tags={"attention", "rng"})
class PackedAttention(nn.Module):
    """Packed `in_proj_weight`, dropout, causal mask buffer, weights returned and not."""

    def __init__(self):
        super().__init__()
        self.a = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.b = nn.MultiheadAttention(8, 4, bias=False, batch_first=True)
        self.register_buffer("mask", torch.ones(5, 5, dtype=torch.bool).triu(1))

    def forward(self, x):
        y, weights = self.a(x, x, x, attn_mask=self.mask)
        z, none = self.b(y, x, x, need_weights=False)
        return (x + z, weights) if none is None else z


@architecture(
    "multihead_attention_kdim",
    floats((4, 2, 8), (6, 2, 5), (6, 2, 3)),
    tags={"attention", "captured"},
)
class CrossAttentionKdim(nn.Module):
    """Separate projections for `kdim` and `vdim`, `bias_k`, zero attention, time first."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(
            8, 2, kdim=5, vdim=3, add_bias_kv=True, add_zero_attn=True
        )
        self.head = nn.Linear(8, 4)

    def forward(self, query, key, value):
        out, weights = self.attention(query, key, value)
        return self.head(out), weights


@architecture("transformer_encoder", floats((2, 5, 8)), tags={"attention", "rng"})
def transformer_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)


@architecture("transformer_decoder", floats((2, 4, 8), (2, 6, 8)), tags={"attention", "rng"})
class DecoderModel(nn.Module):
    """`nn.TransformerDecoder` over a memory with a causal mask."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.decoder, self.head = nn.TransformerDecoder(layer, 2), nn.Linear(8, 5)

    def forward(self, target, memory):
        mask = nn.Transformer.generate_square_subsequent_mask(4)
        return self.head(self.decoder(target, memory, tgt_mask=mask, tgt_is_causal=True))


@architecture("transformer_full", floats((2, 6, 8), (2, 4, 8)), tags={"attention", "rng"})
def transformer_full():
    return nn.Transformer(8, 2, 1, 1, 16, batch_first=True)


@architecture("scaled_dot_product", floats((2, 5, 8)), tags={"attention", "training", "rng"})
class ScaledDotProduct(nn.Module):
    """`F.scaled_dot_product_attention` with dropout in training, heads by `unflatten`."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        p = 0.1 if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


# Weights held directly -----------------------------------------------------------------------


@architecture("direct_parameters", floats((4, 8)), tags={"captured", "direct-weights"})
class DirectParameters(nn.Module):
    """No children, own parameters: `F.linear`, `@`, `torch.matmul`, `mm`, `addmm`, `baddbmm`."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (
            nn.Parameter(0.3 * torch.randn(8, 8)) for _ in range(5)
        )
        self.batch, self.bias = nn.Parameter(torch.randn(2, 8, 8)), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        x = F.linear(x, self.a, self.bias) @ self.b
        x = torch.matmul(self.c, x.T).T.tanh().mm(self.d)
        x = torch.addmm(self.bias, x, self.e)
        return torch.baddbmm(self.bias, x.expand(2, -1, -1), self.batch)


@architecture("direct_conv", floats((2, 3, 8, 8)), tags={"captured", "direct-weights", "conv"})
class DirectConv(nn.Module):
    """`F.conv2d`, `F.conv1d` and `F.conv_transpose2d` on parameters held by the module."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.up = nn.Parameter(torch.randn(4, 2, 2, 2))
        self.line = nn.Parameter(torch.randn(3, 2, 1))

    def forward(self, x):
        x = F.conv2d(x, self.w, stride=1, padding=1)
        x = F.conv_transpose2d(torch.relu(x), self.up, stride=2)
        return F.conv1d(x.flatten(2), self.line)


@architecture("direct_embedding", tokens((3, 5)), tags={"captured", "direct-weights", "tied"})
class DirectEmbedding(nn.Module):
    """`F.embedding`, indexing and output projection with one table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 8))

    def forward(self, ids):
        x = F.embedding(ids, self.table) + self.table[ids]
        return x @ self.table.T


@architecture("einsum_parameters", floats((2, 5, 8)), tags={"captured", "direct-weights"})
class EinsumAttention(nn.Module):
    """`torch.einsum` with 3-D projection parameters (JAX-style attention)."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(0.3 * torch.randn(8, 2, 4)) for _ in range(3))
        self.o = nn.Parameter(0.3 * torch.randn(2, 4, 8))

    def forward(self, x):
        q, k, v = (torch.einsum("btd,dhk->bthk", x, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("bqhk,bshk->bhqs", q, k).softmax(-1)
        return torch.einsum("bhqs,bshk,hkd->bqd", scores, v, self.o)


class HFConv1D(nn.Module):
    """GPT-2's Conv1D of the Transformers library: Linear with a transposed weight."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(0.1 * torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        size_out = x.size()[:-1] + (self.nf,)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


@architecture("hf_conv1d", floats((2, 5, 8)), tags={"captured", "direct-weights", "transposed"})
def hf_conv1d():
    return nn.Sequential(HFConv1D(16, 8), nn.GELU(), HFConv1D(8, 16))


@architecture("complex_parameters", floats((4, 8)), tags={"captured", "direct-weights", "complex"})
class ComplexParameters(nn.Module):
    """A complex weight and a learned filter in the Fourier domain (FNO)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8, dtype=torch.cfloat))
        self.filter = nn.Parameter(torch.randn(5, dtype=torch.cfloat))
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        y = torch.fft.irfft(torch.fft.rfft(self.fc(x)) * self.filter, n=8)
        return (y.to(torch.cfloat) @ self.w).abs()


@architecture(
    "double_precision", lambda: ((torch.randn(4, 8).double(),), {}), tags={"captured", "stateful"}
)
def double_precision():
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).double()


@architecture("mixed_precision_layers", floats((4, 8)), tags={"captured"})
class MixedPrecision(nn.Module):
    """A bfloat16 layer between float32 layers, cast to `self.fc.weight.dtype`."""

    def __init__(self):
        super().__init__()
        self.a, self.fc, self.b = nn.Linear(8, 8), nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8)

    def forward(self, x):
        return self.b(self.fc(self.a(x).to(self.fc.weight.dtype)).float())


@architecture("hypernetwork", floats((4, 8), (3,)), tags={"captured"})
class HyperNetwork(nn.Module):
    """The weights of a layer are another network's output."""

    def __init__(self):
        super().__init__()
        self.body, self.hyper = nn.Linear(8, 8), nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 36))

    def forward(self, x, task):
        w, b = self.hyper(task).split([32, 4])
        return F.linear(torch.relu(self.body(x)), w.view(4, 8), b)


# Parametrizations and adapters ---------------------------------------------------------------


@architecture("weight_norm", floats((2, 3, 8, 8)), tags={"conv", "no_pickle", "parametrized"})
def weight_norm_model():
    return nn.Sequential(
        weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), weight_norm(nn.Linear(144, 5))
    )


@architecture("spectral_norm", floats((4, 8)), tags={"parametrized", "stateful", "no_pickle"})
def spectral_norm_model():
    return nn.Sequential(spectral_norm(nn.Linear(8, 8)), nn.ReLU(), spectral_norm(nn.Linear(8, 1)))


@architecture("orthogonal", floats((4, 8)), tags={"parametrized", "no_pickle"})
def orthogonal_model():
    return nn.Sequential(orthogonal(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 4))


class LoRAParametrization(nn.Module):
    """W + BA with the original weight frozen."""

    def __init__(self, rows, columns, rank=2):
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, columns) / rank)
        self.b = nn.Parameter(0.1 * torch.randn(rows, rank))

    def forward(self, weight):
        return weight + self.b @ self.a


@architecture(
    "lora_parametrization",
    floats((4, 8)),
    tags={"frozen", "no_pickle", "parametrized"},
)
def lora_parametrization():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    for layer in (net[0], net[2]):
        adapter = LoRAParametrization(*layer.weight.shape)
        layer.weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", adapter)
    return net


class LoRALinear(nn.Module):
    """PEFT's layout: frozen `base_layer`, adapters in ModuleDicts, an active list, a flag."""

    def __init__(self, base_layer, rank=2):
        super().__init__()
        rows, columns = base_layer.weight.shape
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(columns, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, rows, bias=False)})
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.1)})
        self.active_adapters, self.scaling, self.merged = ["default"], {"default": 2.0}, False

    def forward(self, x, *args, **kwargs):
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        for name in self.active_adapters:
            y = self.lora_B[name](self.lora_A[name](self.lora_dropout[name](x)))
            result = result + y * self.scaling[name]
        return result


@architecture("lora_wrapper", floats((4, 8)), tags={"captured", "frozen", "rng", "variadic"})
def lora_wrapper():
    return nn.Sequential(LoRALinear(nn.Linear(8, 8)), nn.ReLU(), LoRALinear(nn.Linear(8, 4)))


def legacy(function, *args, **kwargs):
    """Call one of torch's deprecated helpers without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


@architecture(
    "weight_norm_legacy", floats((2, 4, 12)), tags={"hooks", "no_deepcopy", "parametrized"}
)
def weight_norm_legacy():
    """The old weight norm: a pre-hook sets `weight`, a plain tensor with history."""
    norm = nn.utils.weight_norm
    return nn.Sequential(legacy(norm, nn.Conv1d(4, 6, 3)), nn.ReLU(), nn.Conv1d(6, 2, 3))


@architecture(
    "spectral_norm_legacy",
    floats((4, 8)),
    tags={"hooks", "parametrized", "stateful", "stateful_python"},
)
def spectral_norm_legacy():
    """The old spectral norm: a pre-hook iterates in training mode."""
    norm = nn.utils.spectral_norm
    return nn.Sequential(legacy(norm, nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 1))


@architecture("pruned", floats((4, 8)), tags={"hooks", "no_deepcopy", "parametrized"})
def pruned():
    """`torch.nn.utils.prune`: `weight_orig`, a mask buffer, a pre-hook."""
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    prune.l1_unstructured(net[0], "weight", amount=0.4)
    prune.random_structured(net[2], "weight", amount=1, dim=0)
    return net


# Normalisation -------------------------------------------------------------------------------


@architecture("batch_norms", floats((4, 8)), tags={"captured", "stateful"})
class BatchNorms(nn.Module):
    """BatchNorm in one, two and three dims; without affine, momentum, or statistics."""

    def __init__(self):
        super().__init__()
        self.fc, self.flat = nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=None)
        self.line = nn.BatchNorm1d(2, affine=False)
        self.plane, self.space = nn.BatchNorm2d(2), nn.BatchNorm3d(2, track_running_stats=False)

    def forward(self, x):
        x = self.flat(self.fc(x))
        x = self.line(x.view(4, 2, 4))
        return self.space(self.plane(x.view(4, 2, 2, 2)).view(4, 2, 2, 2, 1))


@architecture("other_norms", floats((2, 4, 6, 6)), tags={"captured", "stateful", "conv"})
class OtherNorms(nn.Module):
    """GroupNorm, LayerNorm, RMSNorm, InstanceNorm with running statistics, LocalResponseNorm."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.Sequential(
            nn.GroupNorm(2, 4),
            nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            nn.LocalResponseNorm(2),
            nn.LayerNorm([6, 6]),
            nn.RMSNorm(6),
        )

    def forward(self, x):
        return self.norms(self.conv(x))


@architecture("custom_rms_norm", floats((2, 5, 8)), tags={"captured"})
class CustomRMSNorm(nn.Module):
    """LLaMA's RMSNorm and gated MLP, written by hand."""

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x):
            scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.weight * (x.float() * scale).to(x.dtype)

    def __init__(self):
        super().__init__()
        self.norm, self.gate, self.up = self.Norm(), nn.Linear(8, 16), nn.Linear(8, 16)
        self.down = nn.Linear(16, 8, bias=False)

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))
