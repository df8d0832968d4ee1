"""The blocks that networks of today are stacked from, as `torchvision`, `timm` and their users write them.

The modules of `golden_modules.py` show each op; these show that ops, shape arithmetic and control flow of real
code come together. They are narrow, so that the archives stay small, and nothing in them is left to chance:
dropout and stochastic depth are off.
"""
import math
from functools import partial
from typing import Iterator

import timm.layers
import torch
import torch.nn.functional as F
from timm.models import _efficientnet_blocks as timm_efficientnet
from timm.models import convnext as timm_convnext
from timm.models import resnet as timm_resnet
from timm.models import swin_transformer as timm_swin
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn
from torchvision.models import convnext, densenet, efficientnet, mobilenetv2, mobilenetv3, resnet
from torchvision.models import swin_transformer, vision_transformer
from torchvision.ops import Conv2dNormActivation

from golden_modules import Case


class CausalAttention(nn.Module):
    """As GPT-2 has it: one projection for queries, keys and values, and a mask kept as a buffer."""

    def __init__(self, width: int, heads: int, length: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop = nn.Dropout(0.0)
        mask = torch.tril(torch.ones(length, length, dtype=torch.bool)).view(1, 1, length, length)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.qkv(x).split(c, dim=2)
        q = q.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        k = k.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        v = v.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        y = self.drop(F.softmax(scores, dim=-1)) @ v
        return self.out(y.transpose(1, 2).contiguous().view(b, t, c))


class GptBlock(nn.Module):
    def __init__(self, width: int, heads: int, length: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = CausalAttention(width, heads, length)
        self.mlp = nn.ModuleDict(
            {"up": nn.Linear(width, 4 * width), "act": nn.GELU(approximate="tanh"), "down": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        y = self.ln_2(x)
        for layer in self.mlp.values():
            y = layer(y)
        return x + y


class RmsNorm(nn.Module):
    """As Llama has it, by hand and through f32 whatever comes in."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.type_as(x) * self.weight


def rotated(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


class LlamaBlock(nn.Module):
    """Rotary positions, keys and values shared by pairs of heads, SwiGLU, RMSNorm."""

    def __init__(self, width: int, heads: int, length: int):
        super().__init__()
        self.heads, self.groups, self.size = heads, heads // 2, width // heads
        self.attention_norm, self.ffn_norm = RmsNorm(width), RmsNorm(width)
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, self.groups * self.size, bias=False)
        self.wv = nn.Linear(width, self.groups * self.size, bias=False)
        self.w1, self.w2 = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.w3 = nn.Linear(width, 2 * width, bias=False)
        angles = torch.outer(torch.arange(length).float(), 100.0 ** -(torch.arange(0, self.size, 2) / self.size))
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, dim=-1))
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, dim=-1))

    def attention(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, self.heads, self.size).transpose(1, 2)
        k = self.wk(x).view(b, t, self.groups, self.size).transpose(1, 2)
        v = self.wv(x).view(b, t, self.groups, self.size).transpose(1, 2)
        cos, sin = self.cos[:t], self.sin[:t]
        q, k = q * cos + rotated(q) * sin, k * cos + rotated(k) * sin
        k = k[:, :, None].expand(b, self.groups, 2, t, self.size).reshape(b, self.heads, t, self.size)
        v = torch.repeat_interleave(v, 2, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(b, t, -1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        y = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class LoraLinear(nn.Linear):
    """As `peft` and `loralib` have it: the layer itself, frozen, and a scaled product beside it."""

    def __init__(self, width: int, rank: int, alpha: float):
        super().__init__(width, width)
        self.weight.requires_grad_(False)
        self.lora_a, self.lora_b = nn.Parameter(torch.zeros(rank, width)), nn.Parameter(torch.zeros(width, rank))
        self.scaling = alpha / rank
        self.lora_dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y + (self.lora_dropout(x) @ self.lora_a.transpose(0, 1) @ self.lora_b.transpose(0, 1)) * self.scaling


def torchvision_blocks() -> Iterator[Case]:
    image = (8, 6, 6)
    norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
    downsample = nn.Sequential(resnet.conv1x1(8, 12, 2), nn.BatchNorm2d(12))
    yield Case("tv_resnet_basic", resnet.BasicBlock(8, 12, 2, downsample), image)
    yield Case("tv_resnet_bottleneck", resnet.Bottleneck(16, 4), (16, 6, 6))
    yield Case("tv_mobilenet_v2", mobilenetv2.InvertedResidual(8, 8, 1, 2), image)
    v3 = mobilenetv3.InvertedResidualConfig(8, 5, 16, 8, True, "HS", 1, 1, 1.0)
    yield Case("tv_mobilenet_v3", mobilenetv3.InvertedResidual(v3, norm), image)
    yield Case("tv_convnext", convnext.CNBlock(8, 1e-1, 0.0), image)
    yield Case("tv_densenet", densenet._DenseBlock(2, 8, 2, 4, 0.0), image)
    encoder = vision_transformer.EncoderBlock(2, 16, 32, 0.0, 0.0)
    yield Case("tv_vit", encoder, (5, 16))
    swin = swin_transformer.SwinTransformerBlock(8, 2, [4, 4], [2, 2], mlp_ratio=2.0)
    yield Case("tv_swin", swin, (8, 8, 8), 2, eval_only=True)
    swin = swin_transformer.SwinTransformerBlockV2(8, 2, [4, 4], [0, 0], mlp_ratio=2.0)
    yield Case("tv_swin_v2", swin, (6, 6, 8), 2, decomposed=False, eval_only=True)
    mbconv = efficientnet.MBConvConfig(2, 3, 1, 8, 8, 1)
    yield Case("tv_efficientnet", efficientnet.MBConv(mbconv, 0.0, norm), image)
    fused = efficientnet.FusedMBConvConfig(2, 3, 2, 8, 12, 1)
    yield Case("tv_efficientnet_fused", efficientnet.FusedMBConv(fused, 0.0, norm), image, decomposed=False)
    stem = Conv2dNormActivation(3, 8, 7, 2, 3)
    yield Case("tv_stem", nn.Sequential(stem, nn.MaxPool2d(3, 2, 1)), (3, 16, 16), decomposed=False)


def timm_blocks() -> Iterator[Case]:
    image = (8, 6, 6)
    act = nn.SiLU
    yield Case("timm_resnet_basic", timm_resnet.BasicBlock(8, 8, attn_layer=None), image, decomposed=False)
    attn = timm.layers.get_attn("eca")
    yield Case("timm_resnet_bottleneck", timm_resnet.Bottleneck(16, 4, attn_layer=attn), (16, 6, 6))
    yield Case("timm_convnext", timm_convnext.ConvNeXtBlock(8, kernel_size=5, ls_init_value=0.5), image, eval_only=True)
    v2 = timm_convnext.ConvNeXtBlock(8, kernel_size=3, ls_init_value=None, conv_mlp=True)
    yield Case("timm_convnext_conv", v2, image, decomposed=False, eval_only=True)
    yield Case("timm_vit", timm_vit.Block(16, 2, mlp_ratio=2.0, qkv_bias=True, init_values=0.5), (5, 16), eval_only=True)
    swiglu = partial(timm_vit.Block, mlp_layer=timm.layers.SwiGLU, norm_layer=timm.layers.RmsNorm, qk_norm=True)
    yield Case("timm_vit_swiglu", swiglu(16, 2, mlp_ratio=2.0), (5, 16), eval_only=True)
    swin = timm_swin.SwinTransformerBlock(8, (8, 8), num_heads=2, window_size=4, shift_size=2, mlp_ratio=2.0)
    yield Case("timm_swin", swin, (8, 8, 8), 2, eval_only=True)
    squeeze = partial(timm_efficientnet.SqueezeExcite, rd_round_fn=round)
    mbconv = timm_efficientnet.InvertedResidual(8, 8, exp_ratio=2.0, act_layer=act, se_layer=squeeze)
    yield Case("timm_efficientnet", mbconv, image)
    separable = timm_efficientnet.DepthwiseSeparableConv(8, 8, dw_kernel_size=5, act_layer=act, se_layer=squeeze)
    yield Case("timm_depthwise", separable, image, decomposed=False)


def blocks() -> Iterator[Case]:
    yield from torchvision_blocks()
    yield from timm_blocks()
    yield Case("gpt_block", GptBlock(16, 2, 8), (6, 16))
    yield Case("llama_block", LlamaBlock(16, 4, 8), (6, 16))
    yield Case("lora_linear", LoraLinear(12, 3, 6.0), (4, 12))
