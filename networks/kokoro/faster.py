"""The decoder's small operations put together, and its convolutions in the layout that CPUs compute fastest in.

Three quarters of the decoder's time on a CPU go into the convolutions of the generator, a good part of which is copying between
the layout [channels, time] and that of the kernels; a quarter goes into element-wise work between them. In [time, channels],
PyTorch's channels-last layout of pictures one pixel high, nothing needs to be copied. The numbers stay the same up to rounding.
"""

import torch
from kokoro.istftnet import AdaIN1d, AdaINResBlock1
from torch import Tensor, nn
from torch.nn import functional as F

# Steps of padding from which on oneDNN (as of PyTorch 2.15, AVX2) takes twice the time, unless they are put on beforehand. The
# model has 1 to 15, and 25 in one of 18 convolutions.
WIDE_PADDING = 16


class FusedAdaIN(nn.Module):
    """Adaptive instance norm in one operation: the style gives scale and shift of the norm itself. For a batch of one."""

    def __init__(self, original: AdaIN1d):
        super().__init__()
        self.norm, self.fc = original.norm, original.fc

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.fc(style)[0].chunk(2)
        return F.instance_norm(x, weight=1 + scale, bias=shift, eps=self.norm.eps)


class PixelRowAdaIN(nn.Module):
    """The same for x [1, channels, 1, time] in channels-last layout, which `instance_norm` would copy."""

    def __init__(self, original: AdaIN1d):
        super().__init__()
        self.fc, self.eps = original.fc, original.norm.eps

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.fc(style)[:, :, None, None].chunk(2, 1)
        mean = x.mean(3, keepdim=True)
        centred = x - mean
        variance = (centred * centred).mean(3, keepdim=True)
        return torch.addcmul(shift, centred, (1 + scale) * torch.rsqrt(variance + self.eps))


def pixel_row(convolution: nn.Conv1d) -> nn.Module:
    """A convolution over time as one over pictures one pixel high."""
    padding = convolution.padding[0]
    apart = padding > WIDE_PADDING
    made = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        (1, convolution.kernel_size[0]),
        (1, convolution.stride[0]),
        (0, 0 if apart else padding),
        (1, convolution.dilation[0]),
    )
    made.weight = nn.Parameter(convolution.weight.detach()[:, :, None].contiguous(memory_format=torch.channels_last))
    made.bias = convolution.bias
    return nn.Sequential(nn.ZeroPad2d((padding, padding, 0, 0)), made) if apart else made


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """x + sin(alpha x)^2 / alpha (Ziyin et al. 2020), in place on its own intermediate where no gradient is wanted."""
    wave = alpha * x
    if torch.is_grad_enabled():
        return x + torch.sin(wave) ** 2 / alpha
    wave.sin_().mul_(wave)
    return torch.addcmul(x, wave, 1 / alpha, out=wave)


class FusedResBlock(nn.Module):
    """The generator's residual block, [1, channels, time] in and out."""

    def __init__(self, original: AdaINResBlock1):
        super().__init__()
        self.convs1, self.convs2 = (nn.ModuleList(map(pixel_row, c)) for c in (original.convs1, original.convs2))
        self.adain1, self.adain2 = (nn.ModuleList(map(PixelRowAdaIN, a)) for a in (original.adain1, original.adain2))
        self.alpha1, self.alpha2 = original.alpha1, original.alpha2

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = x[:, :, None].contiguous(memory_format=torch.channels_last)
        layers = (self.convs1, self.convs2, self.adain1, self.adain2, self.alpha1, self.alpha2)
        for conv1, conv2, norm1, norm2, alpha1, alpha2 in zip(*layers, strict=True):
            inner = conv1(snake(norm1(x, style), alpha1[..., None]))
            x = conv2(snake(norm2(inner, style), alpha2[..., None])) + x
        return x[:, :, 0].contiguous()


def _plain(norm: AdaIN1d) -> bool:
    """Scale and shift of the norm itself are the identity in the released model; others are not put together."""
    return bool((norm.norm.weight == 1).all() and (norm.norm.bias == 0).all())


def fuse(model: nn.Module) -> None:
    """Replace the layers of a model that has its weights, without weight normalisation."""
    for kind, replacement, fits in (
        (AdaINResBlock1, FusedResBlock, lambda block: all(map(_plain, (*block.adain1, *block.adain2)))),
        (AdaIN1d, FusedAdaIN, _plain),
    ):
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, kind) and fits(child):
                    setattr(module, name, replacement(child))
