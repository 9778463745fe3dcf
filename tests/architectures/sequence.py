"""Complete small models for text, time series and tables."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .signatures import Output
from .table import architecture, floats, tokens


@architecture("gpt", tokens((2, 6)), tags={"attention", "rng", "shapes", "tied"})
class GPT(nn.Module):
    """nanoGPT: causal mask buffer, weight tying, `assert` on length, dropout, loss or no loss."""

    class Block(nn.Module):
        def __init__(self, dim=8, heads=2, context=8):
            super().__init__()
            self.heads, self.drop = heads, nn.Dropout(0.1)
            self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim, bias=False)
            self.c_attn, self.c_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            self.mlp = nn.ModuleDict(
                {"c_fc": nn.Linear(dim, 4 * dim), "c_proj": nn.Linear(4 * dim, dim)}
            )
            self.register_buffer("bias", torch.tril(torch.ones(1, 1, context, context)))

        def attend(self, x):
            b, t, c = x.size()
            q, k, v = (
                y.view(b, t, self.heads, c // self.heads).transpose(1, 2)
                for y in self.c_attn(x).split(c, dim=2)
            )
            scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            scores = scores.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
            y = self.drop(F.softmax(scores, dim=-1)) @ v
            return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))

        def forward(self, x):
            x = x + self.attend(self.ln_1(x))
            return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))

    def __init__(self, vocabulary=16, dim=8, context=8):
        super().__init__()
        self.context = context
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, dim),
                "wpe": nn.Embedding(context, dim),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList(self.Block() for _ in range(2)),
                "ln_f": nn.LayerNorm(dim),
            }
        )
        self.lm_head = nn.Linear(dim, vocabulary, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx, targets=None):
        _, t = idx.size()
        assert t <= self.context, f"{t} tokens, but the context is {self.context}"
        position = torch.arange(0, t, dtype=torch.long, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(position))
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


@architecture("gpt_with_targets", tokens((2, 6), (2, 6)), tags={"attention", "rng", "tied"})
def gpt_with_targets():
    return GPT()


@architecture(
    "bert",
    lambda: (
        (torch.randint(16, (2, 5)),),
        {"attention_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2])},
    ),
    tags={"attention", "optional", "rng", "tied"},
)
class BERT(nn.Module):
    """Optional mask and segments, extended mask, tied decoder with its own bias, dataclass."""

    class Layer(nn.Module):
        def __init__(self, dim=8, heads=2):
            super().__init__()
            self.heads = heads
            self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
            self.dense, self.intermediate = nn.Linear(dim, dim), nn.Linear(dim, 16)
            self.output, self.dropout = nn.Linear(16, dim), nn.Dropout(0.1)
            self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

        def transpose_for_scores(self, x):
            return x.view(x.size()[:-1] + (self.heads, -1)).permute(0, 2, 1, 3)

        def forward(self, hidden, mask=None, output_attentions=False):
            q, k, v = (
                self.transpose_for_scores(f(hidden)) for f in (self.query, self.key, self.value)
            )
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            if mask is not None:
                scores = scores + mask
            probabilities = self.dropout(scores.softmax(-1))
            context = (probabilities @ v).permute(0, 2, 1, 3).contiguous().flatten(2)
            hidden = self.norm1(hidden + self.dropout(self.dense(context)))
            hidden = self.norm2(hidden + self.output(F.gelu(self.intermediate(hidden))))
            return (hidden, probabilities) if output_attentions else (hidden,)

    def __init__(self, dim=8):
        super().__init__()
        self.word, self.segment, self.position = (nn.Embedding(n, dim) for n in (16, 2, 8))
        self.register_buffer("position_ids", torch.arange(8).expand((1, -1)))
        self.layer = nn.ModuleList(self.Layer() for _ in range(2))
        self.pooler, self.decoder = nn.Linear(dim, dim), nn.Linear(dim, 16, bias=False)
        self.decoder.weight, self.bias = self.word.weight, nn.Parameter(torch.zeros(16))

    def forward(self, ids, attention_mask=None, segments=None, *, return_dict=True):
        if segments is None:
            segments = torch.zeros_like(ids)
        x = (
            self.word(ids)
            + self.segment(segments)
            + self.position(self.position_ids[:, : ids.shape[1]])
        )
        mask = None
        if attention_mask is not None:
            mask = (1.0 - attention_mask[:, None, None, :]) * torch.finfo(x.dtype).min
        for layer in self.layer:
            x = layer(x, mask)[0]
        pooled = torch.tanh(self.pooler(x[:, 0]))
        logits = self.decoder(x) + self.bias
        return Output(logits, hidden=pooled) if return_dict else (logits, pooled)


@architecture("t5_relative_bias", floats((2, 6, 8)), tags={"attention", "factories"})
class T5(nn.Module):
    """The first layer computes a bucketed relative bias that later layers reuse."""

    class Layer(nn.Module):
        def __init__(self, has_bias):
            super().__init__()
            self.qkv, self.o = nn.Linear(8, 24, bias=False), nn.Linear(8, 8, bias=False)
            self.relative = nn.Embedding(5, 2) if has_bias else None

        def compute_bias(self, n, device):
            offset = torch.arange(n, device=device)[None] - torch.arange(n, device=device)[:, None]
            return self.relative(offset.clamp(-2, 2) + 2).permute(2, 0, 1)

        def forward(self, x, bias=None):
            q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
            if bias is None:
                bias = self.compute_bias(x.shape[1], x.device)
            y = ((q @ k.mT) + bias).softmax(-1) @ v
            return x + self.o(y.transpose(1, 2).flatten(2)), bias

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(self.Layer(has_bias=i == 0) for i in range(3))

    def forward(self, x):
        bias = None
        for layer in self.layers:
            x, bias = layer(x, bias)
        return x


@architecture("seq2seq_attention", tokens((2, 5), (2, 4)), tags={"recurrent", "rng", "shapes"})
class Seq2Seq(nn.Module):
    """GRU encoder, attending GRUCell decoder, teacher forcing decided by a random draw."""

    def __init__(self):
        super().__init__()
        self.embed, self.encoder = nn.Embedding(16, 8), nn.GRU(8, 8, batch_first=True)
        self.cell, self.score = nn.GRUCell(16, 8), nn.Bilinear(8, 8, 1)
        self.head = nn.Linear(8, 16)

    def attend(self, state, memory):
        weights = self.score(state[:, None].expand_as(memory).contiguous(), memory).softmax(1)
        return (weights * memory).sum(1)

    def forward(self, source, target):
        memory, state = self.encoder(self.embed(source))
        state, word, outs = state[0], target[:, 0], []
        for t in range(target.size(1)):
            state = self.cell(torch.cat([self.embed(word), self.attend(state, memory)], 1), state)
            outs.append(self.head(state))
            word = target[:, t] if torch.rand(1).item() < 0.5 else outs[-1].argmax(-1)
        return torch.stack(outs, 1)


class Chomp(nn.Module):
    """Cut the end of a sequence: `x[:, :, :-n].contiguous()`."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[:, :, : -self.size].contiguous()


@architecture("tcn", floats((2, 4, 12)), tags={"conv", "no_pickle", "parametrized", "rng"})
class TCN(nn.Module):
    """Causal dilated convolutions with weight norm, chomping, dropout and residuals."""

    def __init__(self):
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.blocks = nn.ModuleList(
            nn.Sequential(
                norm(nn.Conv1d(4, 4, 2, padding=d, dilation=d)),
                Chomp(d),
                nn.ReLU(),
                nn.Dropout(0.1),
            )
            for d in (1, 2, 4)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x[:, :, -1])


@architecture("wavenet", floats((2, 1, 16)), tags={"captured", "conv"})
class WaveNet(nn.Module):
    """Gated dilated convolutions whose skips are summed."""

    def __init__(self):
        super().__init__()
        self.causal = nn.Conv1d(1, 4, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(4, 8, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(3))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(4, 6, 1))

    def forward(self, x):
        x, total = self.causal(x), 0
        for i, dilated in enumerate(self.dilated):
            a, b = dilated(F.pad(x, (2**i, 0))).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            total, x = total + self.skip[i](y), x + self.residual[i](y)
        return self.end(total)


@architecture("selective_scan", floats((2, 5, 8)), tags={"conv", "direct-weights", "shapes"})
class Mamba(nn.Module):
    """A selective state space: input-dependent steps and a scan in a Python loop."""

    def __init__(self, dim=8, states=4):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.conv = nn.Conv1d(dim, dim, 3, groups=dim, padding=2)
        self.x_proj = nn.Linear(dim, dim + 2 * states)
        self.log_a = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(dim, 1))
        self.d = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        length = x.shape[1]
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv(x.mT)[..., :length].mT)
        step, b, c = self.x_proj(x).split([8, 4, 4], dim=-1)
        step = F.softplus(step)[..., None]
        decay, drive = (-step * self.log_a.exp()).exp(), step * b[:, :, None] * x[..., None]
        state, outs = torch.zeros_like(drive[:, 0]), []
        for t in range(length):
            state = decay[:, t] * state + drive[:, t]
            outs.append((state * c[:, t, None]).sum(-1))
        return self.out_proj((torch.stack(outs, 1) + self.d * x) * F.silu(gate))


@architecture("perceiver", floats((2, 9, 6)), tags={"attention", "captured", "rng"})
class Perceiver(nn.Module):
    """Learned latents cross-attend to the input, with weights shared between rounds."""

    def __init__(self):
        super().__init__()
        self.latents, self.project = nn.Parameter(torch.randn(3, 8)), nn.Linear(6, 8)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.1))

    def forward(self, x):
        x = self.project(x)
        z = self.latents.unsqueeze(0).repeat(x.shape[0], 1, 1)
        for _ in range(2):
            z = z + self.cross(z, x, x, need_weights=False)[0]
            z = z + self.mlp(z)
        return z.mean(1)


@architecture(
    "dlrm",
    lambda: ((torch.randn(4, 6), [torch.randint(16, (4, 2)) for _ in range(3)]), {}),
    tags={"iteration", "non-tensor"},
)
class DLRM(nn.Module):
    """Embedding bags for a list of id tensors, pairwise dot products, two MLPs."""

    def __init__(self):
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(16, 4, mode="sum") for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())

    def forward(self, dense, sparse):
        x = self.bottom(dense)
        stack = [x] + [self.bags[k](ids) for k, ids in enumerate(sparse)]
        t = torch.stack(stack, 1)
        pairs = torch.bmm(t, t.transpose(1, 2))
        i, j = torch.tril_indices(len(stack), len(stack), -1)
        return self.top(torch.cat([x, pairs[:, i, j]], 1))


@architecture("wide_and_deep", tokens((4, 3)), tags={"captured"})
class WideAndDeep(nn.Module):
    """A table per column, concatenated; the sum of a wide and a deep path."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(16, 4) for _ in range(3))
        self.deep = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))
        self.wide = nn.Linear(12, 1)

    def forward(self, ids):
        x = torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], -1)
        return self.wide(x) + self.deep(x)
