"""Convolutional encoder of a dense feature volume into the box planner's voxel tokens."""

from collections.abc import Sequence

from torch import Tensor, nn

from networks.omnipart.sparse_structure import ResBlock3d


class HalveVolume(nn.Module):
    """2x2x2 convolution with stride 2."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class VoxelEncoder(nn.Module):
    """[B, in_channels, R, R, R] -> [B, channels[-1], r, r, r], r = R / 2^(levels - 1)."""

    def __init__(self, in_channels: int, channels: Sequence[int], num_res_blocks: int, num_res_blocks_middle: int):
        super().__init__()
        self.input_layer = nn.Conv3d(in_channels, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for level, width in enumerate(channels):
            self.blocks.extend(ResBlock3d(width) for _ in range(num_res_blocks))
            if level + 1 < len(channels):
                self.blocks.append(HalveVolume(width, channels[level + 1]))
        self.middle_block = nn.Sequential(*(ResBlock3d(channels[-1]) for _ in range(num_res_blocks_middle)))

    def forward(self, volume: Tensor) -> Tensor:
        h = self.input_layer(volume.to(self.input_layer.weight.dtype))
        for block in self.blocks:
            h = block(h)
        return self.middle_block(h)
