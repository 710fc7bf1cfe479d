"""Each augmentation against torchvision's functional with the same parameters; draws keyed by position."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop, functional

from dejavu_utils.data import augment
from dejavu_utils.randomness import uniforms

IDENTITY_ORDER = (0, 1, 2, 3)


def parameters(n, **changes):
    values = dict(
        flip=np.zeros(n, bool),
        jitter=np.zeros(n, bool),
        factors=np.tile(np.float32([1, 1, 1, 0]), (n, 1)),
        order=np.tile(IDENTITY_ORDER, (n, 1)),
        gray=np.zeros(n, bool),
        solarize=np.zeros(n, bool),
        sigma=np.zeros(n),
    )
    values.update(changes)
    return augment.Parameters(**values)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 17, 23), dtype=torch.uint8, generator=generator)
    images[0, :] = 128  # no hue
    return images


def normalized(x):
    return functional.normalize(x, augment.MEAN, augment.STD)


OPERATIONS = [getattr(functional, f"adjust_{name}") for name in ("brightness", "contrast", "saturation", "hue")]
FACTORS = {0: (1.3, 0.6), 1: (1.4, 0.7), 2: (0.8, 1.2), 3: (0.1, -0.1, 0.43)}


@pytest.mark.parametrize("index, factor", [(index, factor) for index in FACTORS for factor in FACTORS[index]])
def test_color_operation(images, index, factor):
    p = parameters(6, jitter=np.ones(6, bool))
    p.factors[:, index] = factor
    expected = normalized(OPERATIONS[index](images.float() / 255, factor))
    torch.testing.assert_close(augment.apply(images, p), expected, rtol=0, atol=1e-5)


def test_orders_and_factors_of_single_images(images):
    rng = np.random.default_rng(0)
    p = parameters(6, jitter=np.array([True, True, False, True, True, True]))
    p.order[:] = [rng.permutation(4) for _ in range(6)]
    p.factors[:] = rng.uniform([0.6, 0.6, 0.8, -0.1], [1.4, 1.4, 1.2, 0.1], (6, 4))
    expected = images.float() / 255
    for i in range(6):
        if p.jitter[i]:
            for operation in p.order[i]:
                expected[i] = OPERATIONS[operation](expected[i], p.factors[i, operation].item())
    torch.testing.assert_close(augment.apply(images, p), normalized(expected), rtol=0, atol=2e-5)


def test_flip_gray_solarize(images):
    chosen = np.array([True, False, True, False, True, False])
    p = parameters(6, flip=chosen, gray=~chosen, solarize=chosen)
    x = images.float() / 255
    expected = functional.rgb_to_grayscale(x, num_output_channels=3).clone()
    expected[chosen] = functional.solarize(functional.hflip(x[chosen]), 128 / 255)
    torch.testing.assert_close(augment.apply(images, p), normalized(expected), rtol=0, atol=1e-5)


def test_blur_is_5_wide_and_9_high_after_normalization():
    images = torch.zeros(1, 3, 31, 31, dtype=torch.uint8)
    images[:, :, 15, 15] = 255
    blur = parameters(1, sigma=np.array([2.0]))
    change = augment.apply(images, blur) - augment.apply(images * 0, blur)
    rows, columns = change[0, 0].abs().gt(1e-6).nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (11, 19, 13, 17)
    expected = functional.gaussian_blur(normalized(images.float() / 255), [5, 9], [2.0, 2.0])
    torch.testing.assert_close(augment.apply(images, blur), expected)


def test_draws_depend_on_the_position_alone():
    whole = uniforms(3, 7, 0, 0, 100)
    parts = [uniforms(3, 7, 0, start, 20) for start in range(0, 100, 20)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    for other in ((4, 7, 0), (3, 8, 0), (3, 7, 1)):
        assert not np.isclose(whole, uniforms(*other, 0, 100)).any(axis=1).any()


def test_crops_stay_inside_and_have_the_drawn_areas_and_aspects():
    n = 20000
    sizes = np.tile([[375, 500]], (n, 1))
    boxes = augment.crop_boxes(uniforms(0, 0, 0, 0, n), sizes, augment.FIRST_VIEW)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and (boxes[:, 2] <= 500).all() and (boxes[:, 3] <= 375).all()
    aspect, area = w / h, w * h / (375 * 500)
    assert 0.745 < aspect.min() and aspect.max() < 1.342
    assert 0.079 < area.min() and area.max() < 1.0
    torch.manual_seed(0)
    image = torch.zeros(1, 375, 500)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    theirs_area = theirs[:, 2] * theirs[:, 3] / (375 * 500)
    for q in (0.1, 0.5, 0.9):  # the same distribution: quantiles agree within their sampling error
        assert np.quantile(area, q) == pytest.approx(np.quantile(theirs_area, q), abs=0.03)
        assert np.quantile(boxes[:, 0], q) == pytest.approx(np.quantile(theirs[:, 1], q), abs=12)
        assert np.quantile(boxes[:, 1], q) == pytest.approx(np.quantile(theirs[:, 0], q), abs=12)


def test_very_long_image_gets_the_centre():
    boxes = augment.crop_boxes(uniforms(0, 0, 0, 0, 50), np.tile([[10, 1000]], (50, 1)), augment.View(area=(1, 1)))
    assert (boxes == [[493, 0, 506, 10]]).all()


def test_parameters_are_drawn_with_the_published_probabilities():
    draws = uniforms(1, 2, 1, 0, 20000)
    p = augment.draw_parameters(draws, augment.SECOND_VIEW)
    for mask, probability in ((p.flip, 0.5), (p.jitter, 0.8), (p.gray, 0.2), (p.solarize, 0.2)):
        assert mask.mean() == pytest.approx(probability, abs=0.02)
    np.testing.assert_allclose(p.factors.min(axis=0), [0.6, 0.6, 0.8, -0.1], atol=1e-3)
    np.testing.assert_allclose(p.factors.max(axis=0), [1.4, 1.4, 1.2, 0.1], atol=1e-3)
    assert not p.sigma.any()
    assert len(np.unique(p.order, axis=0)) == 24
    of_epochs = [augment.draw_parameters(uniforms(0, e, 0, 0, 4), augment.FIRST_VIEW).sigma for e in range(300)]
    sigmas = np.stack(of_epochs)
    assert (sigmas == sigmas[:, :1]).all()  # one for a batch
    assert 0.1 <= sigmas.min() < 0.2 and 1.9 < sigmas.max() <= 2.0


def test_evaluation_crop_is_224_of_256_of_the_short_side():
    boxes = augment.center_boxes([[256, 512], [375, 500]])
    assert boxes.tolist() == [[144, 16, 368, 240], [86, 23, 414, 351]]
