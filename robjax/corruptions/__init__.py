"""Common corruptions of images: 15 kinds in five severities, as pure functions.

    kind(x, *, key, severity) -> images        [B, H, W, C] in [0, 1], the same shape

The kinds are those of Hendrycks & Dietterich, "Benchmarking Neural Network Robustness
to Common Corruptions and Perturbations", ICLR 2019 (arXiv 1903.12261):

    noise.py     gaussian_noise, shot_noise, impulse_noise
    blur.py      defocus_blur, glass_blur, motion_blur, zoom_blur
    weather.py   snow, frost, fog, brightness
    digital.py   contrast, elastic_transform, pixelate
    jpeg.py      jpeg_compression
    levels.py    severities, and the checks and compilation that all kinds share

`ALL` maps their names to them; `robjax.evaluation.corruption_table` runs them over a
data set.

**Parameters.** Images whose shorter side is below 128 pixels get those of CIFAR-10-C,
with lengths in pixels times max(1, side / 32); larger ones those of ImageNet-C, with
lengths times side / 224. So 32×32 and 224×224 images get the published values, and
smaller ones those of CIFAR-10-C, whose lengths are hardly above a pixel.

**Not those of the published sets.** Images are not rounded to 8 bits, and what their
code left to other libraries or to photographs is written anew; each function says so.
Numbers are comparable with each other, not with tables on CIFAR-10-C or ImageNet-C.
"""

from robjax.corruptions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from robjax.corruptions.digital import contrast, elastic_transform, pixelate
from robjax.corruptions.jpeg import jpeg_compression
from robjax.corruptions.levels import Corruption
from robjax.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from robjax.corruptions.weather import brightness, fog, frost, snow

ALL: dict[str, Corruption] = {
    "gaussian noise": gaussian_noise,
    "shot noise": shot_noise,
    "impulse noise": impulse_noise,
    "defocus blur": defocus_blur,
    "glass blur": glass_blur,
    "motion blur": motion_blur,
    "zoom blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg compression": jpeg_compression,
}
"""Name -> corruption, in the order of the paper."""

__all__ = [
    "ALL",
    "Corruption",
    "brightness",
    "contrast",
    "defocus_blur",
    "elastic_transform",
    "fog",
    "frost",
    "gaussian_noise",
    "glass_blur",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "shot_noise",
    "snow",
    "zoom_blur",
]
