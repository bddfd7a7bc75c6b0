"""POD curves against hand-derived numbers, SciPy, scikit-learn and simulated stations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression

from calibration import CalibrationError
from calibration.pod import FEWEST, Doubles, PodCurve, Trials, UndeterminedError, detectable, local_intercepts


def simulate(
    seed: int, count: int = 240, truth: tuple[float, float, float] = (-14.0, 3.0, 1.5), ceiling: float = 1.0
) -> Trials:
    """Defects of 3 to 80 px and 8 to 60 grey levels, each on an image of its own, found with the POD of `truth`."""
    rng = np.random.default_rng(seed)
    size, contrast = (np.exp(rng.uniform(*np.log(limits), count)) for limits in ((3, 80), (8, 60)))
    logit = truth[0] + truth[1] * np.log(size) + truth[2] * np.log(contrast)
    found = rng.random(count) < ceiling / (1 + np.exp(-logit))
    return Trials(size, contrast, found, np.arange(count))


def two_sizes(hits_small: int, hits_large: int, each: int = 40) -> Trials:
    """`each` defects of 10 px and of 20 px at one contrast."""
    size = np.repeat([10.0, 20.0], each)
    found = np.concatenate([np.arange(each) < hits_small, np.arange(each) < hits_large])
    return Trials(size, np.full(2 * each, 30.0), found, np.arange(2 * each))


def penalised(trials: Trials, beta: Doubles) -> float:
    """Firth's likelihood of b0, b1, b2 on a logarithmic scale, written as its definition."""
    design = np.column_stack([np.ones(len(trials)), np.log(trials.size_px), np.log(trials.contrast)])
    eta = design @ beta
    p = 1 / (1 + np.exp(-eta))
    information = design.T @ (design * (p * (1 - p))[:, None])
    return float(np.where(trials.found, -np.logaddexp(0, -eta), -np.logaddexp(0, eta)).sum()) + 0.5 * math.log(
        np.linalg.det(information)
    )


def test_two_sizes_have_half_a_hit_and_half_a_miss_more() -> None:
    # Firth's penalty in a saturated model adds 1/2 to each cell: logits log(10.5 / 30.5) at 10 px and log(32.5 / 8.5) at 20
    curve = PodCurve(two_sizes(10, 32))
    assert curve.probability(10.0, 30.0) == pytest.approx(10.5 / 41, rel=1e-6)
    assert curve.probability(20.0, 30.0) == pytest.approx(32.5 / 41, rel=1e-6)
    low, high = math.log(10.5 / 30.5), math.log(32.5 / 8.5)
    share = (math.log(9) - low) / (high - low)
    assert curve.scale == "log"  # both scales fit two points alike
    assert curve.size_at(0.9, 30.0) == pytest.approx(10 * 2**share, rel=1e-6)


def test_the_curve_maximises_firths_likelihood() -> None:
    trials = simulate(1)
    curve = PodCurve(trials)
    assert curve.scale == "log"
    best = minimize(lambda beta: -penalised(trials, beta), np.zeros(3), method="BFGS", options={"gtol": 1e-8})
    assert curve.coefficients == pytest.approx(best.x, rel=1e-4)


def test_with_many_defects_it_is_the_ordinary_logistic_regression() -> None:
    trials = simulate(2, 20_000)
    curve = PodCurve(trials)
    plain = LogisticRegression(C=1e9, tol=1e-10, max_iter=1000).fit(
        np.log(np.column_stack([trials.size_px, trials.contrast])), trials.found
    )
    assert curve.coefficients == pytest.approx([plain.intercept_[0], *plain.coef_[0]], rel=0.005)


def test_a_station_that_sees_size_and_not_its_logarithm_gets_a_linear_curve() -> None:
    rng = np.random.default_rng(3)
    size = rng.uniform(2, 60, 3000)
    found = rng.random(3000) < 1 / (1 + np.exp(-(size - 30) / 5))
    curve = PodCurve(Trials(size, np.full(3000, 30.0), found, np.arange(3000)))
    assert curve.scale == "linear"
    assert curve.size_at(0.9, 30.0) == pytest.approx(30 + 5 * math.log(9), rel=0.03)


def test_the_bound_is_where_the_profile_ratio_reaches_its_point() -> None:
    trials = simulate(4, 120)
    curve = PodCurve(trials)
    bound = curve.bound_at(0.9, 30.0)
    at = np.array([math.log(bound), math.log(30.0)])

    def held(slopes: Doubles) -> float:  # the logit at the bound is log 9, whatever the slopes
        return -penalised(trials, np.array([math.log(9) - slopes @ at, *slopes]))

    profile = minimize(held, np.array(curve.coefficients[1:]), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10})
    ratio = 2 * (penalised(trials, np.array(curve.coefficients)) + profile.fun)
    assert bound > curve.size_at(0.9, 30.0)
    assert ratio == pytest.approx(student.ppf(0.95, 119) ** 2 * curve.design_effect, rel=1e-3)  # of 120 images


def test_where_the_scales_cannot_be_told_apart_the_larger_bound_is_taken() -> None:
    rng = np.random.default_rng(5)
    size = rng.uniform(20, 30, 200)  # so narrow that a size and its logarithm are nearly one
    found = rng.random(200) < 1 / (1 + np.exp(-(size - 24) / 1.5))
    trials = Trials(size, np.full(200, 30.0), found, np.arange(200))
    curve = PodCurve(trials)

    def held(slope: Doubles, at: float, sizes: Doubles) -> float:  # no contrast: all have the same
        logit = math.log(9) + slope[0] * (sizes - at)
        p = 1 / (1 + np.exp(-logit))
        design = np.column_stack([np.ones(200), sizes])
        information = design.T @ (design * (p * (1 - p))[:, None])
        return -float(np.log(np.where(found, p, 1 - p)).sum() + np.linalg.slogdet(information)[1] / 2)

    bounds = []
    for scaled, back in ((np.log, np.exp), (np.asarray, np.asarray)):
        sizes = scaled(size)
        free = minimize(lambda b, sizes=sizes: held(b[1:], b[0], sizes), [sizes.mean(), 1.0], method="Nelder-Mead")
        grid = np.linspace(free.x[0], sizes.max(), 2000)
        profile = [minimize(held, free.x[1:], args=(at, sizes), method="Nelder-Mead").fun for at in grid[::100]]
        ratio = np.interp(grid, grid[::100], 2 * (np.array(profile) - free.fun))
        bounds.append(float(back(grid[np.argmax(ratio >= student.ppf(0.95, 199) ** 2)])))
    assert abs(bounds[0] - bounds[1]) > 0.01
    assert curve.bound_at(0.9, 30.0) == pytest.approx(max(bounds), abs=0.05)


def test_of_few_images_the_bound_knows_little_and_of_one_nothing() -> None:
    trials = simulate(4, 240)
    bounds = [
        PodCurve(Trials(trials.size_px, trials.contrast, trials.found, np.arange(240) % images)).bound_at(0.9, 30.0)
        for images in (240, 10, 3, 1)
    ]
    assert bounds == sorted(bounds) and bounds[1] < bounds[2]
    assert bounds[3] == math.inf
    one = Trials(trials.size_px, trials.contrast, trials.found, np.zeros(240, np.int64))
    stated, _ = detectable(one, 30.0)
    assert stated.a90 is not None and stated.a90_95 is None
    assert stated.reason is not None and "on more images" in stated.reason


def test_the_bound_holds_about_as_often_as_it_says() -> None:
    true = math.exp((math.log(9) + 14 - 1.5 * math.log(30)) / 3)
    bounds = [PodCurve(simulate(seed, 120)).bound_at(0.9, 30.0) for seed in range(100, 200)]
    held = sum(bound >= true for bound in bounds)
    assert 90 <= held <= 99  # of 100, expected 95; three standard errors are 6.5
    assert np.median(bounds) < 1.6 * true


def test_separated_hits_and_misses_have_a_finite_curve_and_bound() -> None:
    size = np.geomspace(4, 40, 80)
    trials = Trials(size, np.full(80, 30.0), size > 12, np.arange(80))
    stated, curve = detectable(trials, 30.0)
    assert curve is not None
    assert stated.a90 is not None and stated.a90_95 is not None
    assert 11 < stated.a90 < stated.a90_95 < 20


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        (two_sizes(40, 40), "all 80 defects of 10 to 20 px were found: draw smaller or fainter"),
        (two_sizes(0, 0), "none of 80 defects of 10 to 20 px was found: draw larger or stronger"),
        (two_sizes(20, 21), "larger ones not clearly more often"),
        (two_sizes(30, 10), "larger ones not clearly more often"),
        (two_sizes(3, 27, each=FEWEST // 2 - 1), f"58 defects, expected {FEWEST} or more"),
    ],
    ids=["all", "none", "no trend", "wrong trend", "few"],
)
def test_what_the_trials_do_not_determine_is_refused(trials: Trials, said: str) -> None:
    with pytest.raises(UndeterminedError, match=said):
        PodCurve(trials)
    stated, curve = detectable(trials, 30.0)
    assert curve is None
    assert (stated.a50, stated.a90, stated.a90_95) == (None, None, None)
    assert said in (stated.reason or "")


def test_a_size_beyond_those_tried_is_not_stated() -> None:
    stated, _ = detectable(two_sizes(4, 24), 30.0)  # 60 % at the largest
    assert stated.a50 is not None and stated.a90 is None and stated.a90_95 is None
    assert "a90 is beyond 20 px, the largest defect tried" in (stated.reason or "")
    stated, _ = detectable(two_sizes(2, 37), 30.0)  # 91.5 % at the largest: a90 is there, its bound is not
    assert stated.a90 is not None and stated.a90_95 is None
    assert "the bound of a90 is beyond 20 px" in (stated.reason or "")
    found_early, _ = detectable(two_sizes(380, 399, each=400), 30.0)
    assert found_early.a90 is None
    assert "a90 is below 10 px, the smallest defect tried" in (found_early.reason or "")


def test_the_same_luck_of_an_image_widens_the_bound_and_not_the_estimate() -> None:
    alone = simulate(5, 120)
    four = np.repeat(np.arange(120), 4)
    shared = alone.only(four)  # every defect four times, on the same image
    pretended = Trials(shared.size_px, shared.contrast, shared.found, np.arange(480))
    grouped, ungrouped = PodCurve(shared), PodCurve(pretended)
    assert grouped.design_effect == pytest.approx(4, rel=0.35)
    assert grouped.size_at(0.9, 30.0) == ungrouped.size_at(0.9, 30.0)
    assert ungrouped.bound_at(0.9, 30.0) < grouped.bound_at(0.9, 30.0)
    assert grouped.bound_at(0.9, 30.0) == pytest.approx(PodCurve(alone).bound_at(0.9, 30.0), rel=0.15)


def test_a_share_that_is_never_found_shows_as_a_misfit() -> None:
    assert PodCurve(simulate(6, 2000)).misfit > 0.05
    assert PodCurve(simulate(6, 2000, ceiling=0.8)).misfit < 0.01


def test_a_stronger_contrast_needs_a_smaller_defect() -> None:
    curve = PodCurve(simulate(7))
    assert curve.size_at(0.9, 60.0) < curve.size_at(0.9, 30.0) < curve.size_at(0.9, 15.0)
    assert curve.size_at(0.5, 30.0) < curve.size_at(0.9, 30.0) < curve.bound_at(0.9, 30.0) < curve.bound_at(0.95, 30.0)


def test_a_place_where_less_is_found_has_a_lower_intercept() -> None:
    rng = np.random.default_rng(80)
    trials = simulate(8, 1000)
    harder = rng.random(1000) < 0.5
    logit = -14 - 2.0 * harder + 3 * np.log(trials.size_px) + 1.5 * np.log(trials.contrast)
    trials = Trials(trials.size_px, trials.contrast, rng.random(1000) < 1 / (1 + np.exp(-logit)), trials.group)
    weights = np.stack([harder, ~harder, np.zeros(1000)]).astype(np.float64)
    low, high, nothing = local_intercepts(PodCurve(trials), trials, weights)
    assert high - low == pytest.approx(2.0, abs=0.6)
    assert math.isnan(nothing)


def test_a_place_where_all_are_found_has_a_finite_intercept() -> None:
    # of n all found at a POD of 1/2, the penalised logit is log((n + 1/2) / (1/2))
    trials = two_sizes(10, 32)
    curve = PodCurve(trials)
    middle = curve.size_at(0.5, 30.0)
    found = Trials(np.full(60, middle), np.full(60, 30.0), np.ones(60, bool), np.arange(60))
    assert local_intercepts(curve, found, np.ones((1, 60)))[0] == pytest.approx(math.log(60.5 / 0.5), rel=1e-6)


@pytest.mark.parametrize("size", [0.0, -1.0, math.nan, math.inf])
def test_sizes_that_are_none_are_refused(size: float) -> None:
    with pytest.raises(CalibrationError, match="expected finite numbers above 0"):
        Trials(np.array([size]), np.array([30.0]), np.array([True]), np.array([0]))
